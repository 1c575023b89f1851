from __future__ import annotations

import logging
import sys
from io import BytesIO
from typing import Any

import pydicom
import pytest
from output_films import Site
from sqlalchemy import delete, select

from schema import tables
from schema.outputs import OutputKind
from worker.errors import CarinaError, FilmError
from worker.results.outputs.objects import build_objects

STRUCTURED = [OutputKind.SEGMENTATION, OutputKind.REPORT]
PATIENT: dict[str, Any] = {
    "PatientName": "Zimtstern",
    "PatientID": "MRN-998877",
    "IssuerOfPatientID": "NORDKLINIK",
    "PatientBirthDate": "20190117",
    "AccessionNumber": "ACC-554433",
    "StudyID": "STUDY-4711",
    "StudyDate": "20240511",
    "StudyTime": "101112.345678",
    "StudyDescription": "Husten seit Montag",
    "ReferringPhysicianName": "Pfefferkuchen^Erna",
    "StationName": "RAUM-17",
    "InstitutionName": "Kinderklinik Nord",
    "StudyInstanceUID": "1.2.826.0.1.777.1",
    "SeriesInstanceUID": "1.2.826.0.1.777.2",
    "SOPInstanceUID": "1.2.826.0.1.777.3",
}
EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "StudyInstanceUID", "SeriesInstanceUID", "PatientOrientation", "Modality", "BodyPartExamined",
)  # fmt: skip


def content(dataset: Any) -> bytes:
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def made(site: Site, job: int, kinds: Any = tuple(OutputKind), **naming: bool) -> dict[OutputKind, bytes]:
    built = site.build(job, kinds, **naming)
    return {kind: content(datasets[0]) for kind, datasets in built.items()}


def read(data: bytes) -> Any:
    return pydicom.dcmread(BytesIO(data))


def test_objects_belong_to_the_films_study_in_series_of_their_own(site: Site) -> None:
    objects = [read(data) for data in made(site, site.film(**PATIENT)).values()]
    for dataset in objects:
        for keyword in ("PatientID", "IssuerOfPatientID", "PatientName", "AccessionNumber", "StudyID", "StudyDate"):
            assert dataset[keyword].value == PATIENT[keyword], keyword
        assert dataset.StudyInstanceUID == PATIENT["StudyInstanceUID"]
        assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert "InstitutionName" not in dataset
    series = {dataset.SeriesInstanceUID for dataset in objects}
    assert len(series) == 4
    assert PATIENT["SeriesInstanceUID"] not in series


@pytest.mark.parametrize("identified", [True, False])
def test_building_twice_gives_the_same_bytes(site: Site, identified: bool) -> None:
    job = site.film()
    assert made(site, job, identified=identified) == made(site, job, identified=identified)


def test_a_reader_of_pictures_is_opened_where_none_is_given(site: Site) -> None:
    job = site.film()
    alone = build_objects(site.database, site.settings, job, [OutputKind.OVERLAY])
    assert content(alone[OutputKind.OVERLAY][0]) == made(site, job)[OutputKind.OVERLAY]


def test_another_bundle_or_revision_is_another_object(site: Site) -> None:
    job = site.film()
    first = [read(data).SOPInstanceUID for data in made(site, job, STRUCTURED).values()]
    site.films.update(tables.job, job, revision=2)
    second = [read(data).SOPInstanceUID for data in made(site, job, STRUCTURED).values()]
    site.films.update(tables.job, job, bundle_id=site.films.add_bundle("2"))
    third = [read(data).SOPInstanceUID for data in made(site, job, STRUCTURED).values()]
    assert len({*first, *second, *third}) == 6


def test_a_film_that_says_nothing_of_itself_is_filled_with_nothing(site: Site) -> None:
    job = site.film(**dict.fromkeys(EMPTY))
    objects = [read(data) for data in made(site, job).values()]
    assert len(objects) == 4
    for dataset in objects:
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
            assert keyword in dataset
            assert not dataset[keyword].value
    assert len({dataset.StudyInstanceUID for dataset in objects}) == 1


@pytest.mark.parametrize(
    ("keyword", "vr", "raw"),
    [
        ("StudyDate", "DA", b"20241399"),
        ("StudyTime", "TM", b"99:99   "),
        ("PatientSex", "CS", b"unknown "),
        ("PatientBirthDate", "DA", b"1.1.2020"),
        ("PatientOrientation", "CS", b"X\\Y "),
        ("PixelSpacing", "DS", b"0\\0 "),
    ],
)
def test_a_value_that_is_none_is_left_out(site: Site, keyword: str, vr: str, raw: bytes) -> None:
    from dicom_files import chest_pixels, make_dataset, save

    path = save(make_dataset(chest_pixels()), site.folder / "odd.dcm", **{keyword: (vr, raw)})
    for data in made(site, site.add(path), STRUCTURED).values():
        assert not read(data).get(keyword)


