"""How an output object names the film it is about.

The film's header is read by our own parser, attribute by attribute, so nothing else of it can reach an
object. Objects are built about a :meth:`Source.reference` without a patient, and
:meth:`Source.stamp` writes the patient and the study on them when they are finished: no library ever sees,
checks or logs who it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime

from pydicom.dataset import Dataset

from schema.codes import (
    BASIC_CONFIDENTIALITY_PROFILE,
    PRIVATE_SCHEME,
    PRIVATE_SCHEME_NAME,
    RETAIN_PATIENT_CHARACTERISTICS,
    Code,
)
from worker.film import values
from worker.film.elements import Elements, Value, read_elements
from worker.film.geometry import CALIBRATION_TYPE, GEOMETRY_TAGS, IMAGER_SPACING, PATIENT_ORIENTATION, PIXEL_SPACING
from worker.film.prepared import Geometry
from worker.film.reader import HEADER_TAGS
from worker.film.source import open_source
from worker.intake.sources import resolve
from worker.queue.outcomes import SourceReference
from worker.results.outputs.coding import item_of
from worker.results.outputs.identifiers import keyed_uid, pseudonymous_uid
from worker.settings import Settings

#: Attribute → tag of what else is copied to objects that keep the identity.
_MORE_TAGS = {
    "StudyTime": 0x00080030,
    "ReferringPhysicianName": 0x00080090,
    "StudyDescription": 0x00081030,
    "PatientName": 0x00100010,
    "StudyID": 0x00200010,
}
#: Patient and General Study modules: free text that is copied as it is.
_COPIED = ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName")
#: Only written where the film has them (type 3).
_OPTIONAL = ("IssuerOfPatientID", "StudyDescription")
_DATES = ("PatientBirthDate", "StudyDate")

_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_AGE = re.compile(r"\d{3}[DWMY]")
_DIRECTION = re.compile(r"[ALRPHF]{1,3}")
_OPPOSITE = str.maketrans("LRHFAP", "RLFHPA")
_DAYS_PER_YEAR = 365.25

#: Dates and times of objects without identity: attributes that must have a value get this one.
NO_DATE, NO_TIME = "19000101", "000000"
_DATE_STEMS = ("InstanceCreation", "Content", "Series")
_CAPTURE = ("DateOfSecondaryCapture", "TimeOfSecondaryCapture")


@dataclass(frozen=True)
class Source:
    """A film as an object names it.

    ``attributes`` are written on the finished object, keyword → value, "" for no value. ``orientation`` is
    PatientOrientation of the stored picture, () where it is unknown. ``made`` is when the result was written,
    None in an object without identity.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    attributes: Mapping[str, str]
    orientation: tuple[str, ...]
    spacing: Mapping[str, tuple[float, float]]
    calibration: str
    made: datetime | None
    deidentification: tuple[Code, ...] = ()

    def reference(self, geometry: Geometry) -> Dataset:
        """The film without a patient and without pixels, as highdicom wants its source."""
        dataset = Dataset()
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SOPClassUID, dataset.SOPInstanceUID = self.sop_class_uid, self.sop_instance_uid
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.study_instance_uid, self.series_instance_uid
        dataset.Modality = self.modality
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(dataset, keyword, "")
        dataset.StudyDate = dataset.StudyTime = None
        dataset.ReferringPhysicianName = ""
        dataset.Rows, dataset.Columns = geometry.film_rows, geometry.film_columns
        dataset.PatientOrientation = list(self.orientation)
        for keyword, (rows, columns) in self.spacing.items():
            setattr(dataset, keyword, [f"{rows:.10g}", f"{columns:.10g}"])
        return dataset

    def shown_orientation(self, geometry: Geometry) -> tuple[str, ...]:
        """PatientOrientation of the picture as the networks saw it."""
        flips = (geometry.flip_columns, geometry.flip_rows)
        return tuple(
            direction.translate(_OPPOSITE) if flip else direction
            for direction, flip in zip(self.orientation, flips, strict=False)
        )

    def stamp(self, dataset: Dataset) -> None:
        """Write patient, study and times on a finished object."""
        dataset.SpecificCharacterSet = "ISO_IR 192"
        for keyword, value in self.attributes.items():
            setattr(dataset, keyword, value)
        made = self.made.astimezone() if self.made else None
        day = made.strftime("%Y%m%d") if made else NO_DATE
        time = made.strftime("%H%M%S") if made else NO_TIME
        for stem in _DATE_STEMS:
            setattr(dataset, f"{stem}Date", day)
            setattr(dataset, f"{stem}Time", time)
        for equipment in dataset.get("ContributingEquipmentSequence", ()):
            equipment.ContributionDateTime = f"{day}{time}"
        if _CAPTURE[0] in dataset:
            setattr(dataset, _CAPTURE[0], day)
            setattr(dataset, _CAPTURE[1], time)
        scheme = Dataset()
        scheme.CodingSchemeDesignator, scheme.CodingSchemeName = PRIVATE_SCHEME, PRIVATE_SCHEME_NAME
        dataset.CodingSchemeIdentificationSequence = [scheme]
        if self.deidentification:
            dataset.PatientIdentityRemoved = "YES"
            dataset.LongitudinalTemporalInformationModified = "REMOVED"
            dataset.DeidentificationMethod = "Written without identity by Carina"
            dataset.DeidentificationMethodCodeSequence = [item_of(code) for code in self.deidentification]


