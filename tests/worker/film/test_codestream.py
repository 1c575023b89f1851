from __future__ import annotations

import dicom_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import FilmError
from worker.film.codestream import check_jpeg, check_jpeg_2000, check_jpeg_ls, check_rle, fragments_of
from worker.film.pixels import PixelLayout

LAYOUT = PixelLayout(40, 32, 1, "MONOCHROME2", False, 16, 12, 11, False)
PIXELS = dicom_files.chest_pixels(40, 32)
GUARDS = {
    dicom_files.JPEG_LOSSLESS_SV1: check_jpeg,
    dicom_files.JPEG_EXTENDED: check_jpeg,
    dicom_files.JPEG_LS: check_jpeg_ls,
    dicom_files.J2K: check_jpeg_2000,
    dicom_files.HTJ2K: check_jpeg_2000,
}
FRAMES = {syntax: dicom_files.encode_frame(PIXELS, 12, syntax) for syntax in GUARDS}


@pytest.mark.parametrize("syntax", GUARDS)
def test_an_intact_codestream_says_what_it_is(syntax: str) -> None:
    stream = GUARDS[syntax](FRAMES[syntax], LAYOUT)
    assert (stream.rows, stream.columns, stream.components) == (40, 32, 1)
    assert 12 <= stream.precision <= 16


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(GUARDS)), st.data())
def test_no_prefix_of_a_codestream_passes(syntax: str, data: st.DataObject) -> None:
    frame = FRAMES[syntax]
    cut = data.draw(st.integers(0, len(frame) - (3 if "4.9" in syntax or "4.20" in syntax else 1)))
    with pytest.raises(FilmError):
        GUARDS[syntax](frame[:cut], LAYOUT)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([check_jpeg, check_jpeg_ls, check_jpeg_2000, check_rle]), st.binary(max_size=300), st.data())
def test_guards_raise_nothing_but_film_errors(guard, junk: bytes, data: st.DataObject) -> None:
    start = data.draw(
        st.sampled_from([b"", b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x02\0\0\0\x40\0\0\0", *FRAMES.values()])
    )
    try:
        guard(start[: data.draw(st.integers(0, len(start)))] + junk, LAYOUT)
    except FilmError as error:
        assert error.code in {"TRUNCATED_PIXELS", "CODESTREAM_MISMATCH", "DECODE_FAILED"}


def test_jpeg_ls_under_a_jpeg_syntax_is_refused() -> None:
    with pytest.raises(FilmError) as caught:
        check_jpeg(FRAMES[dicom_files.JPEG_LS], LAYOUT)
    assert caught.value.code == "DECODE_FAILED"


def test_an_open_tile_part_needs_the_end_marker() -> None:
    frame = bytearray(FRAMES[dicom_files.HTJ2K])
    place = frame.index(b"\xff\x90")
    frame[place + 6 : place + 10] = bytes(4)
    check_jpeg_2000(bytes(frame), LAYOUT)
    with pytest.raises(FilmError) as caught:
        check_jpeg_2000(bytes(frame[:-10]), LAYOUT)
    assert caught.value.code == "TRUNCATED_PIXELS"


@given(st.binary(max_size=200))
def test_fragments_of_junk(junk: bytes) -> None:
    try:
        frame = fragments_of(junk, 0)
    except FilmError as error:
        assert error.code in {"TRUNCATED_PIXELS", "DECODE_FAILED"}
    else:
        assert frame in junk
