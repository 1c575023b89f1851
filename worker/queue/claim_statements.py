"""The statements that choose what to claim, made once for all claims.

What they ask of a job, and in which order, is told in :mod:`worker.queue.ledger`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Update,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    null,
    select,
    true,
    update,
)

from schema.tables import PRIORITY, SHADOW_PRIORITY, JobKind, JobState, Lane, arrival, bundle_alias, identity, job
from schema.types import database_now, seconds_since
from worker.queue.leases import NO_SHADOW, SHADOW, in_state


def _claim_statement(*conditions: ColumnElement[bool]) -> Update:
    """Choose and lease in one statement.

    The choice is a materialised CTE: as a subquery the planner may run it again and lease
    more than asked for. SQLite leaves FOR UPDATE out; its write lock is taken already.
    """
    earlier, champion = job.alias("earlier"), bundle_alias.alias("champion")
    redundant = exists().where(
        job.c.kind == literal_column("'process'"),
        earlier.c.kind == literal_column("'process'"),
        earlier.c.instance_id == job.c.instance_id,
        earlier.c.bundle_id == bindparam("bundle"),
        earlier.c.revision == bindparam("revision"),
        earlier.c.generation == job.c.generation,
    )
    redundant = redundant.correlate(job)
    # A worker that has not changed over yet leaves what it has read itself to those that have.
    others_serve = exists().where(
        champion.c.alias == literal_column("'champion'"), champion.c.bundle_id != bindparam("bundle")
    )
    chosen = (
        select(job.c.id, redundant.label("redundant"))
        .where(in_state(JobState.READY), *conditions, ~(others_serve & redundant))
        .order_by(job.c.priority, job.c.id)
        .limit(bindparam("count"))
        .with_for_update(skip_locked=True, of=job)
        .cte("chosen")
        .prefix_with("MATERIALIZED")
    )
    binds = (chosen.c.redundant.is_(False)) & (job.c.kind != JobKind.VERIFY.value)

    def unless_redundant(value: Any, otherwise: Any) -> Any:
        return case((chosen.c.redundant, otherwise), else_=value)

    return (
        update(job)
        .where(job.c.id == chosen.c.id)
        .values(
            state=unless_redundant(literal_column("'leased'"), literal_column("'cancelled'")),
            lease_id=unless_redundant(bindparam("lease"), null()),
            bundle_id=case((binds, bindparam("bundle")), else_=null()),
            revision=case((binds, bindparam("revision")), else_=null()),
            attempts=unless_redundant(job.c.attempts + 1, job.c.attempts),
            started_at=unless_redundant(database_now(), job.c.started_at),
            wait_seconds=seconds_since(func.coalesce(job.c.available_at, job.c.created_at)),
            finished_at=unless_redundant(null(), database_now()),
            detail=unless_redundant(job.c.detail, literal_column("'already read with this bundle'")),
        )
        .returning(job.c.id, job.c.state)
    )


_CURRENT = (
    select(arrival.c.id)
    .where(arrival.c.instance_id == job.c.instance_id, arrival.c.current == true())
    .correlate(job)
    .scalar_subquery()
)
#: The arrival of the file that a job reads: its own, or its film's.
FILE_OF_JOB: ColumnElement[int] = func.coalesce(job.c.arrival_id, _CURRENT)


def lies_under() -> ColumnElement[bool]:
    """Whether a job's file lies under one of the parameter ``roots``."""
    return exists().where(identity.c.arrival_id == FILE_OF_JOB, identity.c.root.in_(bindparam("roots", expanding=True)))


_FRESH = job.c.crashes == literal_column("0")
_SUSPECT = job.c.crashes > literal_column("0")
_OF_BUNDLE = (
    SHADOW,
    job.c.priority == literal_column(str(SHADOW_PRIORITY)),
    job.c.bundle_id == bindparam("bundle"),
)
_CANDIDATES: dict[str, tuple[ColumnElement[bool], ...]] = {
    "fresh": (NO_SHADOW, _FRESH),
    "archive": (NO_SHADOW, _FRESH, job.c.priority >= literal_column(str(PRIORITY[Lane.ARCHIVE]))),
    "suspect": (NO_SHADOW, _SUSPECT),
    "shadow": (*_OF_BUNDLE, _FRESH),
    "shadow suspect": (*_OF_BUNDLE, _SUSPECT),
}


@dataclass(frozen=True)
class ClaimStatements:
    """Asks whether anything is ready, or shadow jobs of a bundle and nothing else; claims by candidates."""

    anything: Select[Any]
    only_shadows: Select[Any]
    claims: Mapping[str, Update]

    @classmethod
    def among(cls, *conditions: ColumnElement[bool]) -> ClaimStatements:
        """The statements about the jobs that meet ``conditions``."""
        ready = exists().where(in_state(JobState.READY), NO_SHADOW, *conditions)
        shadows = exists().where(in_state(JobState.READY), *_OF_BUNDLE, *conditions)
        claims = {name: _claim_statement(*which, *conditions) for name, which in _CANDIDATES.items()}
        return cls(select(ready), select(shadows & ~ready), claims)


EVERYWHERE = ClaimStatements.among()
#: About the jobs whose files lie elsewhere than under the parameter ``roots``.
ELSEWHERE = ClaimStatements.among(~lies_under())
