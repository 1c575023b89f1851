"""The pixel hazards of real films, each with the outcome a reader must give."""

from __future__ import annotations

from pathlib import Path

import dicom_files
import numpy as np
import pytest
from pydicom.dataset import Dataset

from worker.errors import FilmError
from worker.film.prepare import prepare
from worker.film.prepared import PreparedFilm
from worker.film.source import FilmSource

A = dicom_files.chest_pixels()


def film(read_film, pixels: np.ndarray = A, raw: dict | None = None, **attributes) -> PreparedFilm:
    return read_film(dicom_files.to_bytes(dicom_files.make_dataset(pixels, **attributes), **(raw or {})))


def picture(prepared: PreparedFilm) -> np.ndarray:
    return prepared.tensors["film"][0]


def rules(prepared: PreparedFilm) -> set[str]:
    return {observation.rule for observation in prepared.observations}


def code_of(read_film, *arguments, **attributes) -> str:
    with pytest.raises(FilmError) as caught:
        film(read_film, *arguments, **attributes)
    return caught.value.code


@pytest.fixture
def reference(read_film) -> np.ndarray:
    prepared = film(read_film)
    assert rules(prepared) == set() and prepared.facts.voi_policy == "v1:window"
    return picture(prepared)


def test_a_plain_film_is_white_where_dense(reference: np.ndarray) -> None:
    assert reference.dtype == np.float32 and reference.shape == A.shape
    assert reference.min() >= 0.0 and reference.max() <= 1.0
    assert np.allclose(reference, A / 4095.0, atol=1e-3)


def test_monochrome1_is_inverted_over_the_output_range(read_film, reference: np.ndarray) -> None:
    inverted = film(read_film, 4095 - A, PhotometricInterpretation="MONOCHROME1")
    assert np.allclose(picture(inverted), reference, atol=1e-6)
    assert rules(inverted) == set()


@pytest.mark.parametrize(
    ("photometric", "shape", "conflict"),
    [("MONOCHROME2", "INVERSE", True), ("MONOCHROME1", "IDENTITY", True),
     ("MONOCHROME2", "IDENTITY", False), ("MONOCHROME1", "INVERSE", False)],
)  # fmt: skip
def test_presentation_lut_shape_never_inverts(read_film, reference, photometric, shape, conflict) -> None:
    pixels = A if photometric == "MONOCHROME2" else 4095 - A
    prepared = film(read_film, pixels, PhotometricInterpretation=photometric, PresentationLUTShape=shape)
    assert np.allclose(picture(prepared), reference, atol=1e-6)
    assert ("polarity_conflict" in rules(prepared)) == conflict


def test_a_negative_slope_is_applied_and_said(read_film, reference: np.ndarray) -> None:
    prepared = film(read_film, 4095 - A, RescaleSlope=-1, RescaleIntercept=4095)
    assert np.allclose(picture(prepared), reference, atol=1e-3)
    assert rules(prepared) == {"bad_rescale"}


@pytest.mark.parametrize("slope", [b"", b"0 ", b"0.0 ", b"abc ", b"nan ", b"1,0 "])
def test_an_unusable_slope_counts_as_one(read_film, reference: np.ndarray, slope: bytes) -> None:
    prepared = film(read_film, raw={"RescaleSlope": ("DS", slope)}, RescaleIntercept=0)
    assert np.allclose(picture(prepared), reference, atol=1e-6)
    assert rules(prepared) == {"bad_rescale"}


def test_the_window_is_on_rescaled_values(read_film, reference: np.ndarray) -> None:
    prepared = film(read_film, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=3096, WindowWidth=8192)
    assert np.allclose(picture(prepared), reference, atol=1e-3)
    assert rules(prepared) == set()


def lut(first: int, entries: np.ndarray, bits: int = 16, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, vr, [entries.size % 65536, first, bits])
    item.add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
    return item


def test_a_modality_lut_comes_before_the_window(read_film, reference: np.ndarray) -> None:
    prepared = film(read_film, 4095 - A, ModalityLUTSequence=[lut(0, np.arange(4095, -1, -1))])
    assert np.allclose(picture(prepared), reference, atol=1e-3)
    assert rules(prepared) == set()


def test_a_broken_modality_lut_is_said(read_film, reference: np.ndarray) -> None:
    broken = lut(0, np.arange(4096))
    broken[0x00283006].value = b"\0\0"
    prepared = film(read_film, ModalityLUTSequence=[broken])
    assert rules(prepared) == {"bad_rescale"}
    assert np.allclose(picture(prepared), reference, atol=1e-6)


@pytest.mark.parametrize("bits", [12, 16])
def test_an_identity_voi_lut_is_preferred_to_the_window(read_film, reference: np.ndarray, bits: int) -> None:
    prepared = film(read_film, VOILUTSequence=[lut(0, np.arange(4096), bits)], WindowCenter=100, WindowWidth=50)
    assert np.allclose(picture(prepared), reference, atol=1e-3)
    assert prepared.facts.voi_policy == "v1:lut"


def test_a_voi_lut_of_65536_entries_and_of_bytes(read_film, reference: np.ndarray) -> None:
    prepared = film(read_film, VOILUTSequence=[lut(0, np.minimum(np.arange(65536), 4095))])
    assert np.allclose(picture(prepared), reference, atol=1e-3)
    item = Dataset()
    item.add_new(0x00283002, "US", [4096, 0, 8])
    item.add_new(0x00283006, "OW", (np.arange(4096) // 16).astype(np.uint8).tobytes())
    assert np.allclose(picture(film(read_film, VOILUTSequence=[item])), reference, atol=5e-3)


def test_a_voi_lut_for_signed_pixels(read_film, reference: np.ndarray) -> None:
    pixels = (A.astype(int) - 2048).astype(np.int16)
    prepared = film(read_film, pixels, VOILUTSequence=[lut(-2048, np.arange(4096), vr="SS")])
    assert prepared.facts.voi_policy == "v1:lut"
    assert np.allclose(picture(prepared), reference, atol=1e-3)


@pytest.mark.parametrize(
    ("attributes", "policy"),
    [({"WindowCenter": [2048, 100], "WindowWidth": [4096, 20]}, "v1:window"),
     ({"WindowCenter": [100, 2048], "WindowWidth": [0, 4096]}, "v1:window"),
     ({"VOILUTFunction": "LINEAR_EXACT"}, "v1:window_exact"),
     ({"VOILUTFunction": "SIGMOID"}, "v1:window_sigmoid")],
)  # fmt: skip
def test_the_first_usable_window(read_film, reference: np.ndarray, attributes: dict, policy: str) -> None:
    prepared = film(read_film, **attributes)
    assert prepared.facts.voi_policy == policy and rules(prepared) == set()
    assert np.corrcoef(picture(prepared).ravel(), reference.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    "attributes",
    [{"WindowWidth": 0}, {"WindowWidth": -5}, {"VOILUTFunction": "MAGIC"}, {"WindowCenter": None, "WindowWidth": None},
     {"WindowWidth": None}],
)  # fmt: skip
def test_without_a_usable_window_percentiles_are_used_and_said(read_film, reference, attributes: dict) -> None:
    prepared = film(read_film, **attributes)
    assert prepared.facts.voi_policy == "v1:percentiles" and rules(prepared) == {"voi_fallback"}
    assert np.corrcoef(picture(prepared).ravel(), reference.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("centre", [60000, -60000])
def test_a_window_that_clips_everything_is_replaced_and_said(read_film, reference, centre: int) -> None:
    prepared = film(read_film, WindowCenter=centre)
    assert rules(prepared) == {"voi_clipped"} and prepared.facts.voi_policy == "v1:percentiles"
    assert prepared.observations[0].value == 1.0
    assert np.corrcoef(picture(prepared).ravel(), reference.ravel())[0, 1] > 0.99


def test_a_clipping_voi_lut_is_replaced_too(read_film) -> None:
    prepared = film(read_film, VOILUTSequence=[lut(60000, np.arange(256))])
    assert rules(prepared) == {"voi_clipped"}


def test_eight_bits_without_a_window_are_ready_for_display(read_film) -> None:
    pixels = dicom_files.chest_pixels(bits=8)
    prepared = film(read_film, pixels, WindowCenter=None, WindowWidth=None)
    assert prepared.facts.voi_policy == "v1:identity" and rules(prepared) == set()
    assert np.allclose(picture(prepared), pixels / 255.0, atol=1e-6)


def test_bits_stored_too_small_do_not_wrap(read_film, reference: np.ndarray) -> None:
    prepared = film(read_film, A * 4, BitsStored=12, HighBit=11, WindowCenter=8192, WindowWidth=16384)
    assert rules(prepared) == {"bits_stored_too_small"}
    assert prepared.observations[0].value == 14.0
    assert np.allclose(picture(prepared), reference, atol=1e-3)


def test_pixels_in_the_high_bits_are_shifted(read_film, reference: np.ndarray) -> None:
    prepared = film(read_film, (A << 4).astype(np.uint16), BitsStored=12, HighBit=15, WindowCenter=2048,
                    WindowWidth=4096)  # fmt: skip
    assert np.allclose(picture(prepared), reference, atol=1e-6) and rules(prepared) == set()


@pytest.mark.parametrize("extended", [True, False])
def test_signed_pixels_with_and_without_sign_extension(read_film, reference: np.ndarray, extended: bool) -> None:
    pixels = (A.astype(int) - 2048).astype(np.int16)
    stored = pixels if extended else (pixels & 0x0FFF)
    prepared = film(read_film, stored.astype(np.int16), BitsStored=12, HighBit=11, WindowCenter=0, WindowWidth=4096)
    assert rules(prepared) == set()
    assert np.allclose(picture(prepared), reference, atol=1e-3)


def test_overlays_in_the_high_bits_are_no_pixels(read_film, reference: np.ndarray) -> None:
    drawn = A.copy()
    drawn[30:40, 30:90] |= 0x8000
    dataset = dicom_files.make_dataset(drawn, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096)
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 15)
    prepared = read_film(dataset)
    assert rules(prepared) == set()
    assert np.allclose(picture(prepared), reference, atol=1e-6)


def test_padding_is_left_out_of_the_statistics(read_film) -> None:
    padded = A.copy()
    padded[:, 80:] = 65535
    prepared = film(read_film, padded, PixelPaddingValue=65535, BitsStored=16, HighBit=15, WindowCenter=None,
                    WindowWidth=None)  # fmt: skip
    assert (picture(prepared)[:, 80:] == 0).all()
    assert picture(prepared)[:, :80].max() == 1.0 and picture(prepared)[:, :80].mean() > 0.3


def test_a_padding_range_of_signed_pixels(read_film) -> None:
    pixels = (A.astype(int) - 2048).astype(np.int16)
    pixels[:, 90:] = -2000
    pixels[:, 95:] = -1990
    dataset = dicom_files.make_dataset(pixels, BitsStored=12, HighBit=11, WindowCenter=0, WindowWidth=4096)
    dataset.add_new(0x00280120, "SS", -2001)
    dataset.add_new(0x00280121, "SS", -1980)
    assert (picture(read_film(dataset))[:, 90:] == 0).all()


def test_a_white_border_is_masked_and_said(read_film) -> None:
    bordered = A.copy()
    bordered[:15], bordered[-15:], bordered[:, :12], bordered[:, -12:] = 4095, 4095, 4095, 4095
    prepared = film(read_film, bordered)
    assert rules(prepared) == {"border_masked"}
    result = picture(prepared)
    assert (result[:15] == 0).all() and (result[:, -12:] == 0).all()
    assert np.allclose(result[15:-15, 12:-12], A[15:-15, 12:-12] / 4095.0, atol=1e-3)


@pytest.mark.parametrize(
    ("attributes", "outside"),
    [({"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 11, "ShutterRightVerticalEdge": 90,
       "ShutterUpperHorizontalEdge": 21, "ShutterLowerHorizontalEdge": 110}, (0, 0)),
     ({"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [60, 50], "RadiusOfCircularShutter": 45}, (2, 2)),
     ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [10, 50, 110, 90, 110, 10]}, (10, 5))],
)  # fmt: skip
def test_the_shutter_is_masked(read_film, attributes: dict, outside: tuple[int, int]) -> None:
    result = picture(film(read_film, **attributes))
    assert result[outside] == 0.0 and result[60, 50] > 0.3


def test_a_shutter_in_impossible_units_is_ignored(read_film, reference: np.ndarray) -> None:
    prepared = film(read_film, ShutterShape="RECTANGULAR", ShutterLeftVerticalEdge=-184, ShutterRightVerticalEdge=-100,
                    ShutterUpperHorizontalEdge=907, ShutterLowerHorizontalEdge=1299)  # fmt: skip
    assert np.allclose(picture(prepared), reference, atol=1e-6)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(["R", "F"], np.s_[:, ::-1]), (["L", "H"], np.s_[::-1]), (["R", "H"], np.s_[::-1, ::-1]), (["L", "F"], np.s_[:])],
)
def test_a_mirrored_film_is_turned_back(read_film, reference: np.ndarray, orientation: list[str], turn) -> None:
    prepared = film(read_film, np.ascontiguousarray(A[turn]), PatientOrientation=orientation)
    assert np.allclose(picture(prepared), reference, atol=1e-6)
    geometry = prepared.geometry
    assert (geometry.flip_columns, geometry.flip_rows) == (orientation[0] == "R", orientation[1] == "H")
    assert ("orientation_mirrored" in rules(prepared)) == (orientation != ["L", "F"])


