"""One named decoder per transfer syntax, never another one when it fails.

A second decoder's success on a stream the first refused is a guess about a patient's film;
measured, it "decodes" truncated streams without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.errors import FilmError
from worker.film.codestream import (
    Codestream,
    check_jpeg,
    check_jpeg_2000,
    check_jpeg_ls,
    check_rle,
    fragments_of,
)
from worker.film.elements import (
    DEFLATED_LITTLE_ENDIAN,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    PIXEL_DATA,
    Elements,
    PixelElement,
)
from worker.film.pixels import PixelLayout

Samples = npt.NDArray[Any]


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax: who guards and who decodes it, and whether its pixels are approximate."""

    title: str
    guard: Callable[[bytes, PixelLayout], Codestream] | None = None
    decode: Callable[[bytes, PixelLayout], Samples] | None = None
    lossy: bool = False


@dataclass(frozen=True)
class Picture:
    """Decoded samples as the file stores them.

    ``samples`` has the shape (rows, columns) or (rows, columns, 3) and the dtype uint8, uint16
    or, where the codestream says so, int8 or int16. ``precision`` is how many bits a sample has
    in the stream (the allocated bits where it is native). ``frame`` holds the encoded frame
    of a lossy syntax, else None. ``luminance_first`` says that three samples are luminance
    and two chroma values rather than red, green and blue.
    """

    samples: Samples
    precision: int
    frame: bytes | None = None
    luminance_first: bool = False


def _jpeg(frame: bytes, layout: PixelLayout) -> Samples:
    import imagecodecs

    if layout.samples == 1:
        return imagecodecs.jpeg8_decode(frame)
    colorspace = "YCBCR" if layout.photometric.startswith("YBR") else "RGB"
    return imagecodecs.jpeg8_decode(frame, colorspace=colorspace, outcolorspace="RGB")


def _jpeg_ls(frame: bytes, layout: PixelLayout) -> Samples:
    import imagecodecs

    return imagecodecs.jpegls_decode(frame)


def _jpeg_2000(frame: bytes, layout: PixelLayout) -> Samples:
    import imagecodecs

    return imagecodecs.jpeg2k_decode(frame)


def _htj2k(frame: bytes, layout: PixelLayout) -> Samples:
    import imagecodecs

    with _swallowed_errors_raised():
        return imagecodecs.htj2k_decode(frame)


@contextmanager
def _swallowed_errors_raised() -> Iterator[None]:
    """Raise what the HTJ2K decoder can only print: it gives half a picture and no exception."""
    swallowed: list[str] = []
    unraisable_hook, except_hook = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = lambda event: swallowed.append(event.exc_type.__name__)
    sys.excepthook = lambda *_: None
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = unraisable_hook, except_hook
    if swallowed:
        raise FilmError("DECODE_FAILED", f"HTJ2K: {swallowed[0]}")


def _rle(frame: bytes, layout: PixelLayout) -> Samples:
    import imagecodecs

    planes = np.frombuffer(imagecodecs.dicomrle_decode(frame, np.dtype(f"<u{layout.bytes_per_sample}")), np.uint8)
    if planes.size != layout.byte_count:
        raise FilmError("TRUNCATED_PIXELS", f"{planes.size} bytes where {layout.byte_count} are due")
    samples = planes.view(f"<u{layout.bytes_per_sample}")
    if layout.samples == 1:
        return samples.reshape(layout.rows, layout.columns)
    return np.moveaxis(samples.reshape(layout.samples, layout.rows, layout.columns), 0, -1)


_ROOT = "1.2.840.10008.1.2."
SYNTAXES: dict[str, Syntax] = {
    IMPLICIT_LITTLE_ENDIAN: Syntax("Implicit VR Little Endian"),
    EXPLICIT_LITTLE_ENDIAN: Syntax("Explicit VR Little Endian"),
    DEFLATED_LITTLE_ENDIAN: Syntax("Deflated Explicit VR Little Endian"),
    EXPLICIT_BIG_ENDIAN: Syntax("Explicit VR Big Endian"),
    _ROOT + "5": Syntax("RLE Lossless", check_rle, _rle),
    _ROOT + "4.50": Syntax("JPEG Baseline", check_jpeg, _jpeg, lossy=True),
    _ROOT + "4.51": Syntax("JPEG Extended", check_jpeg, _jpeg, lossy=True),
    _ROOT + "4.57": Syntax("JPEG Lossless", check_jpeg, _jpeg),
    _ROOT + "4.70": Syntax("JPEG Lossless SV1", check_jpeg, _jpeg),
    _ROOT + "4.80": Syntax("JPEG-LS Lossless", check_jpeg_ls, _jpeg_ls),
    _ROOT + "4.81": Syntax("JPEG-LS Near-lossless", check_jpeg_ls, _jpeg_ls, lossy=True),
    _ROOT + "4.90": Syntax("JPEG 2000 Lossless", check_jpeg_2000, _jpeg_2000),
    _ROOT + "4.91": Syntax("JPEG 2000", check_jpeg_2000, _jpeg_2000, lossy=True),
    _ROOT + "4.201": Syntax("HTJ2K Lossless", check_jpeg_2000, _htj2k),
    _ROOT + "4.202": Syntax("HTJ2K Lossless RPCL", check_jpeg_2000, _htj2k),
    # .203 may be either; nothing outside the stream says which, so it counts as lossy.
    _ROOT + "4.203": Syntax("HTJ2K", check_jpeg_2000, _htj2k, lossy=True),
}


