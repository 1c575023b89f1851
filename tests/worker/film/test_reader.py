from __future__ import annotations

from datetime import date
from io import BytesIO
from pathlib import Path

import dicom_files
import pydicom
import pytest

from worker.errors import FilmError
from worker.film.reader import FilmHeader, open_source, read_header


def header(data: bytes) -> FilmHeader:
    return read_header(BytesIO(data), len(data))


def film(**attributes) -> pydicom.Dataset:
    return dicom_files.make_dataset(dicom_files.chest_pixels(20, 16), **attributes)


def code_of(data: bytes) -> str:
    with pytest.raises(FilmError) as caught:
        header(data)
    return caught.value.code


@pytest.mark.parametrize("syntax", dicom_files.NATIVE_SYNTAXES)
def test_every_field(syntax: str) -> None:
    dataset = film(SOPInstanceUID="1.2.3", StudyInstanceUID="1.2", SeriesInstanceUID="1.2.4", IssuerOfPatientID="ISS")
    found = header(dicom_files.to_bytes(dicom_files.encode(dataset, syntax)))
    assert found == FilmHeader(
        sop_instance_uid="1.2.3", sop_class_uid=dicom_files.DX_FOR_PRESENTATION, study_instance_uid="1.2",
        series_instance_uid="1.2.4", patient_id="P1", issuer_of_patient_id="ISS", accession_number="A1",
        study_date=date(2024, 3, 1), modality="DX", body_part="CHEST", view_position="PA", station_name="ROOM1",
        manufacturer="Maker", sex="F", age_days=1461, transfer_syntax_uid=syntax, rows=20, columns=16,
        samples_per_pixel=1, number_of_frames=1, photometric_interpretation="MONOCHROME2", bits_allocated=16,
        bits_stored=12, presentation_intent="FOR PRESENTATION",
    )  # fmt: skip


def test_a_bare_object_has_empty_fields() -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = dicom_files.EXPLICIT
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3"
    found = header(dicom_files.to_bytes(dataset))
    assert (found.patient_id, found.modality, found.study_date, found.age_days) == ("", "", None, None)
    assert (found.rows, found.columns, found.samples_per_pixel, found.number_of_frames) == (0, 0, 0, 1)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID"])
def test_the_two_mandatory_tags(keyword: str) -> None:
    data = dicom_files.to_bytes(film())
    tag = b"\x08\x00\x16\x00UI" if keyword == "SOPClassUID" else b"\x08\x00\x18\x00UI"
    start = data.index(tag)
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    assert code_of(data[:start] + data[start + 8 + length :]) == "MISSING_TAG"
    empty = data[:start] + tag + b"\0\0" + data[start + 8 + length :]
    assert code_of(empty) == "MISSING_TAG"
    letters = data[: start + 8] + b"x" * length + data[start + 8 + length :]
    assert code_of(letters) == "BAD_VALUE"


def test_swapped_uids_are_refused() -> None:
    data = dicom_files.to_bytes(film(SOPInstanceUID="1.2.3"))
    with_class_as_instance = data.replace(
        b"\x08\x00\x18\x00UI\x06\x001.2.3\0",
        b"\x08\x00\x18\x00UI\x1a\x00" + b"1.2.840.10008.5.1.4.1.1.1\0",
    )
    assert code_of(with_class_as_instance) == "BAD_VALUE"


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [("Rows", "US", b"\x10\x00\x10\x00"), ("Rows", "US", b"\x10"), ("Columns", "DS", b"sixteen "),
     ("NumberOfFrames", "IS", b"many"), ("NumberOfFrames", "IS", b"-1"), ("NumberOfFrames", "IS", b"1\\2 "),
     ("BitsStored", "US", b"\x0c\x00\x0c\x00\x0c\x00")],
)  # fmt: skip
def test_bad_numbers_of_the_picture(keyword: str, vr: str, value: bytes) -> None:
    assert code_of(dicom_files.to_bytes(film(), **{keyword: (vr, value)})) == "BAD_VALUE"


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "field", "expected"),
    [("PatientAge", "AS", b"old!", "age_days", 1461), ("StudyDate", "DA", b"20249999", "study_date", None),
     ("PatientBirthDate", "DA", b"????", "age_days", None), ("PatientSex", "CS", b"X ", "sex", ""),
     ("PatientSex", "CS", b"female", "sex", "F"), ("NumberOfFrames", "IS", b"", "number_of_frames", 1),
     ("NumberOfFrames", "IS", b"1\0", "number_of_frames", 1), ("NumberOfFrames", "IS", b"3 ", "number_of_frames", 3),
     ("StudyInstanceUID", "UI", b"not a uid ", "study_instance_uid", ""), ("Rows", "IS", b"20", "rows", 20),
     ("Modality", "CS", b"DX\\CR ", "modality", "DX"), ("PatientID", "LO", b"odd", "patient_id", "odd"),
     ("BodyPartExamined", "CS", b"B\xfccken", "body_part", "BÜCKEN")],
)  # fmt: skip
def test_bad_values_end_as_values(keyword: str, vr: str, value: bytes, field: str, expected: object) -> None:
    found = header(dicom_files.to_bytes(film(), **{keyword: (vr, value)}))
    assert getattr(found, field) == expected


def test_characters_of_the_declared_set() -> None:
    dataset = film(SpecificCharacterSet="ISO_IR 192", PatientID="№7", StationName="Röntgen 1")
    found = header(dicom_files.to_bytes(dataset))
    assert (found.patient_id, found.station_name) == ("№7", "Röntgen 1")


def test_the_pixels_are_never_read() -> None:
    data = dicom_files.to_bytes(dicom_files.make_dataset(dicom_files.chest_pixels(600, 500)))
    stream = BytesIO(data)
    read_header(stream, len(data))
    assert stream.tell() <= 16_384


def test_a_large_element_before_the_pixels_is_skipped() -> None:
    dataset = film()
    dataset.add_new(0x00091010, "OB", bytes(300_000))
    dataset.add_new(0x00090010, "LO", "ACME")
    stream = BytesIO(dicom_files.to_bytes(dataset))
    assert read_header(stream, len(stream.getvalue())).rows == 20


def test_agrees_with_pydicom_on_real_films(shared_films: list[Path]) -> None:
    for path in shared_films:
        with open_source(path) as (stream, size):
            found = read_header(stream, size)
        reference = pydicom.dcmread(path, stop_before_pixels=True)
        assert found.sop_instance_uid == reference.SOPInstanceUID
        assert found.sop_class_uid == reference.SOPClassUID
        assert found.rows == reference.Rows and found.columns == reference.Columns
        assert found.photometric_interpretation == reference.PhotometricInterpretation
        assert found.patient_id == str(reference.get("PatientID") or "").strip()
        assert found.transfer_syntax_uid == reference.file_meta.TransferSyntaxUID
        assert found.bits_stored == reference.BitsStored
