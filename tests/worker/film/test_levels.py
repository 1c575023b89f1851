from __future__ import annotations

import numpy as np
import pytest

from worker.film import levels
from worker.film.levels import count_levels, look_up


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("masked", [False, True])
def test_levels_are_counted_as_numpy_counts_them(dtype: type, masked: bool) -> None:
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    pixels = rng.integers(0, top + 1, (50, 41)).astype(dtype)
    pixels[0, :2] = 0, top
    valid = rng.random(pixels.shape) < 0.5 if masked else None
    chosen = pixels.ravel() if valid is None else pixels[valid]
    np.testing.assert_array_equal(count_levels(pixels, valid), np.bincount(chosen, minlength=top + 1))


def test_a_large_film_is_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if float32 held whole numbers up to 100 only: more than one strip is counted.
    monkeypatch.setattr(levels, "_EXACT", 100)
    pixels = np.full((37, 30), 5, np.uint16)
    valid = np.ones(pixels.shape, bool)
    valid[20] = False
    assert count_levels(pixels, None)[5] == pixels.size
    assert count_levels(pixels, valid)[5] == pixels.size - 30


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_levels_are_replaced_bit_for_bit(dtype: type) -> None:
    rng = np.random.default_rng(1)
    size = int(np.iinfo(dtype).max) + 1
    table = rng.random(size, np.float32)
    pixels = rng.integers(0, size, (30, 20)).astype(dtype)
    pixels.flags.writeable = False
    found = look_up(table, pixels)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, table[pixels])
    np.testing.assert_array_equal(look_up(table, pixels[:, ::2]), table[pixels[:, ::2]])
