"""What becomes of a film once it was worked on, all of it in one transaction?

Results, state, attempt and lease change together or not at all, and only while the film
still carries the lease under which the work was done: a worker that was thought dead and
wakes up again writes nothing.

=========  ==============================================================
outcome    the job becomes
=========  ==============================================================
result     ``done``; ``ineligible`` by picture; ``cancelled`` if the same
           content is known under another name
content    ``done``; waits if the film's own job is still open
error      by its kind: see :mod:`worker.errors`
crash      ``ready`` as a suspect; ``failed`` if it died alone
=========  ==============================================================
"""

from __future__ import annotations

import logging
import signal
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection, Insert, Select, Update, bindparam, func, insert, select, update

from schema.database import Database
from schema.tables import JobKind, JobState, attempt, job
from schema.tables import lease as lease_table
from schema.types import database_now, seconds_since
from worker.errors import FilmError, Kind
from worker.intake.arrivals import Settlement, reject, settle
from worker.queue.leases import UNBOUND, UNCOUNTED, drop_if_empty
from worker.queue.outcomes import Claim, ClaimedJob, Content, Outcome
from worker.queue.refusals import is_general, raise_unless_the_films, reason
from worker.queue.settling import settle_firsts
from worker.results.result import FilmResult
from worker.results.write import write_results
from worker.settings import Settings

log = logging.getLogger(__name__)

#: Signals that may have come from outside: an operator, or the kernel short of memory.
SIGNALS_FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
#: So many lone deaths by such a signal convict a film after all.
LONE_DEATHS_FROM_OUTSIDE = 3
#: Code of a verify job that waits for the film's own job.
WAITING = "WAITING"

_LONGEST_DELAY_SECONDS = 3600.0
_LONGEST_WAIT_SECONDS = 300.0
_DETAIL_LENGTH = 2000
_SIGNALS = frozenset(signal.Signals)


@dataclass(frozen=True)
class FinishReport:
    """What ``finish`` did.

    ``states`` maps a job to what it became; ``already`` were written by an earlier call
    under the same lease, ``fenced`` belong to somebody else by now: nothing was written.
    """

    states: Mapping[int, JobState] = field(default_factory=dict)
    already: tuple[int, ...] = ()
    fenced: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Verdict:
    """What one job becomes, and what the attempt is called."""

    job: ClaimedJob
    state: JobState
    outcome: str
    code: str | None = None
    stage: str | None = None
    detail: str = ""
    delay: float = 0.0
    counted: bool = True
    crashed: bool = False
    result: FilmResult | None = None


def finish(database: Database, claim: Claim, outcomes: Sequence[Outcome], *, settings: Settings) -> FinishReport:
    """Write what came of a claim's jobs; may be repeated with the same arguments.

    A result that the database refuses makes its own film ``failed/RESULT_REJECTED`` and
    no other.

    Raises
    ------
    sqlalchemy.exc.DBAPIError
        The database is busy, full or away, and nothing is known to be written: call again. Or it
        refuses the statements as such.
    schema.database.DatabaseVersionError
        The database was upgraded meanwhile and takes no results of this version.
    """
    try:
        return _finish(database, claim, outcomes, settings, one_by_one=False)
    except Exception as error:
        raise_unless_the_films(database, error)
    return _finish(database, claim, outcomes, settings, one_by_one=True)


def postpone(database: Database, claim: Claim, error: FilmError, *, settings: Settings) -> FinishReport:
    """Try a claim's jobs again later, whatever the kind of ``error``; ``failed`` after the last attempt."""
    with database.write() as connection:
        held = _held(connection, claim)
        verdicts = [_later(item, error, settings) for item in claim.jobs if item.id in held.jobs]
        return _write(connection, claim, claim.jobs, verdicts, held)


def _finish(
    database: Database, claim: Claim, outcomes: Sequence[Outcome], settings: Settings, *, one_by_one: bool
) -> FinishReport:
    with database.write() as connection:
        held = _held(connection, claim)
        mine = [outcome for outcome in outcomes if outcome.job.id in held.jobs]
        if one_by_one:
            verdicts = [_judge_guarded(connection, outcome, claim, settings) for outcome in mine]
        else:
            results = [(outcome.job, outcome.result) for outcome in mine if outcome.result is not None]
            settled = settle_firsts(connection, results) if results else {}
            verdicts = [_judge(connection, outcome, claim, settings, settled) for outcome in mine]
            _write_results(connection, verdicts)
        return _write(connection, claim, [outcome.job for outcome in outcomes], verdicts, held)


@dataclass(frozen=True)
class _Held:
    """What the database says about a claim: the jobs still under its lease, and the worker."""

    jobs: frozenset[int]
    worker_id: int | None


_HELD: Select[Any] = (
    select(lease_table.c.worker_id, job.c.id)
    .join(job, job.c.lease_id == lease_table.c.id)
    .where(lease_table.c.id == bindparam("lease"))
    # The lease first, then its jobs: the order in which the sweep takes them too.
    .with_for_update(of=[lease_table, job])
)


