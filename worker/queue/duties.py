"""Who does the chores when no process is in charge of them?

A duty is a row that is claimed like a job, by any worker, when it is due. Whoever dies over
one loses its claim after a while, and somebody else takes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, exists, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from schema.daily import count_days
from schema.database import Database
from schema.tables import duty, job
from schema.tables import lease as lease_table
from schema.tables import worker as worker_table
from schema.types import database_now
from worker.queue.leases import sweep
from worker.queue.ledger import WorkerIdentity
from worker.queue.sessions import end_silent_sessions
from worker.settings import Settings

log = logging.getLogger(__name__)

_HOUR = 3600.0
_DAY = 24 * _HOUR
#: Whether there are new labels is asked often; with many of them the work is done a piece at a time.
_TRACKING_SECONDS = 600.0
_ALERT_SECONDS = 60.0
#: Nights are judged once they are over; often enough that the morning sees the last one.
_DRIFT_SECONDS = 4 * _HOUR


@dataclass(frozen=True)
class Duty:
    """A chore: its name, how often it is done, and what does it (returns a line for the record).

    A holder that has not finished after ``limit_seconds`` is taken for dead.
    """

    name: str
    every_seconds: float
    function: Callable[[Database], str]
    limit_seconds: float = 600.0


def standard_duties(
    settings: Settings,
    in_flight: Callable[[], Collection[str]],
    announce: Callable[[int], object] = lambda films: None,
) -> tuple[Duty, ...]:
    """The duties of every worker.

    Parameters
    ----------
    in_flight
        Returns the leases this process works under.
    announce
        Called with the number of films that a sweep made ready.
    """
    pause = settings.lease_seconds / 2

    def take_back(database: Database) -> str:
        silent = end_silent_sessions(database, settings.lease_seconds)
        if silent:
            log.warning("%d database sessions were ended whose clients had fallen silent", silent)
        report = sweep(database, mine=in_flight())
        if report.expired + report.due:
            announce(report.expired + report.due)
        return str(report)

    def track(database: Database) -> str:
        # Not before it is needed: what it draws in takes a while to load.
        from worker.monitor.auc import auc_duty
        from worker.monitor.labels import reader_policy

        return auc_duty(database, reader_policy(settings.readers))

    def alert(database: Database) -> str:
        from worker.monitor.alerts import alert_duty

        return alert_duty(database, settings)

    def judge_nights(database: Database) -> str:
        from worker.monitor.alerts import drift_duty

        return drift_duty(database)

    return (
        # Two sweeps at once do no harm; none at all would leave a dead worker's films lying.
        Duty("sweep", pause, take_back, limit_seconds=pause),
        Duty("prune", _HOUR, prune),
        Duty("auc", _TRACKING_SECONDS, track),
        Duty("count days", _HOUR, count_ended_days),
        Duty("drift", _DRIFT_SECONDS, judge_nights),
        Duty("alerts", _ALERT_SECONDS, alert),
    )


def ensure_duties(database: Database, duties: Sequence[Duty]) -> None:
    """Add rows of new duties; changed intervals take effect after the next time."""
    try:
        _write_duties(database, duties)
    except IntegrityError:
        # Another worker that starts in the same moment has just added them.
        _write_duties(database, duties)


def _write_duties(database: Database, duties: Sequence[Duty]) -> None:
    with database.read() as connection:
        known = {row.name: row.every_seconds for row in connection.execute(select(duty.c.name, duty.c.every_seconds))}
    if all(known.get(item.name) == item.every_seconds for item in duties):
        return
    with database.write() as connection:
        present = set(connection.scalars(select(duty.c.name)))
        for item in duties:
            if item.name in present:
                connection.execute(
                    update(duty).where(duty.c.name == item.name).values(every_seconds=item.every_seconds)
                )
            else:
                connection.execute(
                    insert(duty).values(name=item.name, every_seconds=item.every_seconds, due_at=database_now())
                )


def do_due_duties(database: Database, worker: WorkerIdentity, duties: Sequence[Duty]) -> list[str]:
    """Do what is due and nobody else is doing; returns the names done. A duty that fails is tried next time."""
    done = []
    for name in _due(database, [item.name for item in duties]):
        item = next(item for item in duties if item.name == name)
        if not claim_duty(database, worker, item):
            continue
        try:
            outcome = item.function(database)
        except Exception as error:
            # The exception's own words may quote values from the database.
            outcome = f"failed: {type(error).__name__}"
            log.error("duty %s %s", item.name, outcome)
        finish_duty(database, worker, item, outcome)
        done.append(item.name)
    return done


def claim_duty(database: Database, worker: WorkerIdentity, item: Duty) -> bool:
    """Take a due duty; False if it is not due or somebody has it."""
    with database.write() as connection:
        taken = connection.execute(
            update(duty)
            .where(duty.c.name == item.name, *_FREE)
            .values(claimed_by=worker.id, claimed_until=database_now(item.limit_seconds))
        )
        return taken.rowcount == 1


def finish_duty(database: Database, worker: WorkerIdentity, item: Duty, outcome: str) -> None:
    """Record what a duty did and when it is due again, unless somebody took it over meanwhile."""
    with database.write() as connection:
        connection.execute(
            update(duty)
            .where(duty.c.name == item.name, duty.c.claimed_by == worker.id)
            .values(
                claimed_by=None,
                claimed_until=None,
                finished_at=database_now(),
                due_at=database_now(item.every_seconds),
                outcome=outcome,
            )
        )


def prune(database: Database) -> str:
    """Delete leases that hold nothing, and note as stopped whoever has been silent for a day.

    Worker rows stay: the attempts refer to them.
    """
    with database.write() as connection:
        leases = connection.execute(
            delete(lease_table).where(
                lease_table.c.expires_at < database_now(), ~exists().where(job.c.lease_id == lease_table.c.id)
            )
        ).rowcount
        workers = connection.execute(
            update(worker_table)
            .where(worker_table.c.stopped_at.is_(None), worker_table.c.seen_at < database_now(-_DAY))
            .values(stopped_at=worker_table.c.seen_at)
        ).rowcount
    return f"{leases} empty leases deleted, {workers} silent workers noted as stopped"


def count_ended_days(database: Database) -> str:
    """Count the days that have ended, so that views need not: see :mod:`schema.daily`."""
    return f"{count_days(database)} days counted"


_FREE = (
    duty.c.due_at <= database_now(),
    or_(duty.c.claimed_until.is_(None), duty.c.claimed_until <= database_now()),
)


def _due(database: Database, names: Sequence[str]) -> list[str]:
    with database.read() as connection:
        return list(connection.scalars(select(duty.c.name).where(duty.c.name.in_(names), *_FREE)))