def test_names_in_other_letters_survive(site: Site) -> None:
    job = site.film(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", PatientID="Ö1")
    for data in made(site, job, STRUCTURED).values():
        assert str(read(data).PatientName) == "Müller^Jörg"
        assert read(data).PatientID == "Ö1"


def test_without_identity_nothing_of_the_patient_is_left(site: Site) -> None:
    job = site.film(**PATIENT)
    for kind, data in made(site, job, identified=False).items():
        for keyword, value in PATIENT.items():
            assert value.encode() not in data, (kind, keyword)
        dataset = read(data)
        assert dataset.PatientIdentityRemoved == "YES"
        assert [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence] == ["113100"]
        assert dataset.PatientSex == ""
        assert "PatientAge" not in dataset
        # No date of ours tells the night of the film either.
        dates = {str(e.value)[:8] for e in dataset.iterall() if e.VR in ("DA", "DT") and e.value}
        assert dates <= {"19000101"}


def test_age_and_sex_are_kept_on_request(site: Site) -> None:
    job = site.film(**PATIENT, PatientSex="F")
    dataset = read(made(site, job, STRUCTURED, identified=False, age_and_sex=True)[OutputKind.REPORT])
    assert (dataset.PatientSex, dataset.PatientAge) == ("F", "063M")
    assert [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence] == ["113100", "113108"]


def test_pseudonyms_join_films_of_one_study_and_differ_from_the_originals(site: Site) -> None:
    first = site.film("a.dcm", **PATIENT)
    second = site.film("b.dcm", **{**PATIENT, "SOPInstanceUID": "1.2.826.0.1.777.4"})
    named = [read(made(site, job, STRUCTURED, identified=False)[OutputKind.REPORT]) for job in (first, second)]
    assert named[0].StudyInstanceUID == named[1].StudyInstanceUID
    assert named[0].PatientID == named[1].PatientID
    assert named[0].SOPInstanceUID != named[1].SOPInstanceUID
    identified = read(made(site, first, STRUCTURED)[OutputKind.REPORT])
    assert identified.SOPInstanceUID != named[0].SOPInstanceUID


def test_nobody_is_named_in_logs_or_warnings(
    site: Site, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    made(site, site.film(**PATIENT))
    said = caplog.text + " ".join(str(warning.message) for warning in recwarn)
    for keyword, value in PATIENT.items():
        assert value not in said, keyword


def test_a_film_that_is_gone_or_changed_is_said(site: Site) -> None:
    job = site.film()
    path = site.folder / "film.dcm"
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(FilmError, match="changed") as changed:
        made(site, job)
    assert changed.value.code == "SOURCE_CHANGED"
    path.unlink()
    with pytest.raises(FilmError) as gone:
        made(site, job)
    assert gone.value.code == "SOURCE_MISSING"
    with site.database.write() as connection:
        connection.execute(delete(tables.identity))
    with pytest.raises(FilmError) as dropped:
        made(site, job)
    assert dropped.value.code == "SOURCE_MISSING"


def test_a_picture_that_cannot_be_decoded_is_said(site: Site) -> None:
    from dicom_files import chest_pixels, make_dataset, to_bytes

    path = site.folder / "short.dcm"
    path.write_bytes(to_bytes(make_dataset(chest_pixels()))[:-5000])
    job = site.add(path)
    with pytest.raises(FilmError) as cut:
        made(site, job, [OutputKind.OVERLAY])
    assert cut.value.code == "TRUNCATED_PIXELS"
    assert made(site, job, STRUCTURED)


def test_a_job_without_a_published_result_is_refused(site: Site) -> None:
    job = site.film()
    site.films.update(tables.job, job, published=False)
    with pytest.raises(CarinaError, match="no published result"):
        made(site, job)


def test_a_damaged_mask_is_said(site: Site) -> None:
    job = site.film()
    site.update(tables.segmentation, job, mask=b"junk")
    with pytest.raises(CarinaError, match=f"Job {job}"):
        made(site, job)


def test_a_job_without_arrival_reads_the_current_file(site: Site) -> None:
    job = site.film()
    site.films.update(tables.job, job, arrival_id=None)
    assert made(site, job, STRUCTURED)
    with site.database.read() as connection:
        assert connection.scalar(select(tables.job.c.arrival_id).where(tables.job.c.id == job)) is None


def test_without_the_extra_it_says_what_to_install(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(CarinaError, match=r"pip install 'carina-cxr\[pacs\]'"):
        made(site, 1)
