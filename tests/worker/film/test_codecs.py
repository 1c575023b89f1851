from __future__ import annotations

import struct

import dicom_files
import numpy as np
import pytest

from worker.errors import FilmError
from worker.film import codecs
from worker.film.elements import Elements, read_elements
from worker.film.pixels import PIXEL_TAGS, PixelLayout, layout_of


def opened(data: bytes) -> tuple[Elements, bytes, PixelLayout]:
    from io import BytesIO

    elements = read_elements(BytesIO(data), len(data), frozenset(PIXEL_TAGS.values()), whole=True)
    return elements, elements.inflated or data, layout_of(elements)


def decoded(data: bytes) -> codecs.Picture:
    elements, pixel_source, layout = opened(data)
    return codecs.decode(elements, pixel_source, layout)


def code_of(data: bytes) -> str:
    with pytest.raises(FilmError) as caught:
        decoded(data)
    return caught.value.code


def frame_bounds(data: bytes, dataset) -> tuple[int, int]:
    frame = dicom_files.frame_of(dataset)
    start = data.index(frame)
    return start, start + len(frame)


@pytest.mark.parametrize("syntax", [*dicom_files.NATIVE_SYNTAXES, *dicom_files.LOSSLESS_SYNTAXES])
@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(64, 48), (61, 47)])
def test_lossless_syntaxes_are_bit_exact(syntax: str, bits: int, shape: tuple[int, int]) -> None:
    pixels = dicom_files.chest_pixels(*shape, bits=bits)
    dataset = dicom_files.make_dataset(pixels, BitsStored=bits, HighBit=bits - 1)
    picture = decoded(dicom_files.to_bytes(dicom_files.encode(dataset, syntax)))
    assert np.array_equal(picture.samples, pixels)
    assert picture.frame is None


@pytest.mark.parametrize("syntax", [dicom_files.EXPLICIT, dicom_files.BIG_ENDIAN, dicom_files.RLE, dicom_files.J2K])
def test_signed_pixels_keep_their_bits(syntax: str) -> None:
    pixels = (dicom_files.chest_pixels(bits=12).astype(np.int32) - 2048).astype(np.int16)
    dataset = dicom_files.make_dataset(pixels)
    picture = decoded(dicom_files.to_bytes(dicom_files.encode(dataset, syntax)))
    assert np.array_equal(picture.samples.astype(picture.samples.dtype.newbyteorder("=")).view(np.int16), pixels)


@pytest.mark.parametrize(
    ("syntax", "bits"),
    [(s, b) for s in dicom_files.LOSSY_SYNTAXES for b in (8, 12) if (s, b) != (dicom_files.JPEG, 12)],
)
def test_lossy_syntaxes_come_close_and_keep_their_frame(syntax: str, bits: int) -> None:
    pixels = dicom_files.chest_pixels(bits=bits)
    dataset = dicom_files.encode(dicom_files.make_dataset(pixels, BitsStored=bits, HighBit=bits - 1), syntax)
    picture = decoded(dicom_files.to_bytes(dataset))
    assert np.abs(picture.samples.astype(int) - pixels).mean() < 0.02 * (1 << bits)
    assert picture.frame is not None and dicom_files.frame_of(dataset).startswith(picture.frame[:100])


def test_every_syntax_has_one_named_decoder() -> None:
    assert set(codecs.SYNTAXES) == set(dicom_files.SYNTAXES)
    for syntax in dicom_files.NATIVE_SYNTAXES:
        assert codecs.SYNTAXES[syntax].decode is None
    for syntax in (*dicom_files.LOSSLESS_SYNTAXES, *dicom_files.LOSSY_SYNTAXES):
        assert codecs.SYNTAXES[syntax].decode is not None and codecs.SYNTAXES[syntax].guard is not None
        assert codecs.SYNTAXES[syntax].lossy == (syntax in dicom_files.LOSSY_SYNTAXES)


@pytest.mark.parametrize("syntax", dicom_files.SYNTAXES)
@pytest.mark.parametrize("share", [0.95, 0.5, 0.1])
def test_a_file_cut_short_is_refused(syntax: str, share: float) -> None:
    bits = 8 if syntax == dicom_files.JPEG else 12
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(bits=bits), BitsStored=bits, HighBit=bits - 1)
    data = dicom_files.to_bytes(dicom_files.encode(dataset, syntax))
    assert code_of(data[: int(len(data) * share)]) in {"TRUNCATED_PIXELS", "TRUNCATED_HEADER", "NO_PIXEL_DATA"}


@pytest.mark.parametrize("syntax", [*dicom_files.LOSSLESS_SYNTAXES, *dicom_files.LOSSY_SYNTAXES])
@pytest.mark.parametrize("share", [0.95, 0.5, 0.1])
def test_a_frame_cut_short_in_a_whole_file_is_refused(syntax: str, share: float) -> None:
    bits = 8 if syntax == dicom_files.JPEG else 12
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(bits=bits), BitsStored=bits, HighBit=bits - 1)
    dataset = dicom_files.encode(dataset, syntax)
    frame = dicom_files.frame_of(dataset)
    dicom_files.set_frame(dataset, frame[: int(len(frame) * share)])
    # The last RLE segment and JPEG-LS have no length of their own: there the decoder refuses.
    assert code_of(dicom_files.to_bytes(dataset)) in {"TRUNCATED_PIXELS", "DECODE_FAILED"}


