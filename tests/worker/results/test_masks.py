from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.results.masks import (
    MASK_ENCODING,
    DamagedMaskError,
    decode_array,
    decode_mask,
    encode_array,
    encode_mask,
)

LABELS = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8) % 8, np.ones((32, 32), np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**32 - 1), st.sampled_from([1, 8, 256]))
def test_mask_round_trip(height, width, seed, values):
    labels = np.random.default_rng(seed).integers(0, values, (height, width)).astype(np.uint8)
    decoded = decode_mask(encode_mask(labels), (height, width))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, labels)


def test_array_round_trip_of_a_view():
    maps = np.random.default_rng(1).integers(0, 256, (10, 16, 16)).astype(np.uint8)[::2, :, ::-1]
    decoded = decode_array(encode_array(maps), maps.shape)
    assert np.array_equal(decoded, maps)
    decoded[0] = 0


def test_a_label_map_is_small():
    assert MASK_ENCODING == "zstd-uint8"
    assert len(encode_mask(LABELS)) < 1500


@pytest.mark.parametrize("shape", [(256, 255), (256, 257), (1, 1), (0, 5)])
def test_wrong_shape(shape):
    with pytest.raises(DamagedMaskError):
        decode_mask(encode_mask(LABELS), shape)


@pytest.mark.parametrize("position", [0, 5, 40, -1])
def test_one_flipped_byte_is_found(position):
    blob = bytearray(encode_mask(LABELS))
    blob[position] ^= 0x10
    with pytest.raises(DamagedMaskError):
        decode_mask(bytes(blob), LABELS.shape)


@pytest.mark.parametrize("blob", [b"", b"not zstd at all", encode_mask(LABELS)[:-9], encode_mask(LABELS) + b"more"])
def test_not_what_was_written(blob):
    with pytest.raises(DamagedMaskError):
        decode_mask(blob, LABELS.shape)


def test_a_bomb_is_refused_by_its_header():
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 26))
    with pytest.raises(DamagedMaskError, match="announce"):
        decode_mask(bomb, (256, 256))


def test_a_frame_without_its_size_is_refused():
    frame = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(LABELS.tobytes())
    with pytest.raises(DamagedMaskError, match="announce"):
        decode_mask(frame, LABELS.shape)


def test_only_uint8_and_two_axes():
    with pytest.raises(ValueError, match="uint8"):
        encode_array(LABELS.astype(np.int32))
    with pytest.raises(ValueError, match="two axes"):
        encode_mask(LABELS[None])
