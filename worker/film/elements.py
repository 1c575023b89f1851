"""Walks the elements of a DICOM data set (PS3.5 section 7.1) and keeps the wanted values as bytes.

No objects are built, nothing recurses and nothing outside the wanted tags is read, so a
header costs a tenth of a general parser and a sequence nested 300 deep costs nothing.
Only what is needed to reach the pixel data is understood; typed values are
:mod:`worker.film.values`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, NamedTuple

from worker.errors import FilmError

MAX_INFLATED_BYTES = 256 << 20
MAX_VALUE_BYTES = 16 << 20
MAX_ELEMENTS = 200_000
_HEADER_INFLATED_BYTES = 1 << 20
_LONGEST_HEADER_BYTES = 16 << 20
_PIECE = 8192
_UNDEFINED = 0xFFFFFFFF

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"

PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})
_META_LENGTH, _META_CLASS, _META_SYNTAX = 0x00020000, 0x00020002, 0x00020010
_META_TAGS = frozenset({_META_LENGTH, _META_CLASS, _META_SYNTAX})
_DELIMITERS = 0xFFFE
_ITEM, _ITEM_END, _SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD
#: Value representations with a 32 bit length (PS3.5 table 7.1-1).
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"}
    | {b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)


class Encoding(NamedTuple):
    """How elements are written: with or without value representations, and the byte order."""

    implicit: bool
    big_endian: bool


class Value(NamedTuple):
    """One element's value representation (empty when implicit) and its bytes."""

    vr: bytes
    data: bytes


class PixelElement(NamedTuple):
    """Where the pixel data lie: ``length`` is None for encapsulated frames."""

    tag: int
    vr: bytes
    offset: int
    length: int | None


@dataclass(slots=True)
class Elements:
    """The wanted values of one data set.

    :attr:`pixels` is an offset into the file, or into ``inflated`` where the data set came
    deflated.
    """

    transfer_syntax_uid: str
    encoding: Encoding
    values: dict[int, Value]
    pixels: PixelElement | None
    inflated: bytes | None = None