@pytest.mark.parametrize("syntax", [*dicom_files.LOSSLESS_SYNTAXES, *dicom_files.LOSSY_SYNTAXES])
def test_a_codestream_of_another_size_is_refused(syntax: str) -> None:
    bits = 8 if syntax == dicom_files.JPEG else 12
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(bits=bits), BitsStored=bits, HighBit=bits - 1)
    dataset = dicom_files.encode(dataset, syntax)
    dataset.Rows, dataset.Columns = dataset.Rows * 2, dataset.Columns
    assert code_of(dicom_files.to_bytes(dataset)) in {"CODESTREAM_MISMATCH", "TRUNCATED_PIXELS"}


def test_a_codestream_with_too_many_bits_is_refused() -> None:
    frame = dicom_files.encode_frame(dicom_files.chest_pixels(bits=12), 12, dicom_files.JPEG_LOSSLESS_SV1)
    dataset = dicom_files.encode(
        dicom_files.make_dataset(dicom_files.chest_pixels(bits=8)), dicom_files.JPEG_LOSSLESS_SV1
    )
    dicom_files.set_frame(dataset, frame)
    assert code_of(dicom_files.to_bytes(dataset)) == "CODESTREAM_MISMATCH"


@pytest.mark.parametrize(
    "syntax", [dicom_files.JPEG_LOSSLESS_SV1, dicom_files.JPEG_LS, dicom_files.J2K, dicom_files.HTJ2K]
)
def test_junk_instead_of_a_codestream_is_refused(syntax: str) -> None:
    dataset = dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels()), syntax)
    dicom_files.set_frame(dataset, bytes(range(256)) * 20)
    assert code_of(dicom_files.to_bytes(dataset)) == "DECODE_FAILED"


def test_corrupted_htj2k_is_refused_although_its_decoder_says_nothing() -> None:
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels(400, 400))
    dataset = dicom_files.encode(dataset, dicom_files.HTJ2K)
    frame = bytearray(dicom_files.frame_of(dataset))
    rng = np.random.default_rng(3)
    for place in rng.integers(frame.index(b"\xff\x93") + 200, len(frame) - 4, 20):
        frame[place] = int(rng.integers(256))
    dicom_files.set_frame(dataset, bytes(frame))
    assert code_of(dicom_files.to_bytes(dataset)) == "DECODE_FAILED"


@pytest.mark.parametrize("syntax", [dicom_files.EXPLICIT, dicom_files.RLE, dicom_files.JPEG_LS])
def test_a_picture_of_65535_squared_is_refused_before_any_allocation(syntax: str) -> None:
    dataset = dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels()), syntax)
    dataset.Rows = dataset.Columns = 65535
    assert code_of(dicom_files.to_bytes(dataset)) == "PICTURE_TOO_LARGE"


def test_an_rle_frame_too_short_for_its_picture_is_refused() -> None:
    dataset = dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels()), dicom_files.RLE)
    dataset.Rows = dataset.Columns = 7999
    assert code_of(dicom_files.to_bytes(dataset)) == "TRUNCATED_PIXELS"


def test_an_rle_frame_of_another_depth_is_refused() -> None:
    dataset = dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels(bits=8)), dicom_files.RLE)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    assert code_of(dicom_files.to_bytes(dataset)) == "CODESTREAM_MISMATCH"


def test_native_pixels_may_be_padded_but_not_short() -> None:
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels())
    whole = dataset.PixelData
    dataset.PixelData = whole + b"\0" * 512
    assert np.array_equal(decoded(dicom_files.to_bytes(dataset)).samples, dicom_files.chest_pixels())
    dataset.PixelData = whole[:-2]
    assert code_of(dicom_files.to_bytes(dataset)) == "TRUNCATED_PIXELS"


def test_bytes_in_big_endian_words() -> None:
    pixels = dicom_files.chest_pixels(20, 31, bits=8)
    dataset = dicom_files.make_dataset(pixels)
    dataset.file_meta.TransferSyntaxUID = dicom_files.BIG_ENDIAN
    dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    assert np.array_equal(decoded(dicom_files.to_bytes(dataset)).samples, pixels)


def test_unknown_syntax_and_missing_pixels() -> None:
    dataset = dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels()), dicom_files.JPEG_LS)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    assert code_of(dicom_files.to_bytes(dataset)) == "UNSUPPORTED_TRANSFER_SYNTAX"
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels())
    del dataset.PixelData
    assert code_of(dicom_files.to_bytes(dataset)) == "NO_PIXEL_DATA"


def test_a_compressed_syntax_with_native_pixels_and_the_reverse() -> None:
    dataset = dicom_files.make_dataset(dicom_files.chest_pixels())
    data = dicom_files.to_bytes(dataset)
    assert code_of(data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")) == "DECODE_FAILED"
    data = dicom_files.to_bytes(dicom_files.encode(dataset, dicom_files.RLE))
    assert code_of(data.replace(b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2.1\0")) == "DECODE_FAILED"


def test_a_frame_in_many_fragments_with_a_fill_byte_and_without_sequence_delimiter() -> None:
    dataset = dicom_files.encode(dicom_files.make_dataset(dicom_files.chest_pixels()), dicom_files.JPEG_LS)
    frame = dicom_files.frame_of(dataset).rstrip(b"\0")
    frame += b"\xff" * (4 - len(frame) % 4)
    pieces = [frame[start : start + 1000] for start in range(0, len(frame), 1000)]
    data = dicom_files.to_bytes(dataset)
    head = data[: data.index(b"\xe0\x7f\x10\x00OB") + 12]
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(piece)) + piece for piece in [b"", *pieces])
    assert np.array_equal(decoded(head + items).samples, dicom_files.chest_pixels())
