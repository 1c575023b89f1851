from __future__ import annotations

import dicom_files
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.film.damage import BROKEN_SHARE, broken_share, damage_observations


def corrupted(frame: bytes, rng: np.random.Generator, count: int = 20) -> bytes:
    damaged = bytearray(frame)
    start = damaged.index(b"\xff\xda") + 14
    for place in rng.integers(start, len(damaged) - 4, count):
        damaged[place] = int(rng.integers(0, 256))
    return bytes(damaged)


@pytest.mark.parametrize("syntax", [dicom_files.JPEG, dicom_files.JPEG_EXTENDED, dicom_files.JPEG_LOSSLESS_SV1])
def test_twenty_corrupted_bytes_are_usually_noticed(read_film, syntax: str) -> None:
    bits = 8 if syntax == dicom_files.JPEG else 12
    pixels = dicom_files.chest_pixels(480, 400, bits)
    dataset = dicom_files.encode(dicom_files.make_dataset(pixels, BitsStored=bits, HighBit=bits - 1), syntax)
    assert not read_film(dataset).observations
    frame, rng, noticed = dicom_files.frame_of(dataset), np.random.default_rng(5), 0
    for _ in range(12):
        dicom_files.set_frame(dataset, corrupted(frame, rng))
        try:
            rules = {observation.rule for observation in read_film(dataset).observations}
        except Exception:
            noticed += 1
        else:
            noticed += "decode_damage_suspected" in rules
    assert noticed >= 9


def test_a_shifted_lower_half_is_noticed_and_says_how_much() -> None:
    film = np.tile(np.linspace(0.2, 0.8, 320, dtype=np.float32), (200, 1))
    assert damage_observations(film, None) == []
    film[100:, :240] += 0.1
    (observation,) = damage_observations(film, None)
    assert observation.rule == "decode_damage_suspected"
    assert observation.value == pytest.approx(0.75, abs=0.1)


def test_a_break_at_the_edge_of_the_valid_area_is_none() -> None:
    film = np.full((200, 320), 0.5, np.float32)
    film[150:] = 0.0
    valid = np.ones(film.shape, bool)
    valid[150:] = False
    assert broken_share(film, None) > BROKEN_SHARE
    assert broken_share(film, valid) == 0.0


@pytest.mark.parametrize("row", [2, 62, 63, 64, 65, 66, 67, 126, 127, 128, 129, 198])
def test_a_break_is_found_in_whatever_strip_it_lies(row: int) -> None:
    film = np.full((200, 320), 0.3, np.float32)
    film[row:] = 0.6
    assert broken_share(film, None) == 1.0


def test_slanted_and_soft_edges_are_no_breaks() -> None:
    y, x = np.mgrid[0:300, 0:300].astype(np.float32)
    assert broken_share((y > x * 0.2 + 60).astype(np.float32), None) < BROKEN_SHARE
    assert broken_share(1 / (1 + np.exp(-(y - 150) / 2)), None) < BROKEN_SHARE


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_any_size_gives_a_share(rows: int, columns: int, seed: int) -> None:
    film = np.random.default_rng(seed).uniform(0, 1, (rows, columns)).astype(np.float32)
    assert 0.0 <= broken_share(film, None) <= 1.0
