"""Where do two bundles disagree? A picture of the films that differ most."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sqlalchemy import Select, and_, select

from schema.database import Database
from schema.tables import arrival, bundle, identity, job, segmentation
from worker.errors import FilmError
from worker.inference.compare import Comparison, FilmAgreement, regions_of
from worker.intake.sources import resolve
from worker.queue.outcomes import SourceReference
from worker.results.files import whole_file, writing_to
from worker.results.masks import DamagedMaskError, decode_mask
from worker.results.overlay import display_size, draw_regions, labels_on, shrink
from worker.settings import Settings

ByteArray = npt.NDArray[np.uint8]
#: File of the film → 8-bit grey picture of the whole film, or None.
ReadPicture = Callable[[Path, str | None], ByteArray | None]

JSON_NAME, PICTURE_NAME = "comparison.json", "comparison.png"

#: Pixels: the longest side of a picture, what is between two, and the line above them.
_PANEL, _MARGIN, _LINE = 320, 8, 22


def write_comparison(
    database: Database, settings: Settings, comparison: Comparison, out: Path, read_picture: ReadPicture
) -> tuple[Path, ...]:
    """Write ``comparison.json`` and, where masks differ, ``comparison.png``; returns what was written.

    The picture shows the films that differ most, a row each: the film, the first bundle's regions, the
    second's. It names no patient and no file: a film is its number and the start of its key.

    Raises
    ------
    worker.errors.CarinaError
        The folder cannot be written.
    """
    with writing_to(out, "The comparison"):
        with whole_file(out / JSON_NAME) as stream:
            stream.write(json.dumps(comparison.to_json(), indent=2) + "\n")
        written = [out / JSON_NAME]
        rows = [_film_row(database, settings, comparison, film, read_picture) for film in comparison.worst]
        shown = [row for row in rows if row is not None]
        if shown:
            encoded = cv2.imencode(".png", cv2.cvtColor(np.vstack(shown), cv2.COLOR_RGB2BGR))[1].tobytes()
            with whole_file(out / PICTURE_NAME, "wb") as stream:
                stream.write(encoded)
            written.append(out / PICTURE_NAME)
    return tuple(written)


def _film_row(
    database: Database, settings: Settings, comparison: Comparison, film: FilmAgreement, read_picture: ReadPicture
) -> ByteArray | None:
    with database.read() as connection:
        rows = {row.id: row for row in connection.execute(_SHOWN.where(job.c.id.in_(film.jobs)))}
    if len(rows) < len(film.jobs):
        return None
    first, second = (rows[number] for number in film.jobs)
    picture = _picture(first, settings, read_picture)
    panels = [picture]
    for row in (first, second):
        try:
            labels = labels_on(picture.shape, decode_mask(row.mask, (row.height, row.width)))
        except DamagedMaskError:
            return None
        panels.append(draw_regions(picture, labels, regions_of(row.manifest).values()))
    titles = (f"film {film.number}, {film.key}", comparison.first, f"{comparison.second}, Dice {film.mean_dice:.3f}")
    return np.hstack([_titled(panel, title) for panel, title in zip(panels, titles, strict=True)])


def _picture(row: Any, settings: Settings, read_picture: ReadPicture) -> ByteArray:
    """The film, or black where its file is not there any more."""
    picture = None
    if row.path is not None:
        source = SourceReference(row.root, row.path, row.file_member, row.size, row.modified_ns)
        try:
            picture = read_picture(resolve(settings, source), row.file_member or None)
        except FilmError:
            picture = None
    if picture is None:
        picture = np.zeros(display_size(row.film_rows, row.film_columns, _PANEL), np.uint8)
    return shrink(picture, _PANEL)


def _titled(panel: ByteArray, title: str) -> ByteArray:
    colour = panel if panel.ndim == 3 else cv2.cvtColor(panel, cv2.COLOR_GRAY2RGB)
    tile = np.full((_PANEL + _LINE + _MARGIN, _PANEL + _MARGIN, 3), 255, np.uint8)
    tile[_LINE : _LINE + panel.shape[0], : panel.shape[1]] = colour
    cv2.putText(tile, title, (2, _LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return tile


_SHOWN: Select[Any] = (
    select(
        job.c.id,
        bundle.c.manifest,
        *(segmentation.c[name] for name in ("mask", "height", "width", "film_rows", "film_columns")),
        *(identity.c[name] for name in ("root", "path", "size", "modified_ns")),
        identity.c.member.label("file_member"),
    )
    .join(bundle, bundle.c.id == job.c.bundle_id)
    .join(segmentation, segmentation.c.job_id == job.c.id)
    .outerjoin(arrival, and_(arrival.c.instance_id == job.c.instance_id, arrival.c.current))
    .outerjoin(identity, identity.c.arrival_id == arrival.c.id)
)
