from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.data.images import read_picture
from trainer.data.raw import RawPictures, read_raw
from trainer.errors import DataError

RAW = RawPictures(rows=6, columns=4, bits=12)


def stored(path: Path, values: np.ndarray, order: str = ">") -> Path:
    values.astype(f"{order}u2").tofile(path)
    return path


def test_values_are_shares_of_the_depth(tmp_path: Path) -> None:
    values = np.arange(24).reshape(6, 4) * 178  # up to 4094
    picture = read_raw(stored(tmp_path / "a.IMG", values), RAW)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, values / 4095, atol=1e-6)


def test_inverted_pictures_become_white_where_numbers_are_small(tmp_path: Path) -> None:
    values = np.zeros((6, 4), int)
    values[2:] = 4095
    inverted = RAW.model_copy(update={"inverted": True})
    picture = read_raw(stored(tmp_path / "a.img", values), inverted)
    assert (picture[:2] == 1).all() and (picture[2:] == 0).all()
    assert inverted.describes(tmp_path / "A.IMG") and not inverted.describes(tmp_path / "a.png")


def test_both_byte_orders_are_read(tmp_path: Path) -> None:
    values = np.arange(24).reshape(6, 4)
    little = RAW.model_copy(update={"byte_order": "little"})
    np.testing.assert_array_equal(
        read_raw(stored(tmp_path / "a", values), RAW), read_raw(stored(tmp_path / "b", values, "<"), little)
    )


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.img", np.zeros((6, 5)))
    with pytest.raises(DataError, match=r"60 bytes where 6 x 4 pixels of 16 bits have 48: .*images\.raw"):
        read_raw(path, RAW)


def test_a_value_beyond_the_depth_is_refused_as_are_exchanged_bytes(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.img", np.full((6, 4), 100), "<")  # 0x6400 with its bytes exchanged
    with pytest.raises(DataError, match="the value 25600, and 12 bits end at 4095: correct bits or byte_order"):
        read_raw(path, RAW)


def test_a_raw_film_is_preprocessed_as_any_other(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 24).reshape(6, 4)
    path = stored(tmp_path / "a.img", values)
    steps = [{"step": "min_max"}, {"step": "resize", "height": 3, "width": 2, "mode": "area", "fit": "stretch"}]
    seen = read_picture(path, steps, RAW)
    assert seen.plane.shape == (3, 2) and (seen.geometry.film_rows, seen.geometry.film_columns) == (6, 4)
    assert np.all(np.diff(seen.plane, axis=0) > 0)
    with pytest.raises(DataError, match="cannot be read"):
        read_picture(tmp_path / "none.img", steps, RAW)
