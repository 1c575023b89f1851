from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from trainer.data.images import grey, is_dicom, read_picture, stored_grey
from trainer.errors import DataError
from worker.film import preprocess
from worker.film.prepare import prepare
from worker.film.source import FilmSource
from worker.phantom import dicom_bytes, make_phantom, phantom_dataset

STEPS = ({"step": "min_max"}, {"step": "resize", "height": 24, "width": 24})
Picture = Callable[..., npt.NDArray[Any]]
Write = Callable[..., Path]


@pytest.mark.parametrize("dtype, high", [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_grey_values_are_fractions_of_the_formats_highest(
    tmp_path: Path, picture: Picture, write: Write, dtype: type, high: int, suffix: str
) -> None:
    stored = picture(dtype=dtype)
    film = grey(write(tmp_path / f"film{suffix}", stored))
    assert film.dtype == np.float32
    np.testing.assert_allclose(film, stored / high, atol=1e-7)


def test_a_jpeg_of_equal_channels_is_one_grey_picture(tmp_path: Path, picture: Picture, write: Write) -> None:
    path = write(tmp_path / "film.jpeg", np.repeat(picture()[..., None], 3, axis=2))
    decoded = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert decoded.ndim == 3
    np.testing.assert_array_equal(stored_grey(path), decoded[..., 1])


def test_an_opaque_fourth_channel_is_no_obstacle(tmp_path: Path, picture: Picture, write: Write) -> None:
    plane = picture()
    path = write(tmp_path / "film.png", np.dstack([plane, plane, plane, np.full_like(plane, 255)]))
    np.testing.assert_array_equal(stored_grey(path), plane)


def test_colour_is_refused(tmp_path: Path, picture: Picture, write: Write) -> None:
    with pytest.raises(DataError, match="in colour"):
        stored_grey(write(tmp_path / "film.png", np.dstack([picture(seed=i) for i in range(3)])))


def test_transparency_is_refused(tmp_path: Path, picture: Picture, write: Write) -> None:
    plane = picture()
    with pytest.raises(DataError, match="transparent"):
        stored_grey(write(tmp_path / "film.png", np.dstack([plane, plane, plane, plane])))


def test_fractional_values_are_refused(tmp_path: Path, picture: Picture, write: Write) -> None:
    with pytest.raises(DataError, match="float32"):
        stored_grey(write(tmp_path / "film.tiff", picture().astype(np.float32)))


@pytest.mark.parametrize("kept", [0, 8, 200])
def test_damaged_pictures_are_refused(tmp_path: Path, picture: Picture, write: Write, kept: int) -> None:
    path = write(tmp_path / "film.png", picture())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError):
        read_picture(path, STEPS)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_picture(tmp_path / "film.png", STEPS)


def test_a_picture_takes_the_workers_steps(tmp_path: Path, picture: Picture, write: Write) -> None:
    stored = picture(50, 41)
    seen = read_picture(write(tmp_path / "film.png", stored), STEPS)
    expected = preprocess.apply(STEPS, (stored / np.float32(255)).astype(np.float32), None)
    np.testing.assert_array_equal(seen.plane, expected[0])
    assert (seen.geometry.film_rows, seen.geometry.film_columns) == (50, 41)
    assert not seen.geometry.flip_columns


@pytest.mark.parametrize("mirrored", [False, True])
def test_dicom_goes_the_way_of_the_night_whatever_it_is_called(tmp_path: Path, mirrored: bool) -> None:
    path = tmp_path / "film.png"
    path.write_bytes(dicom_bytes(phantom_dataset(make_phantom(3, rows=64, columns=56), mirrored=mirrored)))
    seen = read_picture(path, STEPS)
    night = prepare(FilmSource(path), {"m": STEPS})
    assert is_dicom(path)
    np.testing.assert_array_equal(seen.plane, night.tensors["m"][0])
    assert seen.geometry.flip_columns is mirrored


def test_what_is_neither_picture_nor_dicom_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.png"
    path.write_bytes(b"not a film at all" * 20)
    with pytest.raises(DataError, match="not DICOM"):
        read_picture(path, STEPS)
