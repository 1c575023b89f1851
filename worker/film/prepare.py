"""One film from bytes to network inputs: what the decoder child does for each request."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO

from worker.errors import FilmError
from worker.film import codecs, preprocess
from worker.film.content import content_hash
from worker.film.elements import read_elements
from worker.film.facts import facts_of
from worker.film.geometry import GEOMETRY_TAGS
from worker.film.normalise import normalise
from worker.film.pixels import PIXEL_TAGS, layout_of
from worker.film.prepared import PreparedFilm
from worker.film.reader import HEADER_TAGS, header_of
from worker.film.rescale import RESCALE_TAGS, rescale_of
from worker.film.source import MAX_FILE_BYTES, FilmSource, open_source
from worker.film.stored import OVERLAY_TAGS, stored_values
from worker.film.valid_area import AREA_TAGS
from worker.film.voi import VOI_TAGS

Plan = Mapping[str, Sequence[Mapping[str, Any]]]

_WANTED = frozenset(
    {*HEADER_TAGS.values(), *PIXEL_TAGS.values(), *OVERLAY_TAGS}
    | {*GEOMETRY_TAGS, *RESCALE_TAGS, *AREA_TAGS, *VOI_TAGS}
)
_NO_MEMORY = -4  # cv2.Error.StsNoMem


def prepare(source: FilmSource, plan: Plan) -> PreparedFilm:
    """Read, guard, decode, normalise, hash and preprocess one film.

    Parameters
    ----------
    source
        The film's file.
    plan
        Member name → its preprocessing steps, already checked.

    Raises
    ------
    FilmError
        Any code of the stages read, decode, normalise and preprocess; nothing else.
    """
    seconds: dict[str, float] = {}
    with _only_film_errors("DECODE_FAILED"):
        with _timed(seconds, "read"):
            data = read_bytes(source)
            file_hash = hashlib.sha256(data).hexdigest()
        with _timed(seconds, "decode"):
            elements = read_elements(BytesIO(data), len(data), _WANTED, whole=True)
            header = header_of(elements)
            layout = layout_of(elements)
            picture = codecs.decode(elements, data if elements.inflated is None else elements.inflated, layout)
        with _timed(seconds, "normalise"):
            stored = stored_values(picture, layout, elements)
            rescale = rescale_of(elements, signed=layout.signed)
            digest = content_hash(picture, stored, layout, rescale, elements)
            normalised = normalise(stored, rescale, elements)
            facts, seen = facts_of(header, elements, normalised)
    with _only_film_errors("PREPROCESS_FAILED"), _timed(seconds, "preprocess"):
        tensors = preprocess.apply_plan(plan, normalised.film, normalised.valid)
    return PreparedFilm(
        tensors, normalised.geometry, facts, file_hash, digest, [*normalised.observations, *seen], seconds
    )


def read_bytes(source: FilmSource) -> bytes:
    """All bytes of a film.

    Raises
    ------
    FilmError
        As :func:`worker.film.source.open_source`, and ``SOURCE_CHANGED`` when the file's size
        or time of change moved meanwhile.
    """
    with open_source(source.path, source.member) as (stream, size):
        if size > MAX_FILE_BYTES:
            raise FilmError("FILE_TOO_LARGE", f"more than {MAX_FILE_BYTES >> 20} MiB")
        before = source.path.stat()
        data = _read_all(stream, size)
        after = source.path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FilmError("SOURCE_CHANGED")
    if len(data) < size:
        raise FilmError("READ_ERROR", "fewer bytes came than the file has")
    return data


def _read_all(stream: BinaryIO, size: int) -> bytes:
    pieces: list[bytes] = []
    missing = size
    while missing > 0 and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


@contextmanager
def _only_film_errors(code: str) -> Iterator[None]:
    # What libraries say may quote the file; the class of the exception never does.
    try:
        yield
    except FilmError:
        raise
    except MemoryError:
        raise FilmError("DECODE_MEMORY") from None
    except Exception as error:
        if getattr(error, "code", None) == _NO_MEMORY:
            raise FilmError("DECODE_MEMORY") from None
        raise FilmError(code, type(error).__name__) from None
