"""How label maps and heat maps are stored: one zstd frame of uint8 in row-major order.

The frame carries its content size and a checksum, so damage is found when it is read and
nothing larger than what was asked for is ever unpacked. A 256 x 256 label map takes about
1.5 kB.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt
import zstandard

#: Value of the ``encoding`` columns.
MASK_ENCODING = "zstd-uint8"

_LEVEL = 3
_THREAD = threading.local()

ByteArray = npt.NDArray[np.uint8]


class DamagedMaskError(ValueError):
    """A stored map is not what was written; the message says what differs and what to do."""


def encode_mask(labels: ByteArray) -> bytes:
    """Pack a label map, uint8 of shape (height, width)."""
    if labels.ndim != 2:
        raise ValueError(f"a label map has two axes, not {labels.ndim}")
    return encode_array(labels)


def decode_mask(blob: bytes, shape: tuple[int, int]) -> ByteArray:
    """Unpack a label map of shape (height, width); raises :class:`DamagedMaskError`."""
    return decode_array(blob, shape)


def encode_array(array: ByteArray) -> bytes:
    """Pack a uint8 array of any shape; raises ValueError for any other type."""
    if array.dtype != np.uint8:
        raise ValueError(f"only uint8 maps are stored, not {array.dtype}")
    return _compressor().compress(np.ascontiguousarray(array).tobytes())


def _compressor() -> zstandard.ZstdCompressor:
    """This thread's compressor: making one takes longer than packing a map, and threads cannot share it."""
    if not hasattr(_THREAD, "compressor"):
        _THREAD.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
    found: zstandard.ZstdCompressor = _THREAD.compressor
    return found


def decode_array(blob: bytes, shape: tuple[int, ...]) -> ByteArray:
    """Unpack a uint8 array of the given shape.

    Raises
    ------
    DamagedMaskError
        The blob is no zstd frame, its checksum is wrong, or it does not hold exactly as
        many bytes as ``shape`` has elements.
    """
    expected = math.prod(shape)
    try:
        # Checked before unpacking: the size in a frame decides how much memory is taken.
        parameters = zstandard.get_frame_parameters(blob)
        if parameters.content_size != expected or not parameters.has_checksum:
            raise DamagedMaskError(f"The stored map does not announce {expected} bytes and a checksum: retry the film.")
        content = zstandard.ZstdDecompressor().decompress(
            blob, max_output_size=max(expected, 1), allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise DamagedMaskError(f"The stored map is damaged ({error}): retry the film.") from None
    if len(content) != expected:
        raise DamagedMaskError(f"The stored map holds {len(content)} bytes instead of {expected}: retry the film.")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()