def read_source_header(settings: Settings, source: SourceReference) -> Elements:
    """The attributes of a film's file that objects about it may need.

    Raises
    ------
    worker.errors.FilmError
        The file is gone, changed, may not be read, or is no DICOM any more.
    """
    path = resolve(settings, source)
    wanted = frozenset({*HEADER_TAGS.values(), *_MORE_TAGS.values(), *GEOMETRY_TAGS})
    with open_source(path, source.member or None) as (stream, size):
        return read_elements(stream, size, wanted)


def identified_source(elements: Elements, site_key: bytes, sop_instance_uid: str, made: datetime) -> Source:
    """The film under its own identifiers; what it lacks is empty, a missing UID is made of the film's."""
    found = _finder(elements)
    character_set = found("SpecificCharacterSet")
    attributes = {name: values.text(found(name), character_set) for name in _COPIED}
    attributes |= {name: text for name in _OPTIONAL if (text := values.text(found(name), character_set))}
    attributes |= {name: _date(values.calendar_date(found(name))) for name in _DATES}
    attributes["StudyTime"] = _matching(_TIME, values.text(found("StudyTime")).replace(":", ""))
    attributes["PatientSex"] = _sex(found("PatientSex"))
    if age := _matching(_AGE, values.code(found("PatientAge"))):
        attributes["PatientAge"] = age
    uids = {
        name: values.uid(found(name)) or keyed_uid(site_key, "instead", name, sop_instance_uid)
        for name in ("StudyInstanceUID", "SeriesInstanceUID")
    }
    return _source(elements, sop_instance_uid, uids, attributes, made=made)


def pseudonymous_source(
    elements: Elements, site_key: bytes, sop_instance_uid: str, patient_key: str, *, age_and_sex: bool
) -> Source:
    """The film without identity (PS3.15 table E.1-1, Basic Profile).

    UIDs are replaced by keyed ones, the patient by the first 16 digits of the patient's key; dates, times, numbers,
    names and descriptions are emptied or left out. ``age_and_sex`` keeps age and sex (Retain Patient
    Characteristics Option).
    """
    found = _finder(elements)
    pseudonym = patient_key[:16]
    attributes = dict.fromkeys((*_COPIED, *_DATES, "StudyTime", "PatientSex"), "")
    attributes |= {"PatientID": pseudonym, "PatientName": f"{pseudonym}^"}
    profile = [BASIC_CONFIDENTIALITY_PROFILE]
    if age_and_sex:
        profile.append(RETAIN_PATIENT_CHARACTERISTICS)
        attributes["PatientSex"] = _sex(found("PatientSex"))
        days, _ = values.age_in_days(found("PatientAge"), found("PatientBirthDate"), found("StudyDate"))
        if days is not None:
            attributes["PatientAge"] = age_string(days)
    uids = {
        name: pseudonymous_uid(site_key, values.uid(found(name)) or f"{name} of {sop_instance_uid}")
        for name in ("StudyInstanceUID", "SeriesInstanceUID")
    }
    uid = pseudonymous_uid(site_key, sop_instance_uid)
    return _source(elements, uid, uids, attributes, made=None, deidentification=tuple(profile))


def age_string(days: int) -> str:
    """An age in days as DICOM writes it (AS, PS3.5 6.2): the finest unit that has room."""
    if days < 1000:
        return f"{days:03d}D"
    months = int(days / (_DAYS_PER_YEAR / 12))
    return f"{months:03d}M" if months < 1000 else f"{min(int(days / _DAYS_PER_YEAR), 999):03d}Y"


def _finder(elements: Elements) -> Callable[[str], Value | None]:
    """Values by keyword."""
    return lambda keyword: elements.values.get(HEADER_TAGS.get(keyword) or _MORE_TAGS[keyword])


def _source(
    elements: Elements,
    sop_instance_uid: str,
    uids: Mapping[str, str],
    attributes: Mapping[str, str],
    *,
    made: datetime | None,
    deidentification: tuple[Code, ...] = (),
) -> Source:
    found = _finder(elements)
    directions = values.codes(elements.values.get(PATIENT_ORIENTATION))
    known = len(directions) == 2 and all(_DIRECTION.fullmatch(direction) for direction in directions)
    spacing = {}
    for keyword, tag in (("PixelSpacing", PIXEL_SPACING), ("ImagerPixelSpacing", IMAGER_SPACING)):
        numbers = values.decimals(elements.values.get(tag))
        if numbers is not None and len(numbers) == 2 and min(numbers) > 0.0:
            spacing[keyword] = (numbers[0], numbers[1])
    return Source(
        sop_class_uid=values.uid(found("SOPClassUID")),
        sop_instance_uid=sop_instance_uid,
        study_instance_uid=uids["StudyInstanceUID"],
        series_instance_uid=uids["SeriesInstanceUID"],
        modality=values.code(found("Modality"))[:16] or "OT",
        attributes=attributes,
        orientation=tuple(directions) if known else (),
        spacing=spacing,
        calibration=values.code(elements.values.get(CALIBRATION_TYPE)),
        made=made,
        deidentification=deidentification,
    )


def _date(day: date | None) -> str:
    return f"{day:%Y%m%d}" if day else ""


def _sex(value: Value | None) -> str:
    sex = values.code(value)
    return sex if sex in ("F", "M", "O") else ""


def _matching(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""
