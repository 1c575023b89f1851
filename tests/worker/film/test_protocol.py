from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.film.prepared import FilmFacts, Geometry, Observation, PreparedFilm
from worker.film.protocol import film_from_header, film_to_header, read_message, write_message


def filler(data: bytes):
    stream = BytesIO(data)
    return lambda buffer: stream.readinto(buffer) == len(buffer)


def test_a_film_travels_unchanged() -> None:
    tensors = {"a": np.random.default_rng(0).random((1, 3, 4), np.float32), "b": np.zeros((0, 2), np.float32)}
    film = PreparedFilm(
        tensors, Geometry(3, 4, True, False, 0.1, 0.2, "corrected"),
        FilmFacts("1.2", "1.3", "MONOCHROME1", "DX", "CHEST", "PA", 12, None, "v1:lut", 0.25, 0.125),
        "f" * 64, "c" * 64, [Observation("bad_rescale", -1.0, "negative"), Observation("voi_fallback")], {"read": 0.1},
    )  # fmt: skip
    stream = BytesIO()
    write_message(stream, film_to_header(film), film.tensors)
    message = read_message(filler(stream.getvalue()))
    assert message is not None
    received = film_from_header(*message)
    assert {name: array.tolist() for name, array in received.tensors.items()} == {
        name: array.tolist() for name, array in tensors.items()
    }
    assert (received.geometry, received.facts, received.observations) == (film.geometry, film.facts, film.observations)
    assert (received.file_hash, received.content_hash, received.seconds) == ("f" * 64, "c" * 64, {"read": 0.1})


def test_an_array_of_two_members_travels_once() -> None:
    array = np.arange(3000, dtype=np.float32).reshape(3, 1000)
    streams = BytesIO(), BytesIO()
    write_message(streams[0], {}, {"a": array, "b": array, "c": array[:1]})
    write_message(streams[1], {}, {"a": array, "b": array.copy(), "c": array[:1]})
    assert len(streams[1].getvalue()) - len(streams[0].getvalue()) > 0.9 * array.nbytes
    for stream in streams:
        message = read_message(filler(stream.getvalue()))
        assert message is not None
        assert list(message[1]) == ["a", "b", "c"]
        np.testing.assert_array_equal(message[1]["b"], array)
        np.testing.assert_array_equal(message[1]["c"], array[:1])


def test_names_that_are_no_text() -> None:
    stream = BytesIO()
    write_message(stream, {"path": "a\udcff.dcm"})
    message = read_message(filler(stream.getvalue()))
    assert message is not None and message[0] == {"path": "a\udcff.dcm"}


@given(st.data())
def test_a_cut_message_is_the_end_or_an_error(data: st.DataObject) -> None:
    stream = BytesIO()
    write_message(stream, {"started": True}, {"a": np.ones((2, 2), np.float32)})
    cut = data.draw(st.integers(0, len(stream.getvalue()) - 1))
    if cut < 4:
        assert read_message(filler(stream.getvalue()[:cut])) is None
    else:
        with pytest.raises(EOFError):
            read_message(filler(stream.getvalue()[:cut]))


def test_an_absurd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        read_message(filler(b"\xff\xff\xff\xff"))
