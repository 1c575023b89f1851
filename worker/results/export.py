"""Results as files: label maps as PNG, a table of everything that came as CSV.

Both read in short pages or a stream, so that memory stays flat however many films there
are, and a file appears under its name whole or not at all.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from sqlalchemy import Connection, Select, func, select

from schema.database import Database
from schema.findings import Finding
from schema.queries import DEFAULT_ROOTS, seen_by, source_text
from schema.regions import REGION_BY_NAME, REGIONS
from schema.tables import ArrivalState, arrival, bundle, failure_flag, finding_score, identity, instance_identity
from schema.tables import segmentation as segmentation_table
from schema.view_tables import film_state, published_result
from worker.film.geometry import to_film_grid
from worker.film.prepared import Geometry
from worker.results.files import whole_file, writing_to
from worker.results.masks import ByteArray, DamagedMaskError, decode_mask

log = logging.getLogger(__name__)

#: Called with the number of films done and the number of all.
Progress = Callable[[int, int], None]

CSV_NAME = "films.csv"
CSV_COLUMNS = ("sop_instance_uid", "source", "state", "code", "bundle", "flags")

_PAGE = 200
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
#: What a spreadsheet would take for a formula (OWASP, CSV injection).
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def export_png(
    database: Database,
    out: Path,
    *,
    submission_id: int | None = None,
    since: datetime | None = None,
    progress: Progress | None = None,
) -> int:
    """Write ``<SOP Instance UID>.png`` for each film with a published result.

    Each is an 8-bit label map on the film's own grid with the values of :func:`exported_values`.

    Parameters
    ----------
    out
        Folder; made if needed, existing files of the same name are replaced.
    submission_id
        Only films this submission saw.
    since
        Only results written at or after this time.

    Returns
    -------
    int
        How many files were written; a result that is damaged in the database is logged and left out.

    Raises
    ------
    worker.errors.CarinaError
        The folder cannot be written.
    """
    results = _png_query(submission_id, since)
    with database.read() as connection:
        total = connection.scalar(select(func.count()).select_from(results.subquery())) or 0
    written, last = 0, 0
    values: dict[int, ByteArray] = {}
    with writing_to(out, "The export"):
        while page := _page(database, results, last):
            for row in page:
                try:
                    labels = decode_mask(row.mask, (row.height, row.width))
                except DamagedMaskError as error:
                    log.error("job %d: %s", row.job_id, error)
                    continue
                if row.bundle_id not in values:
                    values[row.bundle_id] = _values_of_bundle(database, row.bundle_id)
                film = to_film_grid(values[row.bundle_id][labels], geometry_of(row))
                encoded = cv2.imencode(".png", film)[1].tobytes()
                with whole_file(out / png_name(row.sop_instance_uid), "wb") as stream:
                    stream.write(encoded)
                written += 1
                if progress:
                    progress(written, total)
            last = page[-1].job_id
    return written


def exported_values(regions: Sequence[str]) -> ByteArray:
    """What stands in a file for each of a bundle's own label values.

    A bundle counts its regions 0, 1, 2, ... in an order of its own. In a file each region has its value of
    :data:`schema.regions.REGIONS` whatever bundle found it; regions by any other name follow, in the bundle's order.

    Parameters
    ----------
    regions
        Names, in the order of the bundle's label values.

    Returns
    -------
    uint8 (256,): own value → value in a file.
    """
    others = itertools.count(len(REGIONS))
    table = np.zeros(256, np.uint8)
    for own, name in enumerate(regions):
        table[own] = REGION_BY_NAME[name].value if name in REGION_BY_NAME else next(others)
    return table


def _values_of_bundle(database: Database, bundle_id: int) -> ByteArray:
    with database.read() as connection:
        manifest = connection.scalars(select(bundle.c.manifest).where(bundle.c.id == bundle_id)).one()
    return exported_values([region["name"] for region in manifest["regions"]])


def geometry_of(row: Any) -> Geometry:
    """The film's geometry from a row of ``segmentation``."""
    return Geometry(row.film_rows, row.film_columns, row.flip_columns, row.flip_rows)


