"""Which films an export for research holds, how they are named, and who may ask for their identity.

Without identity a film is its key, a keyed hash of its SOP Instance UID: every format of one site names it alike,
so that files can be joined with tables, and nobody without the site key can tell which film it is.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Select, func, insert, select

from schema.database import Database
from schema.keys import uid_key
from schema.queries import seen_by
from schema.tables import arrival, audit_event, bundle, instance, instance_identity, segmentation
from schema.view_tables import published_result
from worker.errors import CarinaError
from worker.results.export import png_name
from worker.results.outputs.objects import Naming
from worker.settings import Settings, site_key

_PAGE = 200
_FILM = (
    "key", "patient_key", "study_key", "series_key", "held_out", "modality", "body_part", "view_position", "station",
    "sex", "age_days", "film_rows", "film_columns", "row_spacing", "column_spacing", "spacing_source",
)  # fmt: skip
_IDENTITY = (
    "sop_instance_uid", "study_instance_uid", "series_instance_uid", "patient_id", "issuer_of_patient_id",
    "accession_number", "study_date",
)  # fmt: skip


def count_films(database: Database, submission_id: int | None) -> int:
    """How many films have a published result."""
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(_query(submission_id).subquery())) or 0


def pages(database: Database, submission_id: int | None) -> Iterator[Sequence[Any]]:
    """Films with a published result in pages of at most 200 rows, each in a transaction of its own."""
    last = 0
    while True:
        query = _query(submission_id).where(published_result.c.job_id > last)
        with database.read() as connection:
            page = connection.execute(query.order_by(published_result.c.job_id).limit(_PAGE)).all()
        if not page:
            return
        yield page
        last = page[-1].job_id


def stem(row: Any, naming: Naming) -> str:
    """What the files of a film begin with: its SOP Instance UID, or its key without identity."""
    return png_name(row.sop_instance_uid).removesuffix(".png") if naming.identified else str(row.key)


def allow_identity(database: Database, settings: Settings, what: str, submission_id: int | None) -> None:
    """Let an export name its films, and record that it did (``audit_event``).

    Raises
    ------
    worker.errors.CarinaError
        This machine does not have the site key that the database's keys were made with.
    """
    key = site_key(settings)
    with database.read() as connection:
        film = connection.execute(
            select(instance.c.key, instance_identity.c.sop_instance_uid)
            .join(instance_identity, instance_identity.c.instance_id == instance.c.id)
            .limit(1)
        ).first()
    if film is not None and film.key != uid_key(key, film.sop_instance_uid):
        raise CarinaError(
            f"The site key in {settings.home} is not the one this database was made with, so identity is not exported. "
            "Run the export where that key is, or without --with-identity."
        )
    detail = {"films": count_films(database, submission_id), "submission": submission_id}
    with database.write() as connection:
        connection.execute(
            insert(audit_event).values(
                actor=getpass.getuser(), action="export_with_identity", subject=what[:128], detail=detail
            )
        )


def _query(submission_id: int | None) -> Select[Any]:
    query = (
        select(
            published_result.c.job_id,
            published_result.c.bundle_id,
            published_result.c.bundle,
            published_result.c.flagged,
            published_result.c.finished_at,
            bundle.c.manifest,
            *(instance.c[name] for name in _FILM),
            *(instance_identity.c[name] for name in _IDENTITY),
            *(segmentation.c[name] for name in ("mask", "height", "width", "flip_columns", "flip_rows")),
            *(segmentation.c[name] for name in ("carina_threshold", "repaired_pixels", "engine")),
            segmentation.c.film_rows.label("mask_rows"),
            segmentation.c.film_columns.label("mask_columns"),
        )
        .join(instance, instance.c.id == published_result.c.instance_id)
        .join(instance_identity, instance_identity.c.instance_id == instance.c.id)
        .join(bundle, bundle.c.id == published_result.c.bundle_id)
        .outerjoin(segmentation, segmentation.c.job_id == published_result.c.job_id)
    )
    if submission_id is not None:
        files = select(arrival.c.instance_id).where(seen_by(submission_id, arrival.c.id))
        query = query.where(published_result.c.instance_id.in_(files))
    return query
