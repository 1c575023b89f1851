"""The guard in front of the decoders: is the compressed picture whole, and the one the header announces?

Measured: the JPEG and HTJ2K decoders fill what a truncated stream lacks without a word, so
nothing is decoded that has not been walked here from its first marker to its last byte.
"""

from __future__ import annotations

import itertools
import struct
from typing import NamedTuple

from worker.errors import FilmError
from worker.film.pixels import PixelLayout

_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_JPEG_FRAME_MARKERS = frozenset({0xC0, 0xC1, 0xC2, 0xC3})
_JPEG_LS_FRAME_MARKERS = frozenset({0xF7})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_START_OF_TILE_PART = b"\xff\x90"
_CODING_STYLE = b"\xff\x52"
_QUANTISATION = {b"\xff\x5c": "default", b"\xff\x5d": "component"}
#: 16 bit pictures need about 20 bit planes; measured, more than 30 crash the HTJ2K decoder.
_MOST_BIT_PLANES = 30
_RLE_HEADER = 64
#: A run of the PackBits scheme turns two bytes into at most 128 (PS3.5 annex G.3).
_RLE_MOST_PER_BYTE = 64


class Codestream(NamedTuple):
    """What a compressed picture says about itself."""

    rows: int
    columns: int
    components: int
    precision: int


def fragments_of(data: bytes | memoryview, offset: int, *, big_endian: bool = False) -> bytes:
    """The one frame of encapsulated pixel data (PS3.5 annex A.4), its fragments joined.

    Raises
    ------
    FilmError
        ``TRUNCATED_PIXELS``, ``DECODE_FAILED`` (not encapsulated).
    """
    unpack = struct.Struct(">HHL" if big_endian else "<HHL").unpack_from
    fragments: list[bytes] = []
    first = True
    while offset + 8 <= len(data):
        group, element, length = unpack(data, offset)
        offset += 8
        if (group, element) == _SEQUENCE_END:
            break
        if (group, element) != _ITEM:
            raise FilmError("DECODE_FAILED", "the fragments are not items")
        if offset + length > len(data):
            raise FilmError("TRUNCATED_PIXELS", f"a fragment lacks {offset + length - len(data)} bytes")
        if not first:
            fragments.append(bytes(data[offset : offset + length]))
        first = False
        offset += length
    else:
        if offset != len(data):
            raise FilmError("TRUNCATED_PIXELS", "the file ends between fragments")
    frame = b"".join(fragments)
    if not frame:
        raise FilmError("TRUNCATED_PIXELS", "there is no fragment")
    return frame


def check_jpeg(frame: bytes, layout: PixelLayout) -> Codestream:
    """Guard of JPEG baseline, extended and lossless (ITU-T T.81 annex B)."""
    return _check_jpeg(frame, layout, _JPEG_FRAME_MARKERS)


def check_jpeg_ls(frame: bytes, layout: PixelLayout) -> Codestream:
    """Guard of JPEG-LS (ITU-T T.87 annex C)."""
    return _check_jpeg(frame, layout, _JPEG_LS_FRAME_MARKERS)


def check_jpeg_2000(frame: bytes, layout: PixelLayout) -> Codestream:
    """Guard of JPEG 2000 and HTJ2K (ITU-T T.800 annex A): size, and every tile part to its end.

    Genuine files lack the final EOC marker; the tile parts' own lengths tell truncation.
    """
    start = frame.find(_JPEG_2000_START) if frame.startswith(_JP2_SIGNATURE) else 0
    if start < 0 or frame[start : start + 4] != _JPEG_2000_START:
        raise FilmError("DECODE_FAILED", "the frame is not a JPEG 2000 codestream")
    if len(frame) < start + 45:
        raise FilmError("TRUNCATED_PIXELS", "the codestream ends in its header")
    (length,) = struct.unpack_from(">H", frame, start + 4)
    x1, y1, x0, y0 = struct.unpack_from(">4L", frame, start + 8)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    tile_width, tile_height, tile_x, tile_y = struct.unpack_from(">4L", frame, start + 24)
    stream = Codestream(y1 - y0, x1 - x0, components, (frame[start + 42] & 0x7F) + 1)
    _compare(stream, layout)
    subsampling = (
        frame[start + 43 : start + 42 + 3 * components : 3] + frame[start + 44 : start + 42 + 3 * components : 3]
    )
    if any(step != 1 for step in subsampling) or not (tile_width and tile_height and tile_x <= x0 and tile_y <= y0):
        raise FilmError("DECODE_FAILED", "the codestream's tiles or components are damaged")
    position = start + 4 + length
    while frame[position : position + 2] != _START_OF_TILE_PART:
        following = _next_segment(frame, position)
        if frame[position : position + 2] == _CODING_STYLE:
            _check_coding_style(frame[position:following])
        elif frame[position : position + 2] in _QUANTISATION:
            _check_quantisation(frame[position:following], wide_index=components > 256)
        position = following
    while frame[position : position + 2] == _START_OF_TILE_PART:
        if position + 12 > len(frame):
            raise FilmError("TRUNCATED_PIXELS", "the codestream ends in a tile header")
        (length,) = struct.unpack_from(">L", frame, position + 6)
        if length == 0:
            # The last tile part may leave its length open: then the end marker must be there.
            if not _has_end(frame):
                raise FilmError("TRUNCATED_PIXELS", "the codestream has no end")
            break
        position += max(length, 12)
    if position > len(frame):
        raise FilmError("TRUNCATED_PIXELS", f"the codestream lacks {position - len(frame)} bytes")
    return stream