def png_name(sop_instance_uid: str) -> str:
    """File name of a film's label map.

    A UID that is none (PS3.5 section 9.1) has what could harm a file name replaced and a
    hash added, so that no two films share a name.
    """
    if _UID.fullmatch(sop_instance_uid):
        return f"{sop_instance_uid}.png"
    digest = hashlib.sha256(sop_instance_uid.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    harmless = re.sub(r"[^A-Za-z0-9.]+", "_", sop_instance_uid).strip(".")
    return f"{harmless[:64]}-{digest}.png"


def export_csv(
    database: Database,
    out: Path,
    *,
    submission_id: int | None = None,
    since: datetime | None = None,
    roots: Mapping[str, str | Path] = DEFAULT_ROOTS,
    progress: Progress | None = None,
) -> int:
    """Write ``films.csv``: one row per file that came, other than those that are not DICOM.

    ``state`` is the job's for a film, else what became of the file; ``flags`` are rule names
    joined by ``;``; a finding's column holds its probability (0-1), empty where there is none.

    Parameters
    ----------
    out
        Folder; made if needed.
    submission_id
        Only files this submission saw, those it found registered already included.
    since
        Only files that came at or after this time.
    roots
        Root name → folder, for the column ``source``: see :func:`schema.queries.source_text`.

    Returns
    -------
    int
        How many rows were written.

    Raises
    ------
    worker.errors.CarinaError
        The folder cannot be written.
    """
    with database.read() as connection, writing_to(out, "The export"), whole_file(out / CSV_NAME) as stream:
        findings = _findings(connection)
        films = _csv_query(submission_id, since)
        total = connection.scalar(select(func.count()).select_from(films.subquery())) or 0
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*CSV_COLUMNS, *findings])
        written = 0
        streamed = connection.execute(films.order_by(arrival.c.id), execution_options={"yield_per": _PAGE})
        for page in streamed.partitions():
            for cells in _csv_rows(connection, page, findings, roots):
                writer.writerow([_harmless(cell) for cell in cells])
            written += len(page)
            if progress:
                progress(written, total)
    return written


def _png_query(submission_id: int | None, since: datetime | None) -> Select[Any]:
    query = (
        select(
            published_result.c.job_id,
            published_result.c.bundle_id,
            instance_identity.c.sop_instance_uid,
            *(segmentation_table.c[name] for name in ("mask", "height", "width", "film_rows", "film_columns")),
            segmentation_table.c.flip_columns,
            segmentation_table.c.flip_rows,
        )
        .join(segmentation_table, segmentation_table.c.job_id == published_result.c.job_id)
        .join(instance_identity, instance_identity.c.instance_id == published_result.c.instance_id)
    )
    if submission_id is not None:
        files = select(arrival.c.instance_id).where(seen_by(submission_id, arrival.c.id))
        query = query.where(published_result.c.instance_id.in_(files))
    if since is not None:
        query = query.where(published_result.c.finished_at >= since)
    return query


def _page(database: Database, results: Select[Any], after: int) -> Sequence[Any]:
    # A transaction per page: a long one would keep the database from tidying up.
    page = results.where(published_result.c.job_id > after).order_by(published_result.c.job_id).limit(_PAGE)
    with database.read() as connection:
        return connection.execute(page).all()


def _csv_query(submission_id: int | None, since: datetime | None) -> Select[Any]:
    query = (
        select(
            film_state.c.job_id,
            film_state.c.state,
            func.coalesce(film_state.c.code, "").label("code"),
            func.coalesce(film_state.c.bundle, "").label("bundle"),
            func.coalesce(instance_identity.c.sop_instance_uid, "").label("uid"),
            func.coalesce(identity.c.root, "").label("root"),
            func.coalesce(identity.c.path, "").label("path"),
            func.coalesce(identity.c.member, "").label("member"),
        )
        .select_from(arrival)
        .join(film_state, film_state.c.arrival_id == arrival.c.id)
        .outerjoin(identity, identity.c.arrival_id == arrival.c.id)
        .outerjoin(instance_identity, instance_identity.c.instance_id == arrival.c.instance_id)
        .where(arrival.c.state != ArrivalState.NOT_DICOM.value)
    )
    if submission_id is not None:
        query = query.where(seen_by(submission_id, arrival.c.id))
    if since is not None:
        query = query.where(arrival.c.arrived_at >= since)
    return query


def _findings(connection: Connection) -> list[str]:
    """The ten findings in the paper's order, then what other bundles know."""
    known = [str(finding) for finding in Finding]
    others = {
        entry["finding"]
        for manifest in connection.scalars(select(bundle.c.manifest))
        for entry in manifest.get("findings", [])
    }
    return [*known, *sorted(others.difference(known))]


def _csv_rows(
    connection: Connection, page: Sequence[Any], findings: Sequence[str], roots: Mapping[str, str | Path]
) -> Iterator[list[str]]:
    jobs = [row.job_id for row in page if row.state == "done"]
    flags: dict[int, set[str]] = defaultdict(set)
    scores: dict[int, dict[str, str]] = defaultdict(dict)
    for job_id, rule in connection.execute(
        select(failure_flag.c.job_id, failure_flag.c.rule).where(failure_flag.c.job_id.in_(jobs))
    ):
        flags[job_id].add(rule)
    for job_id, finding, probability in connection.execute(
        select(finding_score.c.job_id, finding_score.c.finding, finding_score.c.probability).where(
            finding_score.c.job_id.in_(jobs)
        )
    ):
        scores[job_id][finding] = f"{probability:.6f}"
    for row in page:
        yield [
            row.uid,
            source_text(row.root, row.path, row.member, roots),
            row.state,
            row.code,
            row.bundle,
            ";".join(sorted(flags.get(row.job_id, ()))),
            *(scores.get(row.job_id, {}).get(finding, "") for finding in findings),
        ]


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell
