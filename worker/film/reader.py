"""Reads a film's header: what registration needs of five million files, without their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import BinaryIO

from worker.errors import FilmError
from worker.film import values
from worker.film.elements import Elements, read_elements
from worker.film.source import FilmSource, open_source

__all__ = ["HEADER_TAGS", "FilmHeader", "FilmSource", "header_of", "open_source", "read_header"]

#: Attribute → tag of everything :class:`FilmHeader` is made of (PS3.6).
HEADER_TAGS: dict[str, int] = {
    "SpecificCharacterSet": 0x00080005,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "StudyDate": 0x00080020,
    "AccessionNumber": 0x00080050,
    "Modality": 0x00080060,
    "PresentationIntentType": 0x00080068,
    "Manufacturer": 0x00080070,
    "StationName": 0x00081010,
    "StudyDescription": 0x00081030,
    "SeriesDescription": 0x0008103E,
    "PatientID": 0x00100020,
    "IssuerOfPatientID": 0x00100021,
    "PatientBirthDate": 0x00100030,
    "PatientSex": 0x00100040,
    "PatientAge": 0x00101010,
    "BodyPartExamined": 0x00180015,
    "ViewPosition": 0x00185101,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
}
_WANTED = frozenset(HEADER_TAGS.values())
_SEXES = frozenset({"F", "M", "O"})
#: Root of the UIDs DICOM itself defines: never that of an instance.
_STANDARD_ROOT = "1.2.840.10008."
_MAX_DESCRIPTION = 64


@dataclass(frozen=True, slots=True)
class FilmHeader:
    """What a header says, unjudged.

    Strings that are absent or unusable are "", numbers of the picture 0
    (``number_of_frames`` 1). ``age_days`` is the age at the study in days (0-47,450), None
    when unknown or contradictory. ``sex`` is "F", "M", "O" or "". ``presentation_intent``
    is "FOR PRESENTATION", "FOR PROCESSING" or "". The descriptions may name the patient and are
    stored nowhere. Where the file names no transfer syntax,
    ``transfer_syntax_uid`` is the native one its elements are written in.
    """

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    issuer_of_patient_id: str
    accession_number: str
    study_date: date | None
    modality: str
    body_part: str
    view_position: str
    station_name: str
    manufacturer: str
    sex: str
    age_days: int | None
    transfer_syntax_uid: str
    rows: int
    columns: int
    samples_per_pixel: int
    number_of_frames: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    presentation_intent: str
    study_description: str = ""
    series_description: str = ""


def read_header(stream: BinaryIO, size: int) -> FilmHeader:
    """Read a file's header, never its pixels.

    Parameters
    ----------
    stream
        Seekable, positioned at its start: see :func:`worker.film.source.open_source`.
    size
        Bytes of the stream.

    Raises
    ------
    FilmError
        ``EMPTY_FILE``, ``NOT_DICOM`` (also a DICOMDIR), ``TRUNCATED_HEADER``, ``BAD_HEADER``,
        ``FILE_TOO_LARGE`` (a deflated header without end), ``MISSING_TAG`` (SOP Class UID, SOP
        Instance UID), ``BAD_VALUE`` (these two, or a number of the picture).
    """
    return header_of(read_elements(stream, size, _WANTED))


def header_of(elements: Elements) -> FilmHeader:
    """The header of elements already read; raises as :func:`read_header`."""
    found, encoding = elements.values.get, elements.encoding
    character_set = found(0x00080005)
    sop_class_uid = _mandatory_uid(elements, "SOPClassUID")
    sop_instance_uid = _mandatory_uid(elements, "SOPInstanceUID")
    if sop_instance_uid.startswith(_STANDARD_ROOT):
        raise FilmError("BAD_VALUE", "SOPInstanceUID is a UID of the DICOM standard itself")
    age_days, _ = values.age_in_days(found(0x00101010), found(0x00100030), found(0x00080020))
    sex = values.code(found(0x00100040))[:1]
    frames = values.written_integer(found(0x00280008), "NumberOfFrames") or 1
    if frames < 0:
        raise FilmError("BAD_VALUE", "NumberOfFrames is negative")
    return FilmHeader(
        sop_instance_uid=sop_instance_uid,
        sop_class_uid=sop_class_uid,
        study_instance_uid=values.uid(found(0x0020000D)),
        series_instance_uid=values.uid(found(0x0020000E)),
        patient_id=values.text(found(0x00100020), character_set),
        issuer_of_patient_id=values.text(found(0x00100021), character_set),
        accession_number=values.text(found(0x00080050), character_set)[:_MAX_DESCRIPTION],
        study_date=values.calendar_date(found(0x00080020)),
        modality=values.code(found(0x00080060))[:_MAX_DESCRIPTION],
        body_part=values.code(found(0x00180015))[:_MAX_DESCRIPTION],
        view_position=values.code(found(0x00185101))[:_MAX_DESCRIPTION],
        station_name=values.text(found(0x00081010), character_set)[:_MAX_DESCRIPTION],
        manufacturer=values.text(found(0x00080070), character_set)[:_MAX_DESCRIPTION],
        sex=sex if sex in _SEXES else "",
        age_days=age_days,
        transfer_syntax_uid=elements.transfer_syntax_uid[:_MAX_DESCRIPTION],
        rows=values.integer(found(0x00280010), encoding, "Rows") or 0,
        columns=values.integer(found(0x00280011), encoding, "Columns") or 0,
        samples_per_pixel=values.integer(found(0x00280002), encoding, "SamplesPerPixel") or 0,
        number_of_frames=frames,
        photometric_interpretation=values.code(found(0x00280004))[:_MAX_DESCRIPTION],
        bits_allocated=values.integer(found(0x00280100), encoding, "BitsAllocated") or 0,
        bits_stored=values.integer(found(0x00280101), encoding, "BitsStored") or 0,
        presentation_intent=values.code(found(0x00080068))[:_MAX_DESCRIPTION],
        study_description=values.text(found(0x00081030), character_set)[:_MAX_DESCRIPTION],
        series_description=values.text(found(0x0008103E), character_set)[:_MAX_DESCRIPTION],
    )


def _mandatory_uid(elements: Elements, name: str) -> str:
    value = elements.values.get(HEADER_TAGS[name])
    if value is None or not values.text(value):
        raise FilmError("MISSING_TAG", name)
    found = values.uid(value)
    if not found:
        raise FilmError("BAD_VALUE", f"{name} is not a UID")
    return found
