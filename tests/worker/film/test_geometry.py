from __future__ import annotations

import dicom_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.film.geometry import RESAMPLER_VERSION, to_film_grid
from worker.film.prepared import Geometry


@pytest.mark.parametrize(
    ("pixel", "imager", "calibration", "spacing", "source"),
    [
        (None, None, None, None, "none"),
        ([0.2, 0.3], None, None, (0.2, 0.3), "undeterminable"),
        (None, [0.2, 0.3], None, (0.2, 0.3), "detector"),
        ([0.2, 0.2], [0.2, 0.2], None, (0.2, 0.2), "uncalibrated"),
        ([0.18, 0.18], [0.2, 0.2], None, (0.18, 0.18), "corrected"),
        ([0.2, 0.2], [0.2, 0.2], "GEOMETRY", (0.2, 0.2), "corrected"),
        ([0.2, 0.2], None, "FIDUCIAL", (0.2, 0.2), "corrected"),
    ],
)
def test_spacing_and_its_source(read_film, pixel, imager, calibration, spacing, source) -> None:
    dataset = dicom_files.make_dataset(
        dicom_files.chest_pixels(),
        PixelSpacing=pixel, ImagerPixelSpacing=imager, PixelSpacingCalibrationType=calibration,
    )  # fmt: skip
    film = read_film(dataset)
    assert film.geometry.spacing_source == source
    assert (film.geometry.row_spacing, film.geometry.column_spacing) == (spacing or (None, None))
    assert not film.observations


@pytest.mark.parametrize("value", [b"0\\0 ", b"-1\\1", b"0.2 ", b"a\\b ", b"0.2\\0.2\\0.2 "])
def test_unusable_spacing_is_none_and_said(read_film, value: bytes) -> None:
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels())
    film = read_film(dicom_files.to_bytes(dataset, PixelSpacing=("DS", value)))
    assert film.geometry.spacing_source == "none" and film.geometry.row_spacing is None
    assert [observation.rule for observation in film.observations] == ["spacing_invalid"]


@pytest.mark.parametrize(("orientation", "said"), [(["F", "L"], True), (["A", "F"], False), ("L", False)])
def test_orientations_that_are_not_turned(read_film, orientation, said: bool) -> None:
    film = read_film(dicom_files.make_dataset(dicom_files.chest_pixels(), PatientOrientation=orientation))
    assert not film.geometry.flip_columns and not film.geometry.flip_rows
    assert bool(film.observations) == said


def test_nearest_neighbour_at_pixel_centres() -> None:
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    assert to_film_grid(labels, Geometry(4, 6)).tolist() == [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2
    assert to_film_grid(labels, Geometry(4, 6, flip_columns=True))[0].tolist() == [2, 2, 2, 1, 1, 1]
    assert to_film_grid(labels, Geometry(4, 6, flip_rows=True))[:, 0].tolist() == [3, 3, 1, 1]
    assert RESAMPLER_VERSION == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_grid_of_the_films_own_size_only_flips(rows, columns, flip_columns, flip_rows, seed) -> None:
    labels = np.random.default_rng(seed).integers(0, 8, (rows, columns)).astype(np.uint8)
    film = to_film_grid(labels, Geometry(rows, columns, flip_columns, flip_rows))
    expected = labels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    assert np.array_equal(film, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 200), st.integers(1, 200))
def test_the_film_grid_has_the_films_shape_and_no_new_labels(height, width, rows, columns) -> None:
    labels = (np.arange(height * width) % 7).astype(np.uint8).reshape(height, width)
    film = to_film_grid(labels, Geometry(rows, columns))
    assert film.shape == (rows, columns) and film.dtype == np.uint8
    assert set(np.unique(film)) <= set(np.unique(labels))
