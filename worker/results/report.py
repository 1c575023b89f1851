"""One page for people: what came, what came out, what needs a look.

The page is a single file without scripts: it can be mailed, archived and opened offline. It
names no patient, no UID and no path: a film is its number and the start of its key, which
the database ties to the file for those who may see it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Connection, func, select, true

from schema import findings as finding_names
from schema.database import Database
from schema.queries import seen_by, submission_counts
from schema.regions import RegionDefinition
from schema.tables import bundle, identity, instance, segmentation
from schema.view_tables import film_state
from worker import __version__
from worker.errors import CODES, FilmError, sentence
from worker.intake.sources import resolve
from worker.queue.outcomes import SourceReference
from worker.results.files import whole_file, writing_to
from worker.results.film_card import (
    KEY_DIGITS,
    FindingBar,
    FlagGroup,
    activation,
    engine_words,
    finding_bars,
    flag_groups,
    leading_finding,
    read_flags,
    read_heat,
    read_scores,
    template_environment,
)
from worker.results.masks import DamagedMaskError, decode_mask
from worker.results.outputs.stored import regions_of
from worker.results.overlay import heat_layer, jpeg_address, labels_on, png_address, region_layer, shrink
from worker.results.result import Flag
from worker.settings import Settings

log = logging.getLogger(__name__)

#: File of the film → 8-bit grey picture of the whole film as the networks saw it, or None.
ReadPicture = Callable[[Path, str | None], npt.NDArray[np.uint8] | None]

REPORT_NAME = "report.html"

#: Why a file that never became a film of its own is listed, and what to do about it.
_ARRIVAL_WORDS = {
    "conflict": ("The file names itself like a known film but shows another picture.", "Run: carina conflicts list"),
}


@dataclass(frozen=True)
class FilmCard:
    """One film with a result; pictures are ``data:`` addresses, None where there is none."""

    number: int
    key: str
    flags: tuple[FlagGroup, ...]
    findings: tuple[FindingBar, ...]
    picture: str | None
    size: tuple[int, int]
    regions: str | None
    heat: str | None
    heat_title: str


@dataclass(frozen=True)
class Trouble:
    """A file without a result, why, and what to do next."""

    number: int
    key: str
    state: str
    code: str
    sentence: str
    advice: str


def write_report(
    database: Database,
    settings: Settings,
    out_dir: Path,
    *,
    submission_id: int | None,
    read_picture: ReadPicture,
    limit: int = 200,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``report.html`` about one submission, or about everything.

    Parameters
    ----------
    out_dir
        Folder; made if needed, an earlier report there is replaced.
    submission_id
        Which submission's files; None for all.
    read_picture
        Shows a film: uint8 (rows, columns), the whole film as the networks saw it.
    limit
        At most so many films, and so many files without a result; flagged films come first.
    progress
        Called with the number of films drawn and the number of all to draw.

    Returns
    -------
    pathlib.Path
        The page.

    Raises
    ------
    worker.errors.CarinaError
        The folder cannot be written.
    """
    with database.read() as connection:
        which = true() if submission_id is None else seen_by(submission_id, film_state.c.arrival_id)
        counts = submission_counts(connection, submission_id)
        bundles = _bundles(connection, which)
        troubles, troubles_in_all = _troubles(connection, which, limit)
        rows = _film_rows(connection, which, limit)
        jobs = [row.job_id for row in rows]
        flags, scores, heat = (
            read_flags(connection, jobs),
            read_scores(connection, jobs),
            read_heat(connection, jobs),
        )
    regions = {row.id: regions_of(row.manifest) for row in bundles}
    cards = []
    for row in rows:
        picture = _picture(row, settings, read_picture)
        job = row.job_id
        cards.append(
            _card(
                row, picture, regions=regions[row.bundle_id], flags=flags[job], scores=scores[job], heat=heat.get(job)
            )
        )
        if progress:
            progress(len(cards), len(rows))
    page = (
        template_environment("worker.results")
        .get_template("report.html.jinja")
        .render(
            made_at=datetime.now(UTC),
            version=__version__,
            submission_id=submission_id,
            counts=counts,
            bundles=bundles,
            engines=sorted({engine_words(row.engine) for row in rows}),
            legend=_legend(bundles),
            films=cards,
            films_in_all=counts.done,
            troubles=troubles,
            troubles_in_all=troubles_in_all,
        )
    )
    with writing_to(out_dir, "The report"), whole_file(out_dir / REPORT_NAME) as stream:
        stream.write(page)
    return out_dir / REPORT_NAME


