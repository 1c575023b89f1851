"""Who holds a film right now, and what happens when the holder falls silent?

A lease is a row with a UUID and an end. The UUID is the fencing token: whatever a worker
writes for a film, it writes only while the film still carries its lease. All times are
the database's, so that machines need not agree about the hour.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    exists,
    insert,
    literal_column,
    null,
    select,
    update,
)

from schema.database import Database
from schema.tables import SHADOW_PRIORITY, JobState, attempt, job, lease, worker
from schema.types import database_now


def in_state(state: JobState) -> ColumnElement[bool]:
    """``job.state = '…'`` with the value written out.

    Partial indexes serve a query only if the planner sees the value, not a parameter.
    """
    return job.c.state == literal_column(f"'{state.value}'")


#: A job with a bundle on trial. Nothing else waits for a certain bundle, or at this priority.
SHADOW: ColumnElement[bool] = job.c.kind == literal_column("'shadow'")
#: Every other job, in words that the index of ready jobs serves.
NO_SHADOW: ColumnElement[bool] = job.c.priority < literal_column(str(SHADOW_PRIORITY))

#: What every job loses that nobody holds any more; a shadow job stays its bundle's.
UNBOUND: dict[str, Any] = {
    "lease_id": None,
    "bundle_id": case((SHADOW, job.c.bundle_id), else_=null()),
    "revision": None,
}

#: An attempt that was cut short through no fault of the film does not count.
UNCOUNTED = case((job.c.attempts > 0, job.c.attempts - 1), else_=0)


@dataclass(frozen=True)
class SweepReport:
    """What a sweep healed: jobs whose holder fell silent, and jobs whose waiting time was over."""

    expired: int
    due: int

    def __str__(self) -> str:
        return f"{self.expired} taken back from silent workers, {self.due} due again"


def heartbeat(database: Database, lease_id: str, seconds: float) -> bool:
    """Hold a lease for ``seconds`` more; False if it is no longer held."""
    with database.write() as connection:
        renewed = connection.execute(
            update(lease).where(lease.c.id == lease_id).values(expires_at=database_now(seconds))
        )
        return renewed.rowcount == 1


#: A worker that gave no sign of life for so many leases is taken for gone.
SILENT_LEASES = 2.0


def is_alive(lease_seconds: float) -> ColumnElement[bool]:
    """Of a row of ``worker``: whether it runs and gave a sign of life lately."""
    return and_(worker.c.stopped_at.is_(None), worker.c.seen_at >= database_now(-SILENT_LEASES * lease_seconds))


def seen(database: Database, worker_id: int, boot_id: str, *, home_free_bytes: int | None = None) -> bool:
    """Note that a worker is alive, and the free space on its home folder's disk.

    False if this start of it is not the last one.
    """
    values = {
        "seen_at": database_now(),
        "home_free_bytes": home_free_bytes,
    }
    with database.write() as connection:
        noted = connection.execute(
            update(worker).where(worker.c.id == worker_id, worker.c.boot_id == boot_id).values(values)
        )
        return noted.rowcount == 1


def sweep(database: Database, *, mine: Collection[str] = ()) -> SweepReport:
    """Make jobs ready whose lease ran out, as suspects, and jobs whose waiting time is over.

    Parameters
    ----------
    mine
        Leases of batches that the calling process is working on. After an outage or a
        suspended machine they may have run out, but their holder evidently lives.
    """
    with database.write() as connection:
        silent = (
            select(lease.c.id)
            .where(lease.c.expires_at < database_now(), lease.c.id.not_in(list(mine)))
            .with_for_update(skip_locked=True)
        )
        expired = expire(connection, connection.scalars(silent).all())
        return SweepReport(expired=expired, due=_make_due_ready(connection))


def make_due_ready(database: Database) -> int:
    """Make delayed jobs ready whose waiting time is over; looks before it takes the write lock."""
    with database.read() as connection:
        if not connection.scalar(select(exists().where(*_due()))):
            return 0
    with database.write() as connection:
        return _make_due_ready(connection)


def expire(connection: Connection, lease_ids: Sequence[str]) -> int:
    """Take leases from whoever had them: each film is ready again, and run alone from now on.

    Any of the films may have killed the holder, so each is a suspect; none is convicted.
    """
    if not lease_ids:
        return 0
    taken = connection.execute(
        update(job)
        .where(job.c.lease_id.in_(lease_ids))
        .values(
            state=JobState.READY.value,
            **UNBOUND,
            crashes=job.c.crashes + 1,
            attempts=UNCOUNTED,
            available_at=database_now(),
        )
        .returning(job.c.id, job.c.attempts)
    ).all()
    if taken:
        connection.execute(
            insert(attempt), [{"job_id": row.id, "number": row.attempts + 1, "outcome": "expired"} for row in taken]
        )
    connection.execute(delete(lease).where(lease.c.id.in_(lease_ids)))
    return len(taken)


def drop_if_empty(connection: Connection, lease_id: str) -> None:
    """Delete a lease that holds no job any more."""
    connection.execute(delete(lease).where(lease.c.id == lease_id, ~exists().where(job.c.lease_id == lease_id)))


def _due() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return in_state(JobState.DELAYED), job.c.available_at <= database_now()


def _make_due_ready(connection: Connection) -> int:
    return connection.execute(update(job).where(*_due()).values(state=JobState.READY.value)).rowcount
