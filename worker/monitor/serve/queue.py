"""What waits, who works, what failed; and the one thing the page changes: failed films are tried again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, case, func, literal_column, select, text

from schema import queries
from schema.database import Database
from schema.tables import PRIORITY, JobKind, JobState, Lane, arrival, instance, job
from schema.types import database_now
from worker.errors import CODES, advice, sentence
from worker.monitor.status import free_bytes
from worker.queue.leases import SILENT_LEASES
from worker.results.film_card import KEY_DIGITS
from worker.settings import Settings

PAGE = 50
_FAILED = (
    job.c.state == literal_column("'failed'"),
    job.c.kind != JobKind.SHADOW.value,
)


@dataclass(frozen=True)
class Queue:
    """The ledger now."""

    lanes: Mapping[str, queries.LaneBacklog]
    throughput: queries.Throughput
    seconds_left: float | None
    workers: tuple[tuple[queries.WorkerSeen, str], ...]
    bundles: Mapping[str, str]
    deliveries: tuple[Any, ...]
    failed: int
    free_bytes: int
    low_disk: bool


@dataclass(frozen=True)
class LastDay:
    """What ended in the last 24 hours, and what is open now."""

    done: int
    flagged: int
    ineligible: int
    failed: int
    waiting: int
    oldest_ready_seconds: float | None


@dataclass(frozen=True)
class DeadLetter:
    """A film that failed; ``number`` is None where its file is no longer known."""

    job: int
    number: int | None
    key: str
    lane: str
    code: str
    stage: str
    sentence: str
    advice: str
    attempts: int
    failed_at: datetime | None


@dataclass(frozen=True)
class DeadLetters:
    """A page of them, the newest job first; ``next`` is the number after which the next page begins."""

    entries: tuple[DeadLetter, ...]
    codes: tuple[tuple[str, int], ...]
    code: str
    next: int | None


def read_queue(connection: Connection, settings: Settings) -> Queue:
    """Answered from the indexes of open work."""
    lanes = queries.backlog(connection)
    throughput = queries.throughput(connection)
    still_open = sum(lane.ready + lane.leased + lane.delayed for lane in lanes.values())
    per_hour = throughput.films_per_hour
    free = free_bytes(settings.home)
    return Queue(
        lanes,
        throughput,
        still_open * 3600.0 / per_hour if still_open and per_hour else None,
        tuple((worker, _worker_state(worker, settings)) for worker in queries.workers_seen(connection)),
        queries.bundle_aliases(connection),
        tuple(connection.execute(text("SELECT * FROM delivery_backlog ORDER BY destination, state"))),
        _count_failed(connection),
        free,
        free < settings.disk_reserve,
    )


def read_last_day(connection: Connection) -> LastDay:
    """The first screen's numbers, from the indexes of open work and of the time of ending."""
    flagged = text(
        "SELECT COUNT(*) FROM job WHERE finished_at >= :since AND state = 'done' AND kind = 'process' AND published "
        "AND EXISTS (SELECT 1 FROM failure_flag WHERE failure_flag.job_id = job.id AND NOT failure_flag.notice)"
    )
    row = connection.execute(
        select(
            *(
                func.coalesce(func.sum(case((job.c.state == state.value, 1), else_=0)), 0).label(state.value)
                for state in (JobState.DONE, JobState.INELIGIBLE, JobState.FAILED)
            ),
            database_now(-86_400.0).label("since"),
        ).where(job.c.finished_at >= database_now(-86_400.0), job.c.kind == JobKind.PROCESS.value, job.c.published)
    ).one()
    lanes = queries.backlog(connection).values()
    waits = [lane.oldest_ready_seconds for lane in lanes if lane.oldest_ready_seconds is not None]
    return LastDay(
        row.done,
        int(connection.scalar(flagged, {"since": row.since}) or 0),
        row.ineligible,
        row.failed,
        sum(lane.ready + lane.leased + lane.delayed for lane in lanes),
        max(waits, default=None),
    )


def read_dead_letters(connection: Connection, *, code: str = "", after: int | None = None) -> DeadLetters:
    """Failed films, all or those with a code, below job number ``after``."""
    current = arrival.alias("current")
    query = (
        select(
            job,
            instance.c.key,
            func.coalesce(job.c.arrival_id, current.c.id).label("number"),
        )
        .join(instance, instance.c.id == job.c.instance_id)
        .outerjoin(current, (current.c.instance_id == job.c.instance_id) & current.c.current)
        .where(*_FAILED)
        .order_by(job.c.id.desc())
        .limit(PAGE + 1)
    )
    if code:
        query = query.where(job.c.code == code)
    if after is not None:
        query = query.where(job.c.id < after)
    rows = connection.execute(query).all()
    counted = connection.execute(
        select(job.c.code, func.count().label("films")).where(*_FAILED).group_by(job.c.code).order_by(job.c.code)
    )
    entries = tuple(_dead_letter(row) for row in rows[:PAGE])
    return DeadLetters(
        entries,
        tuple((row.code, row.films) for row in counted),
        code,
        entries[-1].job if len(rows) > PAGE else None,
    )


def may_retry(database: Database) -> bool:
    """Whether the role that the page uses may put films back into the queue."""
    if database.dialect == "sqlite":
        return True
    needed = {"job": "UPDATE", "attempt": "INSERT", "audit_event": "INSERT", "daily_open": "INSERT"}
    question = " AND ".join(f"has_table_privilege('{table}', '{right}')" for table, right in needed.items())
    with database.read() as connection:
        return bool(connection.scalar(text(f"SELECT {question}")))


def _dead_letter(row: Any) -> DeadLetter:
    known = row.code in CODES
    return DeadLetter(
        row.id,
        row.number,
        row.key[:KEY_DIGITS],
        str(Lane.ICU if row.priority == PRIORITY[Lane.ICU] else Lane.ARCHIVE),
        row.code,
        row.stage or (CODES[row.code].stage.value if known else ""),
        sentence(row.code, row.detail) if known else "The reason is not known to this version.",
        advice(row.code) if known else "",
        row.attempts,
        row.finished_at,
    )


def _count_failed(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(job).where(*_FAILED)) or 0


def _worker_state(worker: queries.WorkerSeen, settings: Settings) -> str:
    if not worker.running:
        return "stopped"
    return "running" if worker.seen_seconds_ago < SILENT_LEASES * settings.lease_seconds else "silent"
