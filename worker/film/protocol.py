"""How pool and decoder child talk: length-prefixed JSON headers and raw arrays, never pickle.

A message is a little-endian 32 bit length, that many bytes of JSON, and then the arrays the
JSON lists under ``"arrays"`` (all the names of one, and its shape), as raw little-endian float32.
Parent → child: ``{"plan": ...}`` or ``{"path": ..., "member": ...}``. Child → parent, per film:
``{"started": PROTOCOL}``, then the prepared film or ``{"code": ..., "detail": ...}``.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from worker.film.prepared import FilmFacts, FloatArray, Geometry, Observation, PreparedFilm

#: Of everything said here and of the names of the preprocessing steps. A new child may be started by a worker whose
#: program has been replaced since.
PROTOCOL = 3

_LENGTH = struct.Struct("<I")
MAX_HEADER_BYTES = 16 << 20

#: Fills a buffer completely; False when the other side is gone before its first byte.
Fill = Callable[[memoryview], bool]


def write_message(stream: BinaryIO, header: dict[str, Any], arrays: dict[str, FloatArray] | None = None) -> None:
    """Send one message; ``stream`` is flushed."""
    arrays = arrays or {}
    names: dict[int, list[str]] = {}
    for name, array in arrays.items():
        names.setdefault(id(array), []).append(name)
    different = [arrays[shared[0]] for shared in names.values()]
    listed = [[shared, list(array.shape)] for shared, array in zip(names.values(), different, strict=True)]
    text = json.dumps({**header, "arrays": listed}).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    for array in different:
        if array.size:
            stream.write(np.ascontiguousarray(array, "<f4").data.cast("B"))
    stream.flush()


def read_message(fill: Fill) -> tuple[dict[str, Any], dict[str, FloatArray]] | None:
    """Receive one message, or None when the other side is gone.

    Raises
    ------
    EOFError
        The other side went in the middle of a message.
    ValueError
        The bytes are no message.
    """
    prefix = bytearray(_LENGTH.size)
    if not fill(memoryview(prefix)):
        return None
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise ValueError("the message is too long")
    text = bytearray(length)
    _demand(fill, memoryview(text))
    header: dict[str, Any] = json.loads(text)
    arrays: dict[str, FloatArray] = {}
    for names, shape in header.pop("arrays"):
        array = np.empty(shape, "<f4")
        if array.size:
            _demand(fill, array.data.cast("B"))
        arrays |= dict.fromkeys(names, array)
    return header, arrays


def film_to_header(film: PreparedFilm) -> dict[str, Any]:
    """A prepared film without its tensors, as JSON can hold it."""
    header = {field.name: getattr(film, field.name) for field in dataclasses.fields(film) if field.name != "tensors"}
    header["geometry"] = dataclasses.asdict(film.geometry)
    header["facts"] = dataclasses.asdict(film.facts)
    header["observations"] = [dataclasses.asdict(observation) for observation in film.observations]
    return header


def film_from_header(header: dict[str, Any], tensors: dict[str, FloatArray]) -> PreparedFilm:
    """The inverse of :func:`film_to_header`."""
    return PreparedFilm(
        tensors=tensors,
        geometry=Geometry(**header["geometry"]),
        facts=FilmFacts(**header["facts"]),
        file_hash=header["file_hash"],
        content_hash=header["content_hash"],
        observations=[Observation(**observation) for observation in header["observations"]],
        seconds=header["seconds"],
    )


def _demand(fill: Fill, buffer: memoryview) -> None:
    if not fill(buffer):
        raise EOFError
