"""Regions that readers drew or corrected: into the database, and back.

A label map is an 8-bit picture on the film's own grid, as ``carina export --format png`` writes it, with the values of
:data:`schema.regions.REGIONS`. Maps are only ever added; of what one reader drew on one film the latest counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, func, insert, select

from schema.database import Database
from schema.keys import uid_key
from schema.regions import REGIONS
from schema.tables import LabelSource, audit_event, instance, label_map
from worker.errors import CarinaError
from worker.intake.lookups import slices
from worker.monitor.labels import READER_LENGTH
from worker.results.masks import MASK_ENCODING, decode_mask, encode_mask

ByteArray = npt.NDArray[np.uint8]

_SUFFIX = ".png"
_AT_ONCE = 100


@dataclass
class MapsReport:
    """What came of a folder: pictures, how many were new, films not known, and what is wrong with a picture.

    ``problems`` and ``unknown`` name files by their place among the folder's pictures, by name, counted from 1.
    """

    pictures: int = 0
    new: int = 0
    unknown: list[int] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    written: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "pictures": self.pictures,
            "new": self.new,
            "unknown_films": len(self.unknown),
            "unknown_pictures": self.unknown,
            "problems": [{"picture": place, "problem": what} for place, what in self.problems],
            "written": self.written,
        }


@dataclass(frozen=True)
class _Picture:
    """A picture that can be recorded."""

    film: int
    labels: ByteArray


def import_maps(
    database: Database,
    site_key: bytes,
    folder: Path,
    *,
    reader: str,
    source: LabelSource,
    labelled_at: datetime | None = None,
    dry_run: bool = False,
    skip_bad: bool = False,
    actor: str = "",
) -> MapsReport:
    """Record the label maps ``<SOP Instance UID>.png`` of a folder.

    A picture that is the same as its reader's last one of the film is not new. All are looked at before any is
    recorded; one that is wrong keeps all out, unless ``skip_bad``.

    Raises
    ------
    CarinaError
        The folder cannot be read or has no PNG files, or the reader's name cannot be used.
    """
    if not 1 <= len(reader) <= READER_LENGTH:
        raise CarinaError(f"A reader needs a pseudonym of 1 to {READER_LENGTH} characters.")
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == _SUFFIX)
    except OSError as error:
        raise CarinaError(f"{folder} cannot be read: {error.strerror}.") from None
    if not files:
        raise CarinaError(f"{folder} has no PNG files.")
    report = MapsReport(pictures=len(files))
    films = _films(database, site_key, files)
    # Looked at once to judge all of them, and once more to record them: a folder need not fit into memory.
    pictures = _Folder(database, files, films, reader, source)
    report.new = sum(1 for _ in pictures.new(report))
    if dry_run or (report.problems and not skip_bad):
        return report
    time = labelled_at or datetime.now(UTC)
    waiting: list[dict[str, Any]] = []
    for picture in pictures.new(MapsReport()):
        height, width = picture.labels.shape
        waiting.append(
            {
                "instance_id": picture.film,
                "reader": reader,
                "source": str(source),
                "height": height,
                "width": width,
                "encoding": MASK_ENCODING,
                "mask": encode_mask(picture.labels),
                "labelled_at": time,
            }
        )
        if len(waiting) >= _AT_ONCE:
            _insert(database, waiting)
    _insert(database, waiting)
    report.written = True
    with database.write() as connection:
        detail = {"pictures": report.pictures, "new": report.new}
        connection.execute(insert(audit_event).values(actor=actor, action="labels masks", subject="", detail=detail))
    return report


def current_maps(
    connection: Connection, *, sources: Collection[LabelSource], films: Collection[int] | None = None
) -> list[Any]:
    """The label map that counts of each film and reader, without the picture, film by film."""
    columns = label_map.c
    place = func.row_number().over(
        partition_by=(columns.instance_id, columns.reader), order_by=(columns.labelled_at.desc(), columns.id.desc())
    )
    ranked = select(columns.id, columns.instance_id, columns.reader, columns.labelled_at, place.label("place")).where(
        columns.source.in_(sorted(str(source) for source in sources))
    )
    if films is not None:
        ranked = ranked.where(columns.instance_id.in_(films))
    rows = ranked.subquery()
    return list(connection.execute(select(rows).where(rows.c.place == 1).order_by(rows.c.instance_id, rows.c.id)))


def picture_of(connection: Connection, map_id: int) -> ByteArray:
    """A label map, uint8 of shape (film_rows, film_columns); raises :class:`worker.results.masks.DamagedMaskError`."""
    query = select(label_map.c.mask, label_map.c.height, label_map.c.width).where(label_map.c.id == map_id)
    row = connection.execute(query).one()
    return decode_mask(row.mask, (row.height, row.width))


def _films(database: Database, site_key: bytes, files: Collection[Path]) -> dict[str, Any]:
    """Name of a file without its suffix → the film's row."""
    keys = {uid_key(site_key, path.name[: -len(_SUFFIX)]): path.name for path in files}
    columns = instance.c
    query = select(columns.key, columns.id, columns.film_rows, columns.film_columns)
    with database.read() as connection:
        return {
            keys[row.key]: row
            for some in slices(keys)
            for row in connection.execute(query.where(columns.key.in_(some)))
        }


@dataclass(frozen=True)
class _Folder:
    """A folder's pictures and the films that they are of."""

    database: Database
    files: Sequence[Path]
    films: Mapping[str, Any]
    reader: str
    source: LabelSource

    def new(self, report: MapsReport) -> Iterator[_Picture]:
        """The pictures that can be recorded and are new; ``report`` is told of those that cannot."""
        for place, path in enumerate(self.files, start=1):
            film = self.films.get(path.name)
            if film is None:
                report.unknown.append(place)
                continue
            try:
                labels = _read(path, film)
            except ValueError as error:
                report.problems.append((place, str(error)))
                continue
            if not _is_known(self.database, film.id, self.reader, self.source, labels):
                yield _Picture(film.id, labels)


def _read(path: Path, film: Any) -> ByteArray:
    try:
        picture = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error):
        picture = None
    if picture is None:
        raise ValueError("it cannot be read as a PNG picture")
    if picture.dtype != np.uint8 or picture.ndim != 2:
        raise ValueError("it is not an 8-bit picture of one channel")
    if film.film_rows is None:
        raise ValueError("no worker has read the film yet, so the size of its grid is not known")
    if picture.shape != (film.film_rows, film.film_columns):
        height, width = picture.shape
        raise ValueError(f"it has {height} x {width} pixels, the film {film.film_rows} x {film.film_columns}")
    highest = len(REGIONS) - 1
    if int(picture.max()) > highest:
        raise ValueError(f"it has the value {int(picture.max())}; regions have the values 0 to {highest}")
    return np.asarray(picture, np.uint8)


def _is_known(database: Database, film: int, reader: str, source: LabelSource, labels: ByteArray) -> bool:
    with database.read() as connection:
        known = [row for row in current_maps(connection, sources=[source], films=[film]) if row.reader == reader]
        return bool(known) and bool(np.array_equal(picture_of(connection, known[0].id), labels))


def _insert(database: Database, rows: list[dict[str, Any]]) -> None:
    if rows:
        with database.write() as connection:
            connection.execute(insert(label_map), rows)
        rows.clear()