def test_a_mirrored_padding_mask_turns_with_the_film(read_film) -> None:
    padded = A.copy()
    padded[:, 80:] = 4095
    padded[0, 0] = 4000
    prepared = film(read_film, padded, PixelPaddingValue=4095, PatientOrientation=["R", "F"])
    assert (picture(prepared)[:, :20] == 0).all() and picture(prepared)[:, 20:].mean() > 0.3


@pytest.mark.parametrize(
    ("keyword", "code"),
    [("PixelRepresentation", "MISSING_TAG"), ("SamplesPerPixel", "MISSING_TAG"), ("BitsStored", "MISSING_TAG"),
     ("PhotometricInterpretation", "MISSING_TAG"), ("Rows", "MISSING_TAG"), ("BitsAllocated", "MISSING_TAG")],
)  # fmt: skip
def test_a_missing_pixel_attribute(read_film, keyword: str, code: str) -> None:
    dataset = dicom_files.make_dataset(A)
    del dataset[keyword]
    with pytest.raises(FilmError) as caught:
        read_film(dataset)
    assert (caught.value.code, caught.value.detail) == (code, keyword)


@pytest.mark.parametrize(
    ("attributes", "code"),
    [({"BitsAllocated": 12}, "UNSUPPORTED_PIXEL_LAYOUT"), ({"BitsAllocated": 32}, "UNSUPPORTED_PIXEL_LAYOUT"),
     ({"BitsStored": 17, "HighBit": 16}, "UNSUPPORTED_PIXEL_LAYOUT"), ({"BitsStored": 0}, "UNSUPPORTED_PIXEL_LAYOUT"),
     ({"Rows": 0}, "BAD_VALUE"), ({"Columns": 0}, "BAD_VALUE"), ({"PixelRepresentation": 7}, "BAD_VALUE"),
     ({"NumberOfFrames": 2}, "MULTI_FRAME"), ({"SamplesPerPixel": 2}, "UNSUPPORTED_PIXEL_LAYOUT"),
     ({"PhotometricInterpretation": "HSV"}, "UNSUPPORTED_PIXEL_LAYOUT"),
     ({"PhotometricInterpretation": "PALETTE COLOR"}, "COLOUR"), ({"Rows": 121}, "TRUNCATED_PIXELS"),
     ({"Rows": 65535, "Columns": 65535}, "PICTURE_TOO_LARGE")],
)  # fmt: skip
def test_impossible_pixel_attributes(read_film, attributes: dict, code: str) -> None:
    assert code_of(read_film, **attributes) == code