def _held(connection: Connection, claim: Claim) -> _Held:
    rows = connection.execute(_HELD, {"lease": claim.lease_id}).all()
    return _Held(frozenset(row.id for row in rows), rows[0].worker_id if rows else None)


def _judge(
    connection: Connection, outcome: Outcome, claim: Claim, settings: Settings, settled: Mapping[int, Settlement]
) -> _Verdict:
    item = outcome.job
    if outcome.result is not None:
        # What its film is, and whether it repeats another one, was settled when it was read in earnest.
        known = Settlement.PROCEED if item.kind is JobKind.SHADOW else settled.get(item.id)
        return _judge_result(connection, item, outcome.result, known)
    if outcome.content is not None:
        return _judge_content(connection, item, outcome.content, settings)
    if outcome.error is not None:
        return _judge_error(connection, item, outcome.error, settings)
    assert outcome.crash is not None
    return _judge_crash(connection, item, outcome.crash, claim)


def _judge_result(connection: Connection, item: ClaimedJob, result: FilmResult, settled: Settlement | None) -> _Verdict:
    if settled is None:
        content = Content(result.file_hash, result.content_hash)
        settled = settle(connection, item, content, geometry=result.geometry, facts=result.facts)
    if settled is Settlement.ALIAS:
        detail = "the same picture is known under another name"
        return _Verdict(item, JobState.CANCELLED, "cancelled", detail=detail)
    if result.ineligible_code is not None:
        error = FilmError(result.ineligible_code, result.ineligible_detail)
        return _ended(item, JobState.INELIGIBLE, error)
    if result.segmentation is None:
        raise ValueError("a film that is done has a segmentation")
    return _Verdict(item, JobState.DONE, "done", result=result)


def _judge_content(connection: Connection, item: ClaimedJob, content: Content, settings: Settings) -> _Verdict:
    settled = settle(connection, item, content, geometry=None, facts=None)
    if settled is Settlement.WAIT:
        return _Verdict(
            item,
            JobState.DELAYED,
            "waiting",
            code=WAITING,
            detail="the film's own job is still open",
            delay=_wait_seconds(connection, item, settings),
            counted=False,
        )
    return _Verdict(item, JobState.DONE, "done")


def _wait_seconds(connection: Connection, item: ClaimedJob, settings: Settings) -> float:
    """Doubles with each look: every look reads the whole file again, and the film's own job may wait an hour."""
    looks = connection.scalar(select(func.count()).where(attempt.c.job_id == item.id, attempt.c.outcome == "waiting"))
    return min(_LONGEST_WAIT_SECONDS, settings.poll_seconds * 2.0 ** min(looks or 0, 10))


def _judge_error(connection: Connection, item: ClaimedJob, error: FilmError, settings: Settings) -> _Verdict:
    if error.kind is Kind.TRANSIENT:
        return _later(item, error, settings)
    if item.kind is JobKind.VERIFY and error.kind is not Kind.ENGINE:
        reject(connection, item, error)
        return _Verdict(item, JobState.DONE, "done")
    state = JobState.INELIGIBLE if error.kind is Kind.INELIGIBLE else JobState.FAILED
    return _ended(item, state, error)


def _judge_crash(connection: Connection, item: ClaimedJob, exit_code: int, claim: Claim) -> _Verdict:
    name = signal.Signals(-exit_code).name if -exit_code in _SIGNALS else f"exit code {exit_code}"
    error = FilmError("WORKER_CRASHED", f"its process ended with {name}")
    alone = claim.suspect and item.crashes > 0
    if alone:
        needed = LONE_DEATHS_FROM_OUTSIDE if exit_code in SIGNALS_FROM_OUTSIDE else 1
        if needed == 1 or _lone_deaths(connection, item) + 1 >= needed:
            return _ended(item, JobState.FAILED, error, outcome="crashed_alone")
    return _Verdict(
        item,
        JobState.READY,
        "crashed_alone" if alone else "crashed",
        code=error.code,
        stage=error.stage.value,
        detail=error.detail,
        counted=False,
        crashed=True,
    )


def _lone_deaths(connection: Connection, item: ClaimedJob) -> int:
    """Deaths of this film's process, run alone, since a person last asked to try it again."""
    ended = select(attempt.c.id, attempt.c.outcome).where(attempt.c.job_id == item.id).order_by(attempt.c.id)
    deaths = 0
    for row in connection.execute(ended):
        deaths = 0 if row.outcome == "retried" else deaths + (row.outcome == "crashed_alone")
    return deaths


def _later(item: ClaimedJob, error: FilmError, settings: Settings) -> _Verdict:
    if item.attempts >= settings.max_attempts:
        return _ended(item, JobState.FAILED, error)
    # The exponent is bounded so that a large setting cannot overflow a float.
    delay = min(settings.backoff_seconds * 2.0 ** min(item.attempts - 1, 30), _LONGEST_DELAY_SECONDS)
    return replace(_ended(item, JobState.DELAYED, error), delay=delay)


def _ended(item: ClaimedJob, state: JobState, error: FilmError, *, outcome: str | None = None) -> _Verdict:
    return _Verdict(
        item,
        state,
        outcome or state.value,
        code=error.code,
        stage=error.stage.value,
        detail=error.detail[:_DETAIL_LENGTH],
    )