class Window:
    """Reads at any offset, keeping the last piece: most headers need one read."""

    __slots__ = ("data", "size", "start", "stream")

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream = stream
        self.size = size
        self.start = 0
        self.data = stream.read(min(_PIECE, size))

    def move(self, offset: int) -> None:
        """Make the piece start at ``offset``."""
        self.stream.seek(offset)
        self.start = offset
        self.data = self.stream.read(_PIECE)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, fewer at the end of the stream."""
        local = offset - self.start
        if local >= 0 and local + length <= len(self.data):
            return self.data[local : local + length]
        self.stream.seek(offset)
        return self.stream.read(length)


def read_elements(stream: BinaryIO, size: int, wanted: Collection[int], *, whole: bool = False) -> Elements:
    """The wanted elements of a file.

    Parameters
    ----------
    stream
        Seekable, positioned at its start.
    size
        Bytes of the stream.
    wanted
        Tags as ``group << 16 | element``; sequences are kept with their items' bytes.
    whole
        Inflate a deflated data set to its end (for the pixels), not only its header.

    Raises
    ------
    FilmError
        ``EMPTY_FILE``, ``NOT_DICOM``, ``TRUNCATED_HEADER``, ``BAD_HEADER``, ``FILE_TOO_LARGE``.
    """
    if size == 0:
        raise FilmError("EMPTY_FILE")
    window = Window(stream, size)
    syntax, position = _read_meta(window)
    if syntax == DEFLATED_LITTLE_ENDIAN:
        return _read_deflated(window, position, wanted, whole)
    return _read_data_set(window, position, syntax, wanted)


def read_items(value: Value, encoding: Encoding, wanted: Collection[int]) -> list[dict[int, Value]]:
    """The wanted elements of each item of a sequence's value.

    Raises
    ------
    FilmError
        ``TRUNCATED_HEADER`` or ``BAD_HEADER``.
    """
    if value.vr == b"UN":
        encoding = Encoding(implicit=True, big_endian=False)
    order = ">" if encoding.big_endian else "<"
    data, position, items = value.data, 0, []
    while position + 8 <= len(data):
        group, element, length = struct.unpack_from(order + "HHL", data, position)
        position += 8
        if (group, element) != (_DELIMITERS, _ITEM):
            break
        found: dict[int, Value] = {}
        if length == _UNDEFINED:
            piece = data[position:]
            _, consumed = _walk(Window(BytesIO(piece), len(piece)), 0, encoding, wanted, found, in_item=True)
            position += consumed
        else:
            piece = data[position : position + length]
            _walk(Window(BytesIO(piece), len(piece)), 0, encoding, wanted, found)
            position += length
        items.append(found)
    return items


def inflate(data: bytes, limit: int) -> tuple[bytes, bool]:
    """Inflate raw deflate data to at most ``limit`` bytes; also says whether that was all.

    Raises
    ------
    FilmError
        ``BAD_HEADER`` when the data are not deflate data.
    """
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = engine.decompress(data, limit)
    except zlib.error:
        raise FilmError("BAD_HEADER", "the deflated data set cannot be inflated") from None
    return inflated, not engine.unconsumed_tail


def _read_deflated(window: Window, position: int, wanted: Collection[int], whole: bool) -> Elements:
    packed = window.read(position, min(window.size - position, MAX_INFLATED_BYTES))
    # A header is nearly always in the first piece; the pixels behind it need not be inflated.
    limits = (MAX_INFLATED_BYTES,) if whole else (_HEADER_INFLATED_BYTES, _LONGEST_HEADER_BYTES)
    for limit in limits:
        inflated, complete = inflate(packed, limit)
        if whole and not complete:
            break
        try:
            return _read_inflated(inflated, wanted)
        except FilmError:
            if complete:
                raise
    raise FilmError("FILE_TOO_LARGE", f"it inflates to more than {limits[-1] >> 20} MiB")


def _read_inflated(inflated: bytes, wanted: Collection[int]) -> Elements:
    window = Window(BytesIO(inflated), len(inflated))
    elements = _read_data_set(window, 0, DEFLATED_LITTLE_ENDIAN, wanted)
    elements.inflated = inflated
    return elements


def _read_data_set(window: Window, position: int, syntax: str, wanted: Collection[int]) -> Elements:
    encoding = _encoding_of(window.read(position, 8), syntax)
    values: dict[int, Value] = {}
    pixels, _ = _walk(window, position, encoding, wanted, values)
    return Elements(syntax or _native_syntax(encoding), encoding, values, pixels)


def _native_syntax(encoding: Encoding) -> str:
    if encoding.implicit:
        return IMPLICIT_LITTLE_ENDIAN
    return EXPLICIT_BIG_ENDIAN if encoding.big_endian else EXPLICIT_LITTLE_ENDIAN


def _encoding_of(start: bytes, syntax: str) -> Encoding:
    # Writers that declare one encoding and use the other exist: the first element tells.
    if len(start) < 8:
        return Encoding(syntax == IMPLICIT_LITTLE_ENDIAN, syntax == EXPLICIT_BIG_ENDIAN)
    implicit = not (start[4:6] in _LONG or start[4:6] in _SHORT)
    big_endian = syntax == EXPLICIT_BIG_ENDIAN or (not syntax and start[0] == 0 and start[1] != 0)
    return Encoding(implicit, big_endian)


def _read_meta(window: Window) -> tuple[str, int]:
    """The transfer syntax UID ("" if none is given) and the offset of the data set."""
    data = window.data
    if data[128:132] == b"DICM":
        position = 132
    elif _looks_like_data_set(data, window.size):
        position = 0
    else:
        raise FilmError("NOT_DICOM")
    if len(data) == position:
        raise FilmError("TRUNCATED_HEADER", "nothing follows the preamble")
    values: dict[int, Value] = {}
    _, end = _walk(window, position, Encoding(False, False), _META_TAGS, values, only_group=2)
    if _uid(values.get(_META_CLASS)) == MEDIA_STORAGE_DIRECTORY:
        raise FilmError("NOT_DICOM", "it is a DICOMDIR, the index of a medium")
    syntax = _uid(values.get(_META_SYNTAX))
    length = values.get(_META_LENGTH)
    if syntax == DEFLATED_LITTLE_ENDIAN and length is not None and len(length.data) == 4:
        # Deflated bytes may look like another element of the group: here only its length tells.
        end = position + 12 + int(struct.unpack("<L", length.data)[0])
    return syntax, end


def _looks_like_data_set(data: bytes, size: int) -> bool:
    if len(data) < 8:
        return False
    for order in "<>":
        group, element, vr, short = struct.unpack_from(order + "HH2sH", data)
        if group not in (0x0002, 0x0008) or element > 0x1FFF:
            continue
        if vr in _SHORT:
            return bool(8 + short <= size)
        if vr in _LONG:
            return True
        return bool(order == "<" and 8 + struct.unpack_from("<L", data, 4)[0] <= size)
    return False


def _uid(value: Value | None) -> str:
    return value.data.decode("latin-1").strip(" \0") if value else ""


def _truncated(tag: int) -> FilmError:
    return FilmError("TRUNCATED_HEADER", f"the file ends inside element ({tag >> 16:04X},{tag & 0xFFFF:04X})")


def _walk(  # noqa: PLR0912, PLR0915 - one loop, kept together for speed: it runs for every element of every film
    window: Window,
    position: int,
    encoding: Encoding,
    wanted: Collection[int],
    values: dict[int, Value],
    *,
    only_group: int | None = None,
    in_item: bool = False,
) -> tuple[PixelElement | None, int]:
    """Fill ``values`` up to the pixel data; returns them and the offset where the walk ended.

    ``only_group`` stops before the first element of another group; ``in_item`` expects an
    item delimiter at the end.
    """
    order = ">" if encoding.big_endian else "<"
    unpack = struct.Struct(order + "HH2sH").unpack_from
    unpack_long = struct.Struct(order + "L").unpack_from
    implicit = encoding.implicit
    size = window.size
    data, start = window.data, window.start
    # Open sequences and items of undefined length: (is an item, implicit outside, tag, VR, offset of the value).
    nesting: list[tuple[bool, bool, int, bytes, int]] = []
    for _ in range(MAX_ELEMENTS):
        local = position - start
        if not 0 <= local <= len(data) - 12:
            window.move(position)
            data, start, local = window.data, window.start, 0
            if len(data) < 8:
                if data or nesting or in_item:
                    raise FilmError("TRUNCATED_HEADER", "the file ends inside an element or a sequence")
                return None, position
        group, element, vr, length = unpack(data, local)
        if only_group is not None and group != only_group:
            return None, position
        if group == _DELIMITERS:
            (length,) = unpack_long(data, local + 4)
            position += 8
            if element == _ITEM:
                if length == _UNDEFINED:
                    nesting.append((True, implicit, 0, b"", position))
                else:
                    position += length
            elif element == _ITEM_END:
                if not nesting and in_item:
                    return None, position
                if nesting and nesting[-1][0]:
                    implicit = nesting.pop()[1]
            else:
                while nesting:
                    is_item, implicit, tag, vr, offset = nesting.pop()
                    if not is_item:
                        if tag in wanted and not nesting:
                            values[tag] = Value(vr, _value(window, tag, offset, position - offset))
                        break
            continue
        tag = group << 16 | element
        position += 8
        if implicit or not (vr in _SHORT or vr in _LONG):
            # Some writers leave out single value representations: read those as implicit.
            vr, (length,) = b"", unpack_long(data, local + 4)
        elif vr in _LONG:
            if len(data) - local < 12:
                raise _truncated(tag)
            (length,) = unpack_long(data, local + 8)
            position += 4
        if tag in _PIXEL_TAGS and not nesting:
            return PixelElement(tag, vr, position, None if length == _UNDEFINED else length), position
        if length == _UNDEFINED:
            nesting.append((False, implicit, tag, vr, position))
            # PS3.5 section 6.2.2: a UN of undefined length holds implicit VR little endian.
            implicit = implicit or vr == b"UN"
            continue
        if position + length > size:
            raise _truncated(tag)
        if tag in wanted and not nesting:
            local = position - start
            if local + length <= len(data):
                values[tag] = Value(vr, data[local : local + length])
            else:
                values[tag] = Value(vr, _value(window, tag, position, length))
        position += length
    raise FilmError("BAD_HEADER", f"more than {MAX_ELEMENTS} elements before the pixel data")


def _value(window: Window, tag: int, offset: int, length: int) -> bytes:
    if length > MAX_VALUE_BYTES:
        raise FilmError("BAD_HEADER", f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) holds {length} bytes")
    data = window.read(offset, length)
    if len(data) < length:
        raise _truncated(tag)
    return data