def decode(elements: Elements, data: bytes | memoryview, layout: PixelLayout) -> Picture:
    """Decode the one frame.

    Parameters
    ----------
    elements
        The data set; ``elements.pixels`` is an offset into ``data``.
    data
        The whole file, or the whole inflated data set.
    layout
        What the header announces, already checked for size.

    Raises
    ------
    FilmError
        ``NO_PIXEL_DATA``, ``UNSUPPORTED_TRANSFER_SYNTAX``, ``UNSUPPORTED_PIXEL_LAYOUT``,
        ``TRUNCATED_PIXELS``, ``CODESTREAM_MISMATCH``, ``DECODE_FAILED``, ``DECODE_MEMORY``.
    """
    pixels = elements.pixels
    if pixels is None:
        raise FilmError("NO_PIXEL_DATA")
    if pixels.tag != PIXEL_DATA:
        raise FilmError("UNSUPPORTED_PIXEL_LAYOUT", "the pixels are floating point numbers")
    syntax = SYNTAXES.get(elements.transfer_syntax_uid)
    if syntax is None:
        raise FilmError("UNSUPPORTED_TRANSFER_SYNTAX", elements.transfer_syntax_uid)
    if syntax.guard is None or syntax.decode is None:
        big_endian = elements.encoding.big_endian
        samples = _native(data, pixels, layout, big_endian)
        return Picture(samples, layout.bits_allocated, luminance_first=layout.photometric == "YBR_FULL")
    if pixels.length is not None:
        raise FilmError("DECODE_FAILED", f"{syntax.title} pixel data are not encapsulated")
    frame = fragments_of(data, pixels.offset)
    stream = syntax.guard(frame, layout)
    samples = _run(syntax, frame, layout)
    luminance_first = layout.photometric.startswith("YBR_FULL") and syntax.decode is not _jpeg
    return Picture(samples, stream.precision, frame if syntax.lossy else None, luminance_first)


def _run(syntax: Syntax, frame: bytes, layout: PixelLayout) -> Samples:
    assert syntax.decode is not None
    try:
        samples = syntax.decode(frame, layout)
    except FilmError:
        raise
    except MemoryError:
        raise FilmError("DECODE_MEMORY") from None
    except Exception as error:
        # Each codec raises its own kinds; the words may quote the file, the class never does.
        raise FilmError("DECODE_FAILED", f"{syntax.title}: {type(error).__name__}") from None
    expected = (layout.rows, layout.columns) if layout.samples == 1 else (layout.rows, layout.columns, layout.samples)
    if samples.shape != expected or samples.dtype.itemsize > layout.bytes_per_sample:
        raise FilmError("CODESTREAM_MISMATCH", f"the decoder gave {samples.shape} of {samples.dtype}")
    if samples.dtype.kind == "i" and not layout.signed and int(samples.min()) < 0:
        raise FilmError("CODESTREAM_MISMATCH", "negative pixels where the header says unsigned")
    return samples


def _native(data: bytes | memoryview, pixels: PixelElement, layout: PixelLayout, big_endian: bool) -> Samples:
    if pixels.length is None:
        raise FilmError("DECODE_FAILED", "native pixel data are encapsulated")
    if layout.photometric in ("YBR_FULL_422", "YBR_PARTIAL_420"):
        raise FilmError("COLOUR", "subsampled chroma")
    there = min(pixels.length, len(data) - pixels.offset)
    if there < layout.byte_count or pixels.length > there:
        due = max(layout.byte_count, pixels.length)
        raise FilmError("TRUNCATED_PIXELS", f"{there} bytes where {due} are due")
    if big_endian and pixels.vr == b"OW" and layout.bytes_per_sample == 1:
        # Bytes travel in 16 bit words there (PS3.5 annex A.3).
        even = there - there % 2
        words = np.frombuffer(data, ">u2", even // 2, pixels.offset).astype("<u2")
        samples = words.view(np.uint8)[: layout.byte_count]
    else:
        count = layout.byte_count // layout.bytes_per_sample
        order = ">" if big_endian else "<"
        samples = np.frombuffer(data, f"{order}u{layout.bytes_per_sample}", count, pixels.offset)
    if samples.size * layout.bytes_per_sample < layout.byte_count:
        raise FilmError("TRUNCATED_PIXELS", "the last word is cut")
    if layout.samples == 1:
        return samples.reshape(layout.rows, layout.columns)
    if layout.planar:
        return np.moveaxis(samples.reshape(layout.samples, layout.rows, layout.columns), 0, -1)
    return samples.reshape(layout.rows, layout.columns, layout.samples)
