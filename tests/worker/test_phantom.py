"""Phantoms: exact truth, the same picture for the same seed, valid DICOM in every transfer syntax."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from schema.regions import HOLSTE_REGIONS, REGION_BY_NAME, Region
from worker.phantom import dicom_bytes, make_phantom, phantom_dataset, write_demo_set, write_fast_set
from worker.phantom.demo import DEMO_FILMS
from worker.phantom.negatives import NEGATIVE_KINDS

LUNGS = {side: REGION_BY_NAME[side].value for side in (Region.LEFT_LUNG, Region.RIGHT_LUNG)}
CARINA = REGION_BY_NAME[Region.CARINA].value
SMALL = {"rows": 128, "columns": 112}


def centre(labels: np.ndarray, value: int) -> tuple[float, float]:
    rows, columns = np.nonzero(labels == value)
    return float(rows.mean()), float(columns.mean())


def read_back(path_or_bytes: bytes) -> tuple[pydicom.Dataset, np.ndarray]:
    dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(path_or_bytes))
    syntax = dataset.file_meta.TransferSyntaxUID
    decoders = {
        JPEGLosslessSV1: imagecodecs.jpeg8_decode,
        JPEGBaseline8Bit: imagecodecs.jpeg8_decode,
        JPEGLSLossless: imagecodecs.jpegls_decode,
        JPEG2000Lossless: imagecodecs.jpeg2k_decode,
        HTJ2KLossless: imagecodecs.htj2k_decode,
    }
    if syntax in decoders:
        return dataset, decoders[syntax](next(generate_frames(dataset.PixelData, number_of_frames=1)))
    return dataset, dataset.pixel_array


class TestTruth:
    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**40), randomise=st.floats(0, 0.5), years=st.floats(0, 40))
    def test_every_region_is_there_and_sides_are_the_patients(self, seed: int, randomise: float, years: float) -> None:
        phantom = make_phantom(seed, rows=256, columns=256, age_days=int(years * 365), randomise=randomise)
        present = set(np.unique(phantom.labels))
        assert {LUNGS[Region.LEFT_LUNG], LUNGS[Region.RIGHT_LUNG], CARINA} <= present
        left, right = (centre(phantom.labels, LUNGS[side]) for side in (Region.LEFT_LUNG, Region.RIGHT_LUNG))
        carina = centre(phantom.labels, CARINA)
        assert right[1] < carina[1] < left[1]
        assert 5 <= np.count_nonzero(phantom.labels == CARINA) <= 75

    @pytest.mark.parametrize("seed", range(6))
    def test_a_textbook_film_has_all_eight_regions(self, seed: int) -> None:
        phantom = make_phantom(seed, randomise=0.0)
        assert set(np.unique(phantom.labels)) == {region.value for region in HOLSTE_REGIONS}

    @pytest.mark.parametrize("size", [(512, 448), (1000, 900), (256, 256)])
    def test_carina_is_5_to_75_pixels_on_the_network_grid(self, size: tuple[int, int]) -> None:
        for seed in range(4):
            phantom = make_phantom(seed, rows=size[0], columns=size[1])
            grid = cv2.resize(phantom.labels, (256, 256), interpolation=cv2.INTER_NEAREST)
            assert 5 <= np.count_nonzero(grid == CARINA) <= 75

    def test_lungs_are_darker_than_what_surrounds_them(self) -> None:
        darker = []
        for seed in range(10):
            phantom = make_phantom(seed, rows=256, columns=256, pneumonia=False, randomise=0.2)
            lungs = np.isin(phantom.labels, list(LUNGS.values()))
            darker.append(phantom.image[lungs].mean() < phantom.image[(phantom.labels > 2)].mean())
        assert all(darker)

    def test_lungs_and_spine_are_one_piece_each(self) -> None:
        for seed in range(8):
            labels = make_phantom(seed, rows=256, columns=256, randomise=0.3).labels
            for region in (Region.LEFT_LUNG, Region.RIGHT_LUNG):
                count, _ = cv2.connectedComponents((labels == REGION_BY_NAME[region].value).astype(np.uint8))
                assert count == 2
            spine = np.isin(labels, [REGION_BY_NAME[Region.SPINE].value, CARINA]).astype(np.uint8)
            assert cv2.connectedComponents(spine)[0] == 2

    def test_pneumonia_makes_lungs_denser_and_is_named(self) -> None:
        ill = make_phantom(11, **SMALL, pneumonia=True, randomise=0.2)
        well = make_phantom(11, **SMALL, pneumonia=False, randomise=0.2)
        assert ill.findings == {"pneumonia"}
        assert well.findings == {"no_finding"}
        assert not np.array_equal(ill.image, well.image)

    def test_consolidation_lies_in_the_lungs_and_only_with_pneumonia(self) -> None:
        for seed in range(6):
            ill = make_phantom(seed, **SMALL, pneumonia=True)
            assert ill.opacity.max() > 0.05
            assert ill.opacity.max() <= 1
            assert not ill.opacity[~np.isin(ill.labels, list(LUNGS.values()))].any()
            assert not make_phantom(seed, **SMALL, pneumonia=False).opacity.any()

    @pytest.mark.parametrize("kind", NEGATIVE_KINDS)
    def test_what_is_no_chest_has_no_region_and_no_finding(self, kind: str) -> None:
        phantom = make_phantom(5, **SMALL, negative=True, kind=kind)
        assert not phantom.labels.any()
        assert phantom.findings == frozenset()
        assert phantom.image.std() > 0


class TestDrawing:
    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**40), negative=st.booleans(), randomise=st.floats(0, 1))
    def test_same_seed_same_phantom(self, seed: int, negative: bool, randomise: float) -> None:
        first, second = (make_phantom(seed, **SMALL, negative=negative, randomise=randomise) for _ in range(2))
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.labels, second.labels)
        assert (first.age_days, first.sex, first.findings) == (second.age_days, second.sex, second.findings)
        assert first.image.dtype == np.float32
        assert first.image.min() >= 0 <= 1 >= first.image.max()
        assert first.image.shape == first.labels.shape == (128, 112)

    def test_other_seed_other_phantom(self) -> None:
        pictures = {make_phantom(seed, **SMALL).image.tobytes() for seed in range(6)}
        assert len(pictures) == 6

    @pytest.mark.parametrize("wrong", [{"rows": 8}, {"randomise": 1.5}, {"age_days": -1}])
    def test_impossible_requests_are_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=r"must|needs"):
            make_phantom(1, **wrong)


class TestDicom:
    @pytest.mark.parametrize(
        "syntax",
        [
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
            RLELossless,
            JPEGLosslessSV1,
            JPEGLSLossless,
            JPEG2000Lossless,
            HTJ2KLossless,
        ],
    )
    @pytest.mark.parametrize("bits", [8, 12, 16])
    def test_lossless_transfer_syntaxes_return_every_pixel(self, syntax: str, bits: int) -> None:
        phantom = make_phantom(3, rows=121, columns=97)
        dataset, pixels = read_back(dicom_bytes(phantom_dataset(phantom, transfer_syntax=syntax, bits_stored=bits)))
        assert dataset.file_meta.TransferSyntaxUID == syntax
        assert np.array_equal(pixels, np.rint(phantom.image.astype(float) * (2**bits - 2)) + 1)

    def test_jpeg_baseline_is_close_and_says_it_is_lossy(self) -> None:
        phantom = make_phantom(3, rows=121, columns=97)
        file = dicom_bytes(phantom_dataset(phantom, transfer_syntax=JPEGBaseline8Bit, bits_stored=8))
        dataset, pixels = read_back(file)
        assert dataset.LossyImageCompression == "01"
        assert np.abs(pixels - phantom.image * 255.0).mean() < 4

    def test_monochrome1_is_the_same_picture_inverted(self) -> None:
        phantom = make_phantom(4, **SMALL)
        _, plain = read_back(dicom_bytes(phantom_dataset(phantom)))
        dataset, inverted = read_back(dicom_bytes(phantom_dataset(phantom, photometric="MONOCHROME1")))
        assert np.all(plain.astype(int) + inverted == 4096)
        assert dataset.PresentationLUTShape == "INVERSE"

    def test_hazards_are_stored_as_the_header_says(self) -> None:
        phantom = make_phantom(4, **SMALL)
        _, plain = read_back(dicom_bytes(phantom_dataset(phantom)))
        mirrored, flipped = read_back(dicom_bytes(phantom_dataset(phantom, mirrored=True)))
        assert list(mirrored.PatientOrientation) == ["R", "F"]
        assert np.array_equal(flipped[:, ::-1], plain)
        padded, framed = read_back(dicom_bytes(phantom_dataset(phantom, padding=9)))
        assert np.all(framed[:9] == padded.PixelPaddingValue)
        assert not np.any(framed[9:-9, 9:-9] == padded.PixelPaddingValue)
        shifted = phantom_dataset(phantom, high_bit=15)
        assert np.array_equal(np.frombuffer(shifted.PixelData, "<u2").reshape(plain.shape) >> 4, plain)

    def test_header_describes_an_invented_patient(self) -> None:
        phantom = make_phantom(99, **SMALL, age_days=45)
        dataset, _ = read_back(dicom_bytes(phantom_dataset(phantom)))
        assert dataset.PatientID == "PHANTOM-99"
        assert dataset.PatientAge == "045D"
        assert dataset.Modality == "DX"
        assert dataset.PresentationIntentType == "FOR PRESENTATION"
        assert dataset.ViewPosition == "AP"
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert pydicom.uid.UID(dataset.SOPInstanceUID).is_valid
        assert dicom_bytes(phantom_dataset(phantom)) == dicom_bytes(phantom_dataset(phantom))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"photometric": "RGB"},
            {"bits_stored": 17},
            {"high_bit": 5},
            {"transfer_syntax": JPEGBaseline8Bit},
            {"transfer_syntax": RLELossless, "high_bit": 15},
        ],
    )
    def test_impossible_objects_are_refused(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=r"photometric|bits|high_bit"):
            phantom_dataset(make_phantom(1, **SMALL), **wrong)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_demo_set(tmp_path_factory.mktemp("demo"))


class TestDemoSet:
    def test_holds_what_a_night_brings(self, demo: list[Path]) -> None:
        assert len(demo) == 24
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in demo]
        assert len({header.file_meta.TransferSyntaxUID for header in headers}) == 10
        assert {header.PhotometricInterpretation for header in headers} == {"MONOCHROME1", "MONOCHROME2"}
        assert {header.BodyPartExamined for header in headers} == {"CHEST", "LEG"}
        assert {"AP", "PA", "LL"} == {header.ViewPosition for header in headers}
        assert sum(film.pneumonia for film in DEMO_FILMS) >= 5

    def test_duplicate_conflict_alias_and_truncation(self, demo: list[Path]) -> None:
        by_number = {path.name[:2]: path for path in demo}
        uid = {
            number: pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for number, path in by_number.items()
        }
        digest = {number: hashlib.sha256(path.read_bytes()).hexdigest() for number, path in by_number.items()}
        assert digest["19"] == digest["01"]
        assert uid["20"] == uid["02"]
        assert digest["20"] != digest["02"]
        assert uid["21"] != uid["03"]
        alias, original = (pydicom.dcmread(by_number[number]).PixelData for number in ("21", "03"))
        assert alias == original
        ordinary = [uid[f"{number:02d}"] for number in range(1, 19)]
        assert len(set(ordinary)) == 18
        with pytest.raises(ValueError, match="less than expected"):
            _ = pydicom.dcmread(by_number["24"]).pixel_array


class TestFastSet:
    def test_films_are_valid_and_all_different(self, tmp_path: Path) -> None:
        paths = write_fast_set(tmp_path, 40, seed=7)
        datasets = [pydicom.dcmread(path) for path in paths]
        for attribute in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID"):
            assert len({dataset[attribute].value for dataset in datasets}) == 40
        assert len({dataset.PixelData for dataset in datasets}) == 40
        for dataset in datasets:
            assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
            assert pydicom.uid.UID(dataset.SOPInstanceUID).is_valid
            assert dataset.pixel_array.shape == (96, 96)
            assert dataset.pixel_array.max() <= 4095

    def test_same_seed_same_files(self, tmp_path: Path) -> None:
        first, second = (write_fast_set(tmp_path / name, 10, seed=3) for name in "ab")
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
        other = write_fast_set(tmp_path / "c", 10, seed=4)
        assert not {path.read_bytes() for path in first} & {path.read_bytes() for path in other}
