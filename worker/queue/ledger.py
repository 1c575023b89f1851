"""How does a film come to exactly one worker, and back if the worker cannot keep it?

The SQL row is the work. A worker registers under its name, claims a batch with one
conditional UPDATE, and either finishes it (:mod:`worker.queue.finish`) or releases it.
Nothing but the database decides who holds what.

Who is next
-----------
By priority, then by age, with two exceptions so that nobody waits for ever:

- one claim in twenty looks at the archive first, however many urgent films come in;
- one claim in four looks at the suspects first: films whose last holder died. A suspect is
  always claimed alone, and otherwise only when nothing else is ready.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal_column,
    null,
    select,
    true,
    update,
)

from schema.database import Database
from schema.tables import PRIORITY, JobKind, JobState, Lane, arrival, attempt, audit_event, identity, instance, job
from schema.tables import lease as lease_table
from schema.types import database_now, seconds_since
from worker.queue.leases import UNBOUND, UNCOUNTED, drop_if_empty, in_state
from worker.queue.outcomes import Claim, ClaimedJob, SourceReference
from worker.queue.workers import WorkerIdentity, deregister_worker, register_worker

__all__ = [
    "WorkerIdentity",
    "cancel",
    "claim",
    "deregister_worker",
    "load_claim",
    "register_worker",
    "release",
    "retry",
]

#: Share of claims that look at the archive first.
ARCHIVE_SHARE = 0.05
#: Share of claims that look at the suspects first.
SUSPECT_SHARE = 0.25


def claim(
    database: Database,
    worker: WorkerIdentity,
    *,
    bundle_id: int,
    revision: int,
    limit: int,
    lease_seconds: float,
    lease_id: str | None = None,
    suspects: bool = True,
    draw: Callable[[], float] = random.random,
) -> Claim | None:
    """Lease up to ``limit`` ready jobs, bound to a bundle and revision; None if nothing is ready.

    A film that already has a job for the same bundle, revision and generation is not read
    again: its open job is cancelled on the way, so that it does not stay in front of the queue.

    Parameters
    ----------
    lease_id
        The lease to make; a caller who names it can release it after a lost COMMIT.
    suspects
        Whether a suspect may be claimed: a caller that is busy with one says no.
    draw
        Returns a number in [0, 1) that decides whose turn it is.
    """
    lease_id = lease_id or str(uuid.uuid4())
    with database.write() as connection:
        # An idle worker asks every few seconds: finding nothing must not cost a disk flush.
        if not connection.scalar(_ANYTHING):
            return None
        connection.execute(
            insert(lease_table).values(
                id=lease_id, worker_id=worker.id, boot_id=worker.boot_id, expires_at=database_now(lease_seconds)
            )
        )
        for candidates, count in _turns(draw(), limit, suspects):
            parameters = {"lease": lease_id, "bundle": bundle_id, "revision": revision, "count": count}
            while taken := connection.execute(_CLAIM[candidates], parameters).all():
                if any(row.state == JobState.LEASED for row in taken):
                    found = load_claim(connection, lease_id)
                    if found is not None:
                        return replace(found, bundle_id=bundle_id)
        drop_if_empty(connection, lease_id)
    return None


def load_claim(connection: Connection, lease_id: str) -> Claim | None:
    """The jobs under a lease and where their films lie; None if it holds none.

    A job whose film is no longer registered anywhere is cancelled.
    """
    rows = connection.execute(_LOAD, {"lease": lease_id}).all()
    homeless = [row.id for row in rows if row.path is None]
    if homeless:
        connection.execute(
            update(job)
            .where(job.c.id.in_(homeless))
            .values(state=JobState.CANCELLED.value, **UNBOUND, detail="its file is no longer registered")
        )
    jobs = tuple(_claimed(row) for row in rows if row.path is not None)
    if not jobs:
        return None
    bundle_id = next((row.bundle_id for row in rows if row.bundle_id is not None), 0)
    return Claim(lease_id, bundle_id, jobs)


def release(database: Database, lease_id: str, jobs: Sequence[ClaimedJob] | None = None) -> int:
    """Give jobs back that were not started (default: all under the lease); the attempt does not count."""
    conditions: list[ColumnElement[bool]] = [job.c.lease_id == lease_id]
    if jobs is not None:
        conditions.append(job.c.id.in_([item.id for item in jobs]))
    with database.write() as connection:
        released = connection.execute(
            update(job)
            .where(*conditions)
            .values(state=JobState.READY.value, **UNBOUND, attempts=UNCOUNTED, available_at=database_now())
        ).rowcount
        drop_if_empty(connection, lease_id)
    return released


def retry(
    database: Database, *, actor: str, codes: Sequence[str] | None = None, ids: Sequence[int] | None = None
) -> int:
    """Make failed jobs ready again, all or those with certain codes or job ids; audited.

    A film that is being worked on anyway, or whose content has changed since, is left alone.

    Returns
    -------
    int
        How many jobs are ready again.
    """
    other = job.alias("other")
    newer_or_open = exists().where(
        other.c.instance_id == job.c.instance_id,
        other.c.kind == literal_column("'process'"),
        other.c.state.in_([literal_column(f"'{state}'") for state in ("ready", "delayed", "leased")])
        | ((other.c.state == literal_column("'failed'")) & (other.c.id > job.c.id)),
    )
    current = exists().where(instance.c.id == job.c.instance_id, instance.c.generation == job.c.generation)
    conditions: list[ColumnElement[bool]] = [in_state(JobState.FAILED)]
    conditions.append((job.c.kind == JobKind.VERIFY.value) | (~newer_or_open & current))
    if codes is not None:
        conditions.append(job.c.code.in_(codes))
    if ids is not None:
        conditions.append(job.c.id.in_(ids))
    with database.write() as connection:
        retried = connection.execute(
            update(job)
            .where(*conditions)
            .values(
                state=JobState.READY.value,
                **UNBOUND,
                attempts=0,
                crashes=0,
                code=None,
                stage=None,
                detail="",
                finished_at=None,
                available_at=database_now(),
            )
            .returning(job.c.id)
        ).all()
        if retried:
            connection.execute(
                insert(attempt), [{"job_id": row.id, "number": 0, "outcome": "retried"} for row in retried]
            )
            _audit(connection, actor, "retry", {"codes": _plain(codes), "ids": _plain(ids), "jobs": len(retried)})
    return len(retried)


def cancel(database: Database, *, actor: str, ids: Sequence[int]) -> int:
    """Cancel jobs that wait (ready or delayed); audited. Returns how many."""
    with database.write() as connection:
        cancelled = connection.execute(
            update(job)
            .where(job.c.id.in_(ids), in_state(JobState.READY) | in_state(JobState.DELAYED))
            .values(state=JobState.CANCELLED.value, finished_at=database_now(), detail="cancelled by request")
        ).rowcount
        if cancelled:
            _audit(connection, actor, "cancel", {"ids": _plain(ids), "jobs": cancelled})
    return cancelled


def _turns(drawn: float, limit: int, suspects: bool) -> list[tuple[str, int]]:
    """Whom to look for, in this order, until somebody is found."""
    fresh, alone = ("fresh", limit), ("suspect", 1)
    if not suspects:
        return [fresh] if drawn >= ARCHIVE_SHARE else [("archive", limit), fresh]
    if drawn < ARCHIVE_SHARE:
        return [("archive", limit), fresh, alone]
    if drawn < ARCHIVE_SHARE + SUSPECT_SHARE:
        return [alone, fresh]
    return [fresh, alone]


def _claim_statement(*conditions: ColumnElement[bool]) -> Update:
    """Choose and lease in one statement.

    The choice is a materialised CTE: as a subquery the planner may run it again and lease
    more than asked for. SQLite leaves FOR UPDATE out; its write lock is taken already.
    """
    earlier = job.alias("earlier")
    redundant = exists().where(
        job.c.kind == literal_column("'process'"),
        earlier.c.kind == literal_column("'process'"),
        earlier.c.instance_id == job.c.instance_id,
        earlier.c.bundle_id == bindparam("bundle"),
        earlier.c.revision == bindparam("revision"),
        earlier.c.generation == job.c.generation,
    )
    chosen = (
        select(job.c.id, redundant.correlate(job).label("redundant"))
        .where(in_state(JobState.READY), *conditions)
        .order_by(job.c.priority, job.c.id)
        .limit(bindparam("count"))
        .with_for_update(skip_locked=True, of=job)
        .cte("chosen")
        .prefix_with("MATERIALIZED")
    )
    binds = (chosen.c.redundant.is_(False)) & (job.c.kind == JobKind.PROCESS.value)

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


_ANYTHING = select(exists().where(in_state(JobState.READY)))
_FRESH = job.c.crashes == literal_column("0")
_CLAIM: dict[str, Update] = {
    "fresh": _claim_statement(_FRESH),
    "archive": _claim_statement(_FRESH, job.c.priority >= literal_column(str(PRIORITY[Lane.ARCHIVE]))),
    "suspect": _claim_statement(job.c.crashes > literal_column("0")),
}

_CURRENT = (
    select(arrival.c.id)
    .where(arrival.c.instance_id == job.c.instance_id, arrival.c.current == true())
    .correlate(job)
    .scalar_subquery()
)
_LOAD = (
    select(
        job.c.id,
        job.c.kind,
        job.c.instance_id,
        job.c.generation,
        job.c.attempts,
        job.c.crashes,
        job.c.bundle_id,
        identity.c.arrival_id,
        identity.c.root,
        identity.c.path,
        identity.c.member,
        identity.c.size,
        identity.c.modified_ns,
    )
    .select_from(job.outerjoin(identity, identity.c.arrival_id == func.coalesce(job.c.arrival_id, _CURRENT)))
    .where(job.c.lease_id == bindparam("lease"))
    .order_by(job.c.priority, job.c.id)
)


def _claimed(row: Any) -> ClaimedJob:
    return ClaimedJob(
        id=row.id,
        kind=JobKind(row.kind),
        instance_id=row.instance_id,
        arrival_id=row.arrival_id,
        source=SourceReference(row.root, row.path, row.member, row.size, row.modified_ns),
        generation=row.generation,
        attempts=row.attempts,
        crashes=row.crashes,
    )


def _audit(connection: Connection, actor: str, action: str, detail: dict[str, Any]) -> None:
    connection.execute(insert(audit_event).values(actor=actor, action=action, subject="job", detail=detail))


def _plain(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)