def check_rle(frame: bytes, layout: PixelLayout) -> Codestream:
    """Guard of RLE (PS3.5 annex G): as many segments as byte planes, each long enough."""
    if len(frame) < _RLE_HEADER:
        raise FilmError("TRUNCATED_PIXELS", "the RLE header is cut")
    count, *offsets = struct.unpack_from("<16L", frame)
    planes = layout.samples * layout.bytes_per_sample
    if count != planes:
        raise FilmError("CODESTREAM_MISMATCH", f"{count} RLE segments where {planes} are due")
    bounds = [*offsets[:count], len(frame)]
    if bounds[0] != _RLE_HEADER or any(late < early for early, late in itertools.pairwise(bounds)):
        raise FilmError("TRUNCATED_PIXELS", "the RLE segments lie outside the frame")
    pixels = layout.rows * layout.columns
    if any((late - early) * _RLE_MOST_PER_BYTE < pixels for early, late in itertools.pairwise(bounds)):
        raise FilmError("TRUNCATED_PIXELS", "an RLE segment is too short for the picture")
    return Codestream(layout.rows, layout.columns, layout.samples, layout.bits_allocated)


def _check_jpeg(frame: bytes, layout: PixelLayout, frame_markers: frozenset[int]) -> Codestream:
    if not frame.startswith(b"\xff\xd8"):
        raise FilmError("DECODE_FAILED", "the frame is not a JPEG stream")
    position = 2
    stream = None
    while True:
        if position + 4 > len(frame):
            raise FilmError("TRUNCATED_PIXELS", "the codestream ends in its header")
        marker = frame[position + 1]
        if marker in frame_markers:
            if position + 10 > len(frame):
                raise FilmError("TRUNCATED_PIXELS", "the codestream ends in its header")
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            stream = Codestream(rows, columns, components, precision)
        if marker == _START_OF_SCAN:
            break
        position = _next_segment(frame, position)
    if stream is None:
        raise FilmError("DECODE_FAILED", "the JPEG process is not the one of the transfer syntax")
    _compare(stream, layout)
    if not _has_end(frame):
        raise FilmError("TRUNCATED_PIXELS", "the codestream has no end")
    return stream


def _check_coding_style(segment: bytes) -> None:
    """Refuse a COD segment outside what T.800 A.6.1 allows: decoders divide by what it says."""
    if len(segment) < 14:
        raise FilmError("TRUNCATED_PIXELS", "the codestream ends in its header")
    progression, layers, _, levels, width, height = struct.unpack_from(">BHBBBB", segment, 5)
    if progression > 4 or layers == 0 or levels > 32 or max(width, height) > 8 or width + height > 8:
        raise FilmError("DECODE_FAILED", "the codestream's coding style is damaged")


def _check_quantisation(segment: bytes, *, wide_index: bool) -> None:
    """Refuse a QCD or QCC segment whose sub-bands have impossibly many bit planes (T.800 A.6.4)."""
    start = 4 if _QUANTISATION[segment[:2]] == "default" else 6 if wide_index else 5
    if len(segment) <= start:
        raise FilmError("TRUNCATED_PIXELS", "the codestream ends in its header")
    guard_bits, style = segment[start] >> 5, segment[start] & 0x1F
    steps = segment[start + 1 :: 1 if style == 0 else 2]
    if any(guard_bits + (step >> 3) - 1 > _MOST_BIT_PLANES for step in steps):
        raise FilmError("DECODE_FAILED", "the codestream's quantisation is damaged")


def _has_end(frame: bytes) -> bool:
    # Fragments are padded to an even length, by some writers with a fill byte.
    return frame.rstrip(b"\0\xff").endswith(_END_OF_IMAGE)


def _next_segment(frame: bytes, position: int) -> int:
    if position + 4 > len(frame):
        raise FilmError("TRUNCATED_PIXELS", "the codestream ends in its header")
    if frame[position] != 0xFF:
        raise FilmError("DECODE_FAILED", "the codestream's markers are damaged")
    marker = frame[position + 1]
    if marker == 0xFF:
        return position + 1
    if marker in _STANDALONE:
        return position + 2
    length = int(struct.unpack_from(">H", frame, position + 2)[0])
    if length < 2:
        raise FilmError("DECODE_FAILED", "the codestream's markers are damaged")
    return position + 2 + length


def _compare(stream: Codestream, layout: PixelLayout) -> None:
    if (stream.rows, stream.columns) != (layout.rows, layout.columns):
        raise FilmError(
            "CODESTREAM_MISMATCH",
            f"{stream.rows} x {stream.columns} pixels where the header says {layout.rows} x {layout.columns}",
        )
    if stream.components != layout.samples:
        raise FilmError("CODESTREAM_MISMATCH", f"{stream.components} components where {layout.samples} are due")
    if stream.precision > layout.bits_allocated:
        raise FilmError("CODESTREAM_MISMATCH", f"{stream.precision} bits where {layout.bits_allocated} are allocated")
