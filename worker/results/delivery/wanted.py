"""Which outputs of which results does a destination want? As SQL, for one destination and one kind of output."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Insert, Select, Table, exists, literal, literal_column, select
from sqlalchemy.dialects import postgresql, sqlite

from schema.outputs import OutputKind
from schema.tables import PRIORITY, DeliveryState, delivery, finding_score, heatmap, job, segmentation
from schema.types import UtcDateTime, database_now
from schema.view_tables import published_result
from worker.peers.configuration import Rules

#: Output → the table that must have a row of the job: nothing can be made without.
_MADE_OF: dict[OutputKind, Table] = {
    OutputKind.SEGMENTATION: segmentation,
    OutputKind.OVERLAY: segmentation,
    OutputKind.HEATMAP: heatmap,
}
_COLUMNS = ("destination_id", "job_id", "output", "revision", "priority", "state", "attempts", "detail", "created_at")


def wanted(
    destination_id: int,
    rules: Rules,
    output: OutputKind,
    *,
    since: datetime | None = None,
    films: Collection[int] | None = None,
) -> Select[Any]:
    """The rows of ``delivery`` that are missing.

    Parameters
    ----------
    since
        Only results that were finished at or after this time.
    films
        Only of these instances.
    """
    query = (
        select(
            literal(destination_id),
            published_result.c.job_id,
            literal(str(output)),
            job.c.revision,
            job.c.priority,
            literal(DeliveryState.READY.value),
            literal(0),
            literal(""),
            database_now(),
        )
        .select_from(published_result.join(job, job.c.id == published_result.c.job_id))
        .where(
            ~exists().where(
                delivery.c.destination_id == destination_id,
                delivery.c.job_id == published_result.c.job_id,
                delivery.c.output == str(output),
                delivery.c.revision == job.c.revision,
            )
        )
    )
    if since is not None:
        query = query.where(published_result.c.finished_at >= literal(since, UtcDateTime()))
    if films is not None:
        query = query.where(published_result.c.instance_id.in_(films))
    if output in _MADE_OF:
        table = _MADE_OF[output]
        query = query.where(exists().where(table.c.job_id == published_result.c.job_id))
    if rules.only_flagged:
        query = query.where(published_result.c.flagged == literal_column("1"))
    if rules.only_positive:
        query = query.where(
            exists().where(
                finding_score.c.job_id == published_result.c.job_id,
                finding_score.c.finding.in_(rules.only_positive),
                finding_score.c.positive,
            )
        )
    if rules.lanes:
        query = query.where(job.c.priority.in_([PRIORITY[lane] for lane in rules.lanes]))
    return query


def put_in(query: Select[Any], dialect: str) -> Insert:
    """Insert what :func:`wanted` finds; what another process inserts in the same moment is left to it."""
    insert: Any = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement: Insert = insert(delivery).from_select(_COLUMNS, query, include_defaults=False).on_conflict_do_nothing()
    return statement
