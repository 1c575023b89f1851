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

Shadow jobs, for a bundle on trial, wait for no worker but one that has this bundle, and are
claimed only when nothing else is ready at all.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    exists,
    insert,
    literal_column,
    select,
    update,
)

from schema.database import Database
from schema.tables import (
    JobKind,
    JobState,
    attempt,
    audit_event,
    identity,
    instance,
    job,
)
from schema.tables import lease as lease_table
from schema.types import database_now
from worker.queue.claim_statements import ELSEWHERE, EVERYWHERE, FILE_OF_JOB
from worker.queue.leases import SHADOW, UNBOUND, UNCOUNTED, drop_if_empty, in_state
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
    shadow: bool = False,
    missing_roots: Collection[str] = (),
    draw: Callable[[], float] = random.random,
) -> Claim | None:
    """Lease up to ``limit`` ready jobs, bound to a bundle and revision; None if nothing is ready.

    A film that already has a job for the same bundle, revision and generation is not read
    again: its open job is cancelled on the way, so that it does not stay in front of the queue.
    If another bundle is in service by now, it is left to whoever has that one.

    Parameters
    ----------
    lease_id
        The lease to make; a caller who names it can release it after a lost COMMIT.
    suspects
        Whether a suspect may be claimed: a caller that is busy with one says no.
    shadow
        Claim shadow jobs of the bundle, and those only, if nothing else is ready.
    missing_roots
        Roots whose films are passed over: the caller's machine lacks them. That takes time for
        each ready film that is passed over.
    draw
        Returns a number in [0, 1) that decides whose turn it is.
    """
    lease_id = lease_id or str(uuid.uuid4())
    within, roots = (ELSEWHERE, {"roots": sorted(missing_roots)}) if missing_roots else (EVERYWHERE, {})
    question, about = within.only_shadows if shadow else within.anything, {"bundle": bundle_id, **roots}
    # To pass over many films must not hold up those who write.
    if missing_roots and not _answer(database, question, about):
        return None
    with database.write() as connection:
        # An idle worker asks every few seconds: finding nothing must not cost a disk flush.
        if not missing_roots and not connection.scalar(question, about):
            return None
        connection.execute(
            insert(lease_table).values(
                id=lease_id, worker_id=worker.id, boot_id=worker.boot_id, expires_at=database_now(lease_seconds)
            )
        )
        for candidates, count in _shadow_turns(limit, suspects) if shadow else _turns(draw(), limit, suspects):
            parameters = {"lease": lease_id, "bundle": bundle_id, "revision": revision, "count": count, **roots}
            while taken := connection.execute(within.claims[candidates], parameters).all():
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
    """Give jobs back that were not started (default: all under the lease), as if they had not been claimed."""
    conditions: list[ColumnElement[bool]] = [job.c.lease_id == lease_id]
    if jobs is not None:
        conditions.append(job.c.id.in_([item.id for item in jobs]))
    with database.write() as connection:
        released = connection.execute(
            update(job).where(*conditions).values(state=JobState.READY.value, **UNBOUND, attempts=UNCOUNTED)
        ).rowcount
        drop_if_empty(connection, lease_id)
    return released


def retry(
    database: Database, *, actor: str, codes: Sequence[str] | None = None, ids: Sequence[int] | None = None
) -> int:
    """Make failed jobs ready again, all or those with certain codes or job ids; audited.

    A film that is being worked on anyway, or whose content has changed since, is left alone;
    so are shadow jobs.

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
    conditions: list[ColumnElement[bool]] = [in_state(JobState.FAILED), ~SHADOW]
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


def _shadow_turns(limit: int, suspects: bool) -> list[tuple[str, int]]:
    fresh, alone = ("shadow", limit), ("shadow suspect", 1)
    return [fresh, alone] if suspects else [fresh]


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
    .select_from(job.outerjoin(identity, identity.c.arrival_id == FILE_OF_JOB))
    .where(job.c.lease_id == bindparam("lease"))
    .order_by(job.c.priority, job.c.id)
)


def _answer(database: Database, question: Select[Any], parameters: dict[str, Any]) -> bool:
    with database.read() as connection:
        return bool(connection.scalar(question, parameters))


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