def _bundles(connection: Connection, which: ColumnElement[bool]) -> Sequence[Any]:
    done = (
        select(film_state.c.bundle_id, func.count().label("films"))
        .where(which, film_state.c.state == "done")
        .group_by(film_state.c.bundle_id)
        .subquery()
    )
    return connection.execute(
        select(bundle.c.id, bundle.c.name, bundle.c.version, bundle.c.manifest, done.c.films)
        .join(done, done.c.bundle_id == bundle.c.id)
        .order_by(bundle.c.id.desc())
    ).all()


def _film_rows(connection: Connection, which: ColumnElement[bool], limit: int) -> Sequence[Any]:
    """Films with a result, the flagged ones first; flips do not matter: see ``read_picture``."""
    return connection.execute(
        select(
            film_state.c.arrival_id,
            film_state.c.job_id,
            film_state.c.bundle_id,
            instance.c.key,
            identity.c.root,
            identity.c.path,
            identity.c.member,
            identity.c.size,
            identity.c.modified_ns,
            segmentation.c.mask,
            segmentation.c.height,
            segmentation.c.width,
            segmentation.c.engine,
        )
        .join(instance, instance.c.id == film_state.c.instance_id)
        .join(segmentation, segmentation.c.job_id == film_state.c.job_id)
        .outerjoin(identity, identity.c.arrival_id == film_state.c.arrival_id)
        .where(which, film_state.c.state == "done")
        .order_by(film_state.c.flagged.desc(), film_state.c.arrival_id)
        .limit(limit)
    ).all()


def _troubles(connection: Connection, which: ColumnElement[bool], limit: int) -> tuple[list[Trouble], int]:
    listed = film_state.c.state.in_(("failed", "rejected", "ineligible", *_ARRIVAL_WORDS))
    total = connection.scalar(select(func.count()).select_from(film_state).where(which, listed)) or 0
    rows = connection.execute(
        select(film_state, instance.c.key)
        .outerjoin(instance, instance.c.id == film_state.c.instance_id)
        .where(which, listed)
        .order_by(film_state.c.state, film_state.c.code, film_state.c.arrival_id)
        .limit(limit)
    )
    return [_trouble(row) for row in rows], total


def _trouble(row: Any) -> Trouble:
    words, advice = _ARRIVAL_WORDS.get(row.state, ("The reason is not known to this version.", "Run: carina failed"))
    if row.code in CODES:
        words, advice = sentence(row.code, row.detail), CODES[row.code].advice
    return Trouble(row.arrival_id, (row.key or "")[:KEY_DIGITS], row.state, row.code or "", words, advice)


def _picture(row: Any, settings: Settings, read_picture: ReadPicture) -> npt.NDArray[np.uint8] | None:
    if row.path is None:
        return None
    source = SourceReference(row.root, row.path, row.member, row.size, row.modified_ns)
    try:
        # A file that changed since is not the film the result is about.
        path = resolve(settings, source)
    except FilmError:
        return None
    picture = read_picture(path, row.member or None)
    return None if picture is None else shrink(picture)


def _card(
    row: Any,
    picture: npt.NDArray[np.uint8] | None,
    *,
    regions: Sequence[RegionDefinition],
    flags: Sequence[Flag],
    scores: Sequence[Any],
    heat: Any,
) -> FilmCard:
    # Without its picture a film is shown as its regions alone.
    shape = (row.height, row.width) if picture is None else picture.shape
    shown = leading_finding(scores)
    warm = activation(heat, shown) if picture is not None else None
    return FilmCard(
        number=row.arrival_id,
        key=row.key[:KEY_DIGITS],
        flags=tuple(flag_groups(flags)),
        findings=finding_bars(scores),
        picture=None if picture is None else jpeg_address(picture),
        size=(shape[1], shape[0]),
        regions=_region_picture(row, shape, regions),
        heat=None if warm is None else png_address(heat_layer(warm, shape)),
        heat_title=finding_names.title(shown) if shown else "",
    )


def _region_picture(row: Any, shape: tuple[int, ...], regions: Sequence[RegionDefinition]) -> str | None:
    try:
        labels = decode_mask(row.mask, (row.height, row.width))
    except DamagedMaskError as error:
        log.error("job %d: %s", row.job_id, error)
        return None
    return png_address(region_layer(labels_on(shape, labels), regions))


def _legend(bundles: Sequence[Any]) -> list[dict[str, Any]]:
    """Title, colour and origin of each region of the bundles, background left out."""
    legend: dict[tuple[str, str], dict[str, Any]] = {}
    for row in bundles:
        for region in row.manifest["regions"]:
            if region["value"] != 0:
                legend.setdefault((region["name"], region["origin"]), region)
    return list(legend.values())
