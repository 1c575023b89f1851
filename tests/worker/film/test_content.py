from __future__ import annotations

import dicom_files
import numpy as np
import pytest

A = dicom_files.chest_pixels()


def hash_of(read_film, dataset) -> str:
    return read_film(dataset).content_hash


@pytest.fixture
def reference(read_film) -> str:
    return hash_of(read_film, dicom_files.make_dataset(A))


@pytest.mark.parametrize("syntax", [*dicom_files.NATIVE_SYNTAXES, *dicom_files.LOSSLESS_SYNTAXES])
def test_lossless_re_encoding_changes_nothing(read_film, reference: str, syntax: str) -> None:
    dataset = dicom_files.make_dataset(A)
    assert hash_of(read_film, dicom_files.encode(dataset, syntax)) == reference


def test_who_and_when_are_no_content(read_film, reference: str) -> None:
    other = dicom_files.make_dataset(A, PatientID="P2", StudyDate="20200101", ViewPosition="AP", WindowWidth=99)
    assert hash_of(read_film, other) == reference


@pytest.mark.parametrize(
    "attributes",
    [{"PhotometricInterpretation": "MONOCHROME1"}, {"PatientOrientation": ["R", "F"]}, {"RescaleSlope": -1},
     {"RescaleIntercept": 5}, {"BitsStored": 13, "HighBit": 12}, {"PixelRepresentation": 1}],
)  # fmt: skip
def test_what_gives_pixels_their_meaning_is_content(read_film, reference: str, attributes: dict) -> None:
    assert hash_of(read_film, dicom_files.make_dataset(A, **attributes)) != reference


def test_one_pixel_is_content(read_film, reference: str) -> None:
    changed = A.copy()
    changed[50, 50] ^= 1
    assert hash_of(read_film, dicom_files.make_dataset(changed)) != reference


@pytest.mark.parametrize("syntax", dicom_files.LOSSY_SYNTAXES)
def test_a_lossy_film_is_its_encoded_frame(read_film, reference: str, syntax: str) -> None:
    bits = 8 if syntax == dicom_files.JPEG else 12
    pixels = dicom_files.chest_pixels(bits=bits)
    dataset = dicom_files.encode(dicom_files.make_dataset(pixels, BitsStored=bits, HighBit=bits - 1), syntax)
    found = hash_of(read_film, dataset)
    assert found != reference
    frame = dicom_files.frame_of(dataset)
    dicom_files.set_frame(dataset, frame.rstrip(b"\0"))
    dataset.StudyTime = "235959"
    assert hash_of(read_film, dataset) == found
    dicom_files.set_frame(dataset, dicom_files.encode_frame(np.roll(pixels, 1, 0), bits, syntax))
    assert hash_of(read_film, dataset) != found


def test_signed_pixels_with_and_without_sign_extension_are_the_same(read_film) -> None:
    pixels = (A.astype(int) - 2048).astype(np.int16)
    attributes = {"BitsStored": 12, "HighBit": 11}
    extended = dicom_files.make_dataset(pixels, **attributes)
    plain = dicom_files.make_dataset((pixels & 0x0FFF).astype(np.int16), **attributes)
    assert hash_of(read_film, extended) == hash_of(read_film, plain)
