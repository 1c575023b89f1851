"""What the header says about the pixel data (PS3.3 C.7.6.3), checked before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from worker.errors import FilmError
from worker.film import values
from worker.film.elements import Elements

MAX_PIXELS = 64_000_000

PIXEL_TAGS: dict[str, int] = {
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "PlanarConfiguration": 0x00280006,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
}
_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_THREE_SAMPLES = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420"})


@dataclass(frozen=True)
class PixelLayout:
    """A single-frame picture of 8 or 16 bits a sample, at most 64 million samples.

    ``samples`` is 1 or 3; ``photometric`` one of MONOCHROME1, MONOCHROME2, RGB, YBR_*;
    ``1 <= bits_stored <= high_bit + 1 <= bits_allocated``.
    """

    rows: int
    columns: int
    samples: int
    photometric: str
    planar: bool
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    @property
    def bytes_per_sample(self) -> int:
        """1 or 2."""
        return self.bits_allocated // 8

    @property
    def byte_count(self) -> int:
        """Bytes of the native picture."""
        return self.rows * self.columns * self.samples * self.bytes_per_sample


def layout_of(elements: Elements) -> PixelLayout:
    """The checked layout.

    Raises
    ------
    FilmError
        ``MISSING_TAG``, ``BAD_VALUE``, ``MULTI_FRAME``, ``COLOUR`` (a palette),
        ``UNSUPPORTED_PIXEL_LAYOUT``, ``PICTURE_TOO_LARGE``.
    """
    frames = values.written_integer(elements.values.get(PIXEL_TAGS["NumberOfFrames"]), "NumberOfFrames")
    if frames is not None and frames > 1:
        raise FilmError("MULTI_FRAME", f"{frames} frames")
    photometric = values.code(elements.values.get(PIXEL_TAGS["PhotometricInterpretation"]))
    if not photometric:
        raise FilmError("MISSING_TAG", "PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        raise FilmError("COLOUR", "a colour palette")
    rows, columns = _number(elements, "Rows"), _number(elements, "Columns")
    samples = _number(elements, "SamplesPerPixel")
    if rows == 0 or columns == 0:
        raise FilmError("BAD_VALUE", f"the picture has {rows} rows and {columns} columns")
    if (samples, photometric in _GREY, photometric in _THREE_SAMPLES) not in ((1, True, False), (3, False, True)):
        raise FilmError("UNSUPPORTED_PIXEL_LAYOUT", f"{samples} samples per pixel do not fit the photometry")
    if rows * columns * samples > MAX_PIXELS:
        raise FilmError("PICTURE_TOO_LARGE", f"{rows} x {columns} pixels of {samples} samples")
    bits_allocated, bits_stored = _number(elements, "BitsAllocated"), _number(elements, "BitsStored")
    high_bit = values.integer(elements.values.get(PIXEL_TAGS["HighBit"]), elements.encoding, "HighBit")
    high_bit = bits_stored - 1 if high_bit is None else high_bit
    if bits_allocated not in (8, 16):
        raise FilmError("UNSUPPORTED_PIXEL_LAYOUT", f"{bits_allocated} bits allocated")
    if not 1 <= bits_stored <= high_bit + 1 <= bits_allocated:
        detail = f"{bits_stored} bits stored up to bit {high_bit} of {bits_allocated}"
        raise FilmError("UNSUPPORTED_PIXEL_LAYOUT", detail)
    representation = _number(elements, "PixelRepresentation")
    if representation not in (0, 1):
        raise FilmError("BAD_VALUE", f"PixelRepresentation is {representation}")
    planar = values.integer(
        elements.values.get(PIXEL_TAGS["PlanarConfiguration"]), elements.encoding, "PlanarConfiguration"
    )
    return PixelLayout(
        rows, columns, samples, photometric, planar == 1, bits_allocated, bits_stored, high_bit, representation == 1
    )


def _number(elements: Elements, name: str) -> int:
    number = values.integer(elements.values.get(PIXEL_TAGS[name]), elements.encoding, name)
    if number is None:
        raise FilmError("MISSING_TAG", name)
    return number
