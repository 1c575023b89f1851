"""Questions commands ask the database, one function each.

Each takes an open connection of :meth:`schema.database.Database.read` and returns plain
values. Questions a person may want to ask in SQL are views instead (``schema/views``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from sqlalchemy import (
    Connection,
    Select,
    and_,
    case,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.sql import ColumnElement

from schema.tables import (
    PRIORITY,
    ArrivalState,
    JobKind,
    Lane,
    arrival,
    bundle,
    bundle_alias,
    duty,
    identity,
    instance_identity,
    job,
    lease,
    submission,
    submission_arrival,
    worker,
)
from schema.types import UtcDateTime, database_now, seconds_since
from schema.view_tables import film_state

#: In the order of the partial index ``uq_job_open``: SQLite compares the lists as they are written.
OPEN_STATES = ("ready", "delayed", "leased")

#: The roots of a machine where nothing else is set: root name → folder.
DEFAULT_ROOTS: Mapping[str, str | Path] = {"local": "/"}


@dataclass(frozen=True)
class SubmissionCounts:
    """How a submission's files stand; every file is in one field, ``flagged`` apart.

    ``flagged`` is the part of ``done`` that has at least one failure flag. ``ready``,
    ``leased`` and ``delayed`` are still to be done. ``registered`` files are known but
    have no work: normally none.
    """

    done: int = 0
    flagged: int = 0
    duplicate: int = 0
    conflict: int = 0
    alias: int = 0
    ineligible: int = 0
    failed: int = 0
    rejected: int = 0
    cancelled: int = 0
    not_dicom: int = 0
    ready: int = 0
    leased: int = 0
    delayed: int = 0
    registered: int = 0

    @property
    def open(self) -> int:
        """Films still to be done."""
        return self.ready + self.leased + self.delayed

    @property
    def finished(self) -> int:
        """Films that are through: done, ineligible, failed or cancelled."""
        return self.done + self.ineligible + self.failed + self.cancelled

    @property
    def files(self) -> int:
        """All files the submission saw."""
        settled = self.duplicate + self.conflict + self.alias + self.rejected + self.not_dicom
        return self.open + self.finished + settled + self.registered

    def to_json(self) -> dict[str, int]:
        """The counts, and ``open`` and ``files``."""
        return {**asdict(self), "open": self.open, "files": self.files}


@dataclass(frozen=True)
class LaneBacklog:
    """Open work of one lane; ``oldest_ready_seconds`` is None where nothing is ready."""

    ready: int
    leased: int
    delayed: int
    oldest_ready_seconds: float | None


@dataclass(frozen=True)
class Throughput:
    """Films that ended in the last ``seconds``, and the mean seconds they waited and ran."""

    seconds: float
    done: int
    ineligible: int
    failed: int
    mean_wait_seconds: float | None
    mean_run_seconds: float | None

    @property
    def films_per_hour(self) -> float:
        """Films that ended, whatever the outcome, per hour."""
        return (self.done + self.ineligible + self.failed) * 3600.0 / self.seconds


@dataclass(frozen=True)
class WorkerSeen:
    """A worker and when it last gave a sign of life, in seconds ago by the database's clock."""

    name: str
    host: str
    device: str
    version: str
    bundle: str | None
    seen_seconds_ago: float
    running: bool
    films_in_work: int
    home_free_bytes: int | None


class FailedFilm(NamedTuple):
    """A film that failed or a file that was rejected, with its identity.

    For those who may see it, never for a log. A rejected file has no ``job_id``, no
    ``stage`` and no UID.
    """

    job_id: int | None
    arrival_id: int | None
    sop_instance_uid: str
    source: str
    code: str
    stage: str | None
    detail: str
    attempts: int
    ended_at: datetime | None


def source_text(root: str, path: str, member: str, roots: Mapping[str, str | Path] = DEFAULT_ROOTS) -> str:
    """Where a file lies, for people: its path, and ``!member`` for one inside a zip archive.

    A root that ``roots`` does not name stays a name (``archive:2026/07/x.dcm``). Stored paths
    are percent-encoded where a file name's bytes are not UTF-8; such a path stays so.
    """
    if not root:
        return ""
    try:
        shown = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        shown = path
    place = f"{root}:{shown}" if root not in roots else str(PurePosixPath(roots[root]) / shown)
    return f"{place}!{member}" if member else place


# Literals: with bound values SQLite cannot tell that a partial index applies.


def _job_open() -> ColumnElement[bool]:
    return job.c.state.in_([literal_column(f"'{state}'") for state in OPEN_STATES])