def test_one_frame_said_aloud_is_one_frame(read_film, reference: np.ndarray) -> None:
    for frames in (b"1 ", b"", b"0 "):
        prepared = film(read_film, raw={"NumberOfFrames": ("IS", frames)})
        assert np.allclose(picture(prepared), reference)


COLOUR_SYNTAXES = (dicom_files.EXPLICIT, dicom_files.RLE, dicom_files.JPEG, dicom_files.JPEG_LS, dicom_files.J2K)


@pytest.mark.parametrize("syntax", COLOUR_SYNTAXES)
def test_three_equal_channels_are_grey(read_film, syntax: str) -> None:
    grey = dicom_files.chest_pixels(bits=8)
    dataset = dicom_files.make_dataset(np.dstack([grey] * 3), WindowCenter=None, WindowWidth=None)
    if syntax == dicom_files.JPEG:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    prepared = read_film(dicom_files.encode(dataset, syntax))
    assert "colour_as_grey" in rules(prepared)
    assert np.abs(picture(prepared) - grey / 255.0).mean() < 0.02


@pytest.mark.parametrize("syntax", COLOUR_SYNTAXES)
def test_true_colour_is_ineligible(read_film, syntax: str) -> None:
    grey = dicom_files.chest_pixels(bits=8)
    dataset = dicom_files.make_dataset(np.dstack([grey, grey // 2, 255 - grey]))
    if syntax == dicom_files.JPEG:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
    with pytest.raises(FilmError) as caught:
        read_film(dicom_files.encode(dataset, syntax))
    assert caught.value.code == "COLOUR" and caught.value.kind == "ineligible"


def test_planar_and_luminance_first_grey(read_film) -> None:
    grey = dicom_files.chest_pixels(bits=8)
    planes = np.stack([grey, grey, grey])
    dataset = dicom_files.make_dataset(np.dstack([grey] * 3), PlanarConfiguration=1)
    dataset.PixelData = planes.tobytes()
    assert "colour_as_grey" in rules(read_film(dataset))
    neutral = np.full_like(grey, 128)
    dataset = dicom_files.make_dataset(np.dstack([grey, neutral, neutral]), PhotometricInterpretation="YBR_FULL")
    assert "colour_as_grey" in rules(read_film(dataset))
    dataset = dicom_files.make_dataset(np.dstack([grey] * 3), PhotometricInterpretation="YBR_FULL")
    with pytest.raises(FilmError, match="colour"):
        read_film(dataset)


@pytest.mark.parametrize("value", [0, 1000, 4095])
def test_a_constant_picture_is_blank(read_film, value: int) -> None:
    assert code_of(read_film, np.full((64, 64), value, np.uint16)) == "BLANK_PICTURE"


def test_a_picture_of_padding_only_is_blank(read_film) -> None:
    pixels = np.full((64, 64), 4000, np.uint16)
    pixels[10:20] = 65535
    assert code_of(read_film, pixels, PixelPaddingValue=4000, PixelPaddingRangeLimit=65535) == "BLANK_PICTURE"


def test_real_films_have_the_right_polarity_and_no_damage(shared_films: list[Path]) -> None:
    seen = 0
    for path in shared_films:
        try:
            prepared = prepare(FilmSource(path), {"film": [{"step": "resize", "height": 64, "width": 64}]})
        except FilmError as error:
            assert error.code == "NO_PIXEL_DATA" and "CR000000" in path.name
            continue
        assert "decode_damage_suspected" not in rules(prepared), path.name
        if "ood" in str(path.parent) or "MONOHR1" in path.name:
            continue
        small = prepared.tensors["film"][0]
        lungs = (small[20:36, 14:24].mean() + small[20:36, 40:50].mean()) / 2
        assert small[20:50, 29:35].mean() > lungs + 0.03, path.name
        seen += 1
    assert seen >= 10


def test_the_same_real_film_in_every_syntax_has_one_content(shared_films: list[Path]) -> None:
    same = [path for path in shared_films if "gdcm" in path.name]
    hashes = {prepare(FilmSource(path), {}).content_hash for path in same}
    assert len(same) >= 6 and len(hashes) == 1


# What the detector delivered


def test_grey_values_are_shares_of_the_stored_range(read_film) -> None:
    facts = film(read_film).facts
    assert facts.grey_mean == pytest.approx(A.mean() / 4096)
    assert facts.grey_spread == pytest.approx(A.std() / 4096)


def test_a_changed_gain_is_in_the_grey_values_whatever_the_window_does(read_film, reference: np.ndarray) -> None:
    half = film(read_film, A // 2, WindowCenter=1024, WindowWidth=2048)
    assert np.allclose(picture(half), reference, atol=2e-3), "the networks see the same"
    facts = film(read_film).facts
    assert half.facts.grey_mean == pytest.approx(facts.grey_mean / 2, rel=0.01)
    assert half.facts.grey_spread == pytest.approx(facts.grey_spread / 2, rel=0.01)


def test_signed_values_count_from_the_lowest(read_film) -> None:
    signed = (A.astype(np.int32) - 2048).astype(np.int16)
    facts = film(read_film, signed, PixelRepresentation=1, BitsStored=12, HighBit=11, WindowWidth=4096).facts
    assert facts.grey_mean == pytest.approx(A.mean() / 4096)
    assert facts.grey_spread == pytest.approx(A.std() / 4096)
