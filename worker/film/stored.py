"""From decoded samples to stored values: alignment, sign, overlay bits, grey from three samples.

A stored value is the number PS3.3 C.7.6.3 means: BitsStored bits, sign extended where
PixelRepresentation is 1. The same film gives the same stored values in every lossless
transfer syntax.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.errors import FilmError
from worker.film import values
from worker.film.codecs import Picture, Samples
from worker.film.elements import Elements
from worker.film.pixels import PixelLayout
from worker.film.prepared import Observation

#: OverlayBitPosition of the sixteen overlay groups: unused high bits then carry drawings.
OVERLAY_TAGS: tuple[int, ...] = tuple((group << 16) | 0x0102 for group in range(0x6000, 0x6020, 2))
#: Lossy compression moves equal channels apart by a few levels of 255.
_GREY_TOLERANCE = 6


@dataclass(frozen=True)
class StoredPicture:
    """Stored values of a grey picture.

    ``pixels`` is uint8, uint16 or int16 of shape (rows, columns); ``bits`` how many bits the
    values really have (BitsStored, or more where that is too small); ``photometric`` is
    MONOCHROME1 or MONOCHROME2.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.int16]
    bits: int
    signed: bool
    photometric: str
    observations: tuple[Observation, ...] = ()


def stored_values(picture: Picture, layout: PixelLayout, elements: Elements) -> StoredPicture:
    """Stored values of a decoded picture.

    Raises
    ------
    FilmError
        ``COLOUR`` when three samples differ.
    """
    if layout.samples == 3:
        observation = Observation("colour_as_grey", detail="three equal colour channels")
        return StoredPicture(_grey(picture, layout), layout.bits_stored, False, "MONOCHROME2", (observation,))
    samples = picture.samples
    raw = samples if samples.dtype.kind == "u" else samples.view(f"u{samples.dtype.itemsize}")
    raw = np.ascontiguousarray(raw, dtype=f"u{raw.dtype.itemsize}")
    if raw.dtype.itemsize < layout.bytes_per_sample and layout.signed:
        raw = samples.astype(np.int16).view(np.uint16)
    shift = layout.high_bit + 1 - layout.bits_stored if picture.precision > layout.bits_stored else 0
    if shift:
        raw = raw >> shift
    top = layout.bits_allocated - shift
    bits = layout.bits_stored
    observations: tuple[Observation, ...] = ()
    if bits < top and _high_bits_used(raw, layout):
        if _has_overlay(elements):
            raw = raw & raw.dtype.type((1 << bits) - 1)
        else:
            used = int(raw.max()).bit_length() if not layout.signed else top
            detail = f"{used} bits used where {bits} are declared"
            observations = (Observation("bits_stored_too_small", float(used), detail),)
            bits = used
    pixels = _sign_extended(raw, bits) if layout.signed else raw
    return StoredPicture(pixels, bits, layout.signed, layout.photometric, observations)


def _high_bits_used(raw: Samples, layout: PixelLayout) -> bool:
    bits = layout.bits_stored
    if int(raw.max()) < 1 << bits:
        return False
    if not layout.signed:
        return True
    # A negative value fills the bits above with copies of its sign: that is no use of them.
    width = raw.dtype.itemsize * 8
    sign = raw >> (bits - 1)
    return bool(np.any((sign > 1) & (sign != (1 << (width - bits + 1)) - 1)))


def _sign_extended(raw: Samples, bits: int) -> npt.NDArray[np.int16]:
    unused = 16 - bits
    wide = raw.astype(np.uint16)
    return np.asarray((wide << unused).view(np.int16) >> unused, np.int16)


def _has_overlay(elements: Elements) -> bool:
    positions = (values.integers(elements.values.get(tag), elements.encoding) for tag in OVERLAY_TAGS)
    return any(position and position[0] > 0 for position in positions)


def _grey(picture: Picture, layout: PixelLayout) -> npt.NDArray[np.uint8]:
    """The one channel of three equal ones, uint8 (rows, columns)."""
    import cv2

    samples = picture.samples
    if samples.dtype.itemsize != 1 or layout.signed:
        raise FilmError("UNSUPPORTED_PIXEL_LAYOUT", "colour of more than 8 bits")
    channels = [np.ascontiguousarray(samples[..., index], np.uint8) for index in range(3)]
    neutral = np.full_like(channels[0], 128) if picture.luminance_first else channels[0]
    if any(int(cv2.absdiff(neutral, channel).max()) > _GREY_TOLERANCE for channel in channels[1:]):
        raise FilmError("COLOUR", "the three channels differ")
    return channels[0]