def _job_state(state: str) -> ColumnElement[bool]:
    if state == "leased":
        # The same by constraint, and what the index of leased jobs is made on.
        return job.c.lease_id.is_not(None)
    return job.c.state == literal_column(f"'{state}'")


def _job_kind(kind: JobKind) -> ColumnElement[bool]:
    return job.c.kind == literal_column(f"'{kind.value}'")


def seen_by(submission_id: int, arrival_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a submission saw the file ``arrival_id``, new to it or registered before."""
    return arrival_id.in_(
        select(submission_arrival.c.arrival_id).where(submission_arrival.c.submission_id == submission_id)
    )


def submission_counts(connection: Connection, submission_id: int | None) -> SubmissionCounts:
    """How the files of a submission stand, those seen before included; None counts all files."""
    query = select(film_state.c.state, film_state.c.flagged, func.count().label("files"))
    counted = select(func.sum(submission.c.not_dicom))
    if submission_id is not None:
        query = query.where(seen_by(submission_id, film_state.c.arrival_id))
        counted = counted.where(submission.c.id == submission_id)
    counts = dict.fromkeys(SubmissionCounts.__dataclass_fields__, 0)
    for row in connection.execute(query.group_by(film_state.c.state, film_state.c.flagged)):
        counts[row.state if row.state in counts else "registered"] += row.files
        counts["flagged"] += row.files if row.flagged else 0
    counts["not_dicom"] = max(counts["not_dicom"], int(connection.scalar(counted) or 0))
    return SubmissionCounts(**counts)


def open_films(connection: Connection, submission_id: int) -> int:
    """How many films of a submission are still to be done; answered from indexes alone."""
    processing = exists().where(
        _job_kind(JobKind.PROCESS),
        _job_open(),
        job.c.instance_id == arrival.c.instance_id,
    )
    verifying = exists().where(_job_kind(JobKind.VERIFY), _job_open(), job.c.arrival_id == arrival.c.id)
    still_open = or_(
        and_(arrival.c.state == "instance", arrival.c.current, processing),
        and_(arrival.c.state == "unverified", verifying),
    )
    return connection.scalar(_count().select_from(arrival).where(seen_by(submission_id, arrival.c.id), still_open)) or 0


def latest_submission(connection: Connection) -> int | None:
    """The newest submission's id, or None where nothing was submitted yet."""
    return connection.scalar(select(func.max(submission.c.id)))


def state_counts(connection: Connection) -> dict[str, int]:
    """Job state → films in it, shadow jobs apart; reads every job once."""
    rows = connection.execute(
        select(job.c.state, func.count()).where(job.c.kind == "process", job.c.published).group_by(job.c.state)
    )
    return {row[0]: row[1] for row in rows}


def arrival_counts(connection: Connection) -> dict[str, int]:
    """Arrival state → files in it; reads every arrival once."""
    rows = connection.execute(select(arrival.c.state, func.count()).group_by(arrival.c.state))
    return {row[0]: row[1] for row in rows}


def backlog(connection: Connection) -> dict[str, LaneBacklog]:
    """Lane → open work, from partial indexes: as fast for five million finished films as for none."""
    answer = {}
    for lane in Lane:
        priority = job.c.priority == literal_column(str(PRIORITY[lane]))
        counts = {
            state: connection.scalar(_count().select_from(job).where(_job_state(state), priority)) or 0
            for state in OPEN_STATES
        }
        # The oldest job has the smallest id; one that waited out a backoff is ready since then.
        since = func.coalesce(job.c.available_at, job.c.created_at)
        oldest = connection.scalar(
            select(seconds_since(since)).where(_job_state("ready"), priority).order_by(job.c.id).limit(1)
        )
        answer[str(lane)] = LaneBacklog(
            counts["ready"], counts["leased"], counts["delayed"], None if oldest is None else max(0.0, float(oldest))
        )
    return answer


def throughput(connection: Connection, seconds: float = 300.0) -> Throughput:
    """What ended in the last ``seconds``."""
    row = connection.execute(
        select(
            *(
                func.coalesce(func.sum(case((job.c.state == state, 1), else_=0)), 0).label(state)
                for state in ("done", "ineligible", "failed")
            ),
            func.avg(job.c.wait_seconds).label("wait"),
            func.avg(job.c.run_seconds).label("run"),
        ).where(job.c.finished_at >= database_now(-seconds), job.c.kind == "process", job.c.published)
    ).one()
    return Throughput(seconds, row.done, row.ineligible, row.failed, row.wait, row.run)


def failed_films(
    connection: Connection,
    *,
    submission_id: int | None = None,
    limit: int | None = None,
    roots: Mapping[str, str | Path] = DEFAULT_ROOTS,
) -> list[FailedFilm]:
    """Films that failed and files that were rejected, the newest first; shadow jobs are left out.

    ``roots`` maps root names to folders, for the column ``source``: see :func:`source_text`.
    """
    failed = select(
        job.c.id.label("job_id"),
        job.c.arrival_id,
        job.c.instance_id,
        job.c.code,
        job.c.stage,
        job.c.detail,
        job.c.attempts,
        job.c.finished_at.label("ended_at"),
    ).where(_job_state("failed"), job.c.kind != JobKind.SHADOW.value)
    rejected = select(
        null(),
        arrival.c.id,
        arrival.c.instance_id,
        arrival.c.code,
        null(),
        arrival.c.detail,
        literal_column("0"),
        arrival.c.arrived_at,
    ).where(arrival.c.state == ArrivalState.REJECTED.value)
    ends = union_all(failed, rejected).subquery()
    current = arrival.alias("present")
    file = func.coalesce(ends.c.arrival_id, current.c.id)
    query = (
        select(ends, file.label("file"), instance_identity.c.sop_instance_uid, identity)
        .select_from(ends)
        .outerjoin(
            current,
            and_(
                ends.c.arrival_id.is_(None),
                current.c.instance_id == ends.c.instance_id,
                current.c.current,
            ),
        )
        .outerjoin(identity, identity.c.arrival_id == file)
        .outerjoin(instance_identity, instance_identity.c.instance_id == ends.c.instance_id)
        .order_by(ends.c.ended_at.desc(), ends.c.job_id.desc(), file.desc())
        .limit(limit)
    )
    if submission_id is not None:
        query = query.where(seen_by(submission_id, file))
    return [
        FailedFilm(
            row.job_id,
            row.file,
            row.sop_instance_uid or "",
            source_text(row.root or "", row.path or "", row.member or "", roots),
            row.code,
            row.stage,
            row.detail,
            row.attempts,
            row.ended_at,
        )
        for row in connection.execute(query)
    ]


def workers_seen(connection: Connection, within_seconds: float = 86_400.0) -> list[WorkerSeen]:
    """Workers that gave a sign of life in the last ``within_seconds``, the latest first."""
    in_work = (
        _count()
        .select_from(job)
        .join(lease, lease.c.id == job.c.lease_id)
        .where(lease.c.worker_id == worker.c.id, job.c.lease_id.is_not(None))
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            worker,
            (bundle.c.name + ":" + bundle.c.version).label("bundle_key"),
            seconds_since(worker.c.seen_at).label("ago"),
            in_work.label("in_work"),
        )
        .outerjoin(bundle, bundle.c.id == worker.c.bundle_id)
        .where(worker.c.seen_at >= database_now(-within_seconds))
        .order_by(worker.c.seen_at.desc(), worker.c.name)
    )
    return [
        WorkerSeen(
            row.name,
            row.host,
            row.device,
            row.version,
            row.bundle_key,
            max(0.0, row.ago),
            row.stopped_at is None,
            row.in_work,
            row.home_free_bytes,
        )
        for row in rows
    ]


def bundle_aliases(connection: Connection) -> dict[str, str]:
    """Alias (``champion``, ``candidate``, ``previous``) → bundle as ``name:version``."""
    rows = connection.execute(
        select(bundle_alias.c.alias, bundle.c.name + ":" + bundle.c.version)
        .join(bundle, bundle.c.id == bundle_alias.c.bundle_id)
        .order_by(bundle_alias.c.alias)
    )
    return {row[0]: row[1] for row in rows}


def overdue_duties(connection: Connection, grace_seconds: float = 3600.0) -> list[str]:
    """Names of duties that should have run ``grace_seconds`` ago and were not claimed."""
    return list(
        connection.scalars(
            select(duty.c.name)
            .where(
                duty.c.due_at < database_now(-grace_seconds),
                or_(duty.c.claimed_until.is_(None), duty.c.claimed_until < database_now()),
            )
            .order_by(duty.c.name)
        )
    )


def seconds_ahead(connection: Connection, machine_now: datetime) -> float:
    """Seconds by which ``machine_now``, aware, is ahead of the database's clock."""
    return -(connection.scalar(select(seconds_since(literal(machine_now, UtcDateTime())))) or 0.0)


def _count() -> Select[Any]:
    return select(func.count())