def _judge_guarded(connection: Connection, outcome: Outcome, claim: Claim, settings: Settings) -> _Verdict:
    """Judge and write one film in a savepoint; refused data is this film's failure and nobody else's."""
    try:
        with connection.begin_nested():
            verdict = _judge(connection, outcome, claim, settings, {})
            _write_results(connection, [verdict])
            return verdict
    except Exception as error:
        if is_general(error):
            raise
        log.error("job %d: the database refused its result: %s", outcome.job.id, reason(error))
        return _ended(outcome.job, JobState.FAILED, FilmError("RESULT_REJECTED", reason(error)))


def _write_results(connection: Connection, verdicts: Iterable[_Verdict]) -> None:
    rows = [(verdict.job.id, verdict.result) for verdict in verdicts if verdict.result is not None]
    if rows:
        write_results(connection, rows)


def _write(
    connection: Connection, claim: Claim, asked: Sequence[ClaimedJob], verdicts: Sequence[_Verdict], held: _Held
) -> FinishReport:
    alike: dict[_Ending, list[_Verdict]] = defaultdict(list)
    for verdict in verdicts:
        alike[_Ending.of(verdict)].append(verdict)
    for ending, group in alike.items():
        parameters = ending.parameters(group, claim, held)
        connection.execute(_ATTEMPTS, parameters)
        if ending.state in (JobState.READY, JobState.DELAYED):
            for verdict in group:
                connection.execute(_give_back(verdict, claim))
        else:
            connection.execute(_CANCEL if ending.state is JobState.CANCELLED else _END, parameters)
    drop_if_empty(connection, claim.lease_id)
    lost = [item.id for item in asked if item.id not in held.jobs]
    already = _written_before(connection, claim, lost)
    return FinishReport(
        states={verdict.job.id: verdict.state for verdict in verdicts},
        already=tuple(number for number in lost if number in already),
        fenced=tuple(number for number in lost if number not in already),
    )


class _Ending(NamedTuple):
    """How an attempt ended: jobs of which all this is the same are written together."""

    state: JobState
    outcome: str
    code: str | None
    stage: str | None
    detail: str

    @classmethod
    def of(cls, verdict: _Verdict) -> _Ending:
        return cls(verdict.state, verdict.outcome, verdict.code, verdict.stage, verdict.detail)

    def parameters(self, verdicts: Sequence[_Verdict], claim: Claim, held: _Held) -> dict[str, Any]:
        return {
            "jobs": [verdict.job.id for verdict in verdicts],
            "held_lease": claim.lease_id,
            "by_worker": held.worker_id,
            "to_state": self.state.value,
            "to_outcome": self.outcome,
            "to_code": self.code,
            "to_stage": self.stage,
            "to_detail": self.detail,
        }


_HELD_JOBS = (job.c.id.in_(bindparam("jobs", expanding=True)), job.c.lease_id == bindparam("held_lease"))
_ATTEMPTS: Insert = insert(attempt).from_select(
    ["job_id", "number", "worker_id", "outcome", "code", "stage", "detail"],
    select(
        job.c.id,
        job.c.attempts,
        bindparam("by_worker", type_=attempt.c.worker_id.type),
        bindparam("to_outcome", type_=attempt.c.outcome.type),
        bindparam("to_code", type_=attempt.c.code.type),
        bindparam("to_stage", type_=attempt.c.stage.type),
        bindparam("to_detail", type_=attempt.c.detail.type),
    ).where(*_HELD_JOBS),
)
_END: Update = (
    update(job)
    .where(*_HELD_JOBS)
    .values(
        state=bindparam("to_state"),
        lease_id=None,
        finished_lease=bindparam("held_lease"),
        code=bindparam("to_code"),
        stage=bindparam("to_stage"),
        detail=bindparam("to_detail"),
        finished_at=database_now(),
        run_seconds=seconds_since(job.c.started_at),
    )
)
#: What is cancelled gives its place under the bundle back.
_CANCEL: Update = _END.values(bundle_id=None, revision=None)


def _give_back(verdict: _Verdict, claim: Claim) -> Update:
    return (
        update(job)
        .where(job.c.id == verdict.job.id, job.c.lease_id == claim.lease_id)
        .values(
            state=verdict.state.value,
            **UNBOUND,
            finished_lease=claim.lease_id,
            code=verdict.code,
            stage=verdict.stage,
            detail=verdict.detail,
            attempts=job.c.attempts if verdict.counted else UNCOUNTED,
            crashes=job.c.crashes + int(verdict.crashed),
            available_at=database_now(verdict.delay),
        )
    )


def _written_before(connection: Connection, claim: Claim, lost: Sequence[int]) -> set[int]:
    """Which of the jobs we no longer hold we finished ourselves: a COMMIT whose answer was lost."""
    if not lost:
        return set()
    mine = select(job.c.id).where(job.c.id.in_(lost), job.c.finished_lease == claim.lease_id)
    return set(connection.scalars(mine))
