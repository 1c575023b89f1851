from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import (
    Ledger,
    add_unverified,
    age_leases,
    full_result,
    job_row,
    job_states,
    make_due,
    register_films,
    settings_for,
)
from sqlalchemy import Connection, event, func, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from schema import tables
from schema.database import Database, DatabaseVersionError
from schema.tables import JobState, job
from schema.types import database_now, seconds_since
from worker.errors import CODES, FilmError, Kind
from worker.queue.finish import LONE_DEATHS_FROM_OUTSIDE, WAITING, _later, finish, postpone
from worker.queue.invariants import check_invariants
from worker.queue.leases import make_due_ready, sweep
from worker.queue.ledger import register_worker, retry
from worker.queue.outcomes import Claim, ClaimedJob, Content, Outcome, SourceReference
from worker.queue.patience import Patience
from worker.results.result import FilmResult, FindingScore

#: What a later version might do to the tables → what the database then says to a result of this one.
UPGRADES = {
    "ALTER TABLE segmentation ADD COLUMN place TEXT CHECK (place IS NOT NULL AND place <> '')": "a value is missing",
    "ALTER TABLE heatmap RENAME COLUMN maps TO pictures": "a column is gone",
}


def results(claimed: Claim) -> list[Outcome]:
    return [Outcome(item, result=full_result(item.source.path)) for item in claimed.jobs]


def attempts(ledger: Ledger, job_id: int) -> list[str]:
    with ledger.database.read() as connection:
        found = select(tables.attempt.c.outcome).where(tables.attempt.c.job_id == job_id).order_by(tables.attempt.c.id)
        return list(connection.scalars(found))


def count(ledger: Ledger, table: str) -> int:
    with ledger.database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(tables.metadata.tables[table])) or 0)


def make_suspect(ledger: Ledger) -> Claim:
    claimed = ledger.must_claim(1)
    if claimed.suspect:
        return claimed
    age_leases(ledger.database, claimed.lease_id)
    sweep(ledger.database)
    claimed = ledger.must_claim(1, draw=lambda: 0.1)
    assert claimed.suspect
    return claimed


class TestDone:
    def test_results_state_attempt_and_lease_change_together(self, ledger: Ledger) -> None:
        ids = register_films(ledger.database, ["a", "b", "c"])
        claimed = ledger.must_claim()
        report = finish(ledger.database, claimed, results(claimed), settings=ledger.settings)
        assert report.states == dict.fromkeys(ids, JobState.DONE) and not report.fenced
        row = job_row(ledger.database, ids[0])
        assert row.finished_lease == claimed.lease_id and row.lease_id is None and row.code is None
        assert row.run_seconds >= -0.01 and row.bundle_id == ledger.bundle_id and row.finished_at is not None
        tables_filled = ("segmentation", "region_measurement", "failure_flag", "finding_score", "heatmap", "lease")
        assert [count(ledger, name) for name in tables_filled] == [3, 24, 6, 30, 3, 0]
        assert attempts(ledger, ids[0]) == ["done"]
        assert check_invariants(ledger.database) == []

    def test_a_film_ineligible_by_picture_has_no_result(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        outcome = Outcome(claimed.jobs[0], result=full_result("a", ineligible="LATERAL"))
        finish(ledger.database, claimed, [outcome], settings=ledger.settings)
        assert (job_row(ledger.database, film).state, job_row(ledger.database, film).code) == ("ineligible", "LATERAL")
        assert count(ledger, "segmentation") == 0

    def test_the_same_picture_under_another_name_is_read_once(self, ledger: Ledger) -> None:
        first, second = register_films(ledger.database, ["a", "b"])
        claimed = ledger.must_claim()
        outcomes = [Outcome(item, result=full_result("the same")) for item in claimed.jobs]
        finish(ledger.database, claimed, outcomes, settings=ledger.settings)
        assert job_states(ledger.database) == {first: "done", second: "cancelled"}
        assert count(ledger, "segmentation") == 1
        with ledger.database.read() as connection:
            assert connection.scalar(select(tables.arrival.c.state).where(tables.arrival.c.id == 2)) == "alias"
        assert check_invariants(ledger.database) == []

    def test_part_of_a_batch_leaves_the_rest_leased(self, ledger: Ledger) -> None:
        first, second = register_films(ledger.database, ["a", "b"])
        claimed = ledger.must_claim()
        finish(ledger.database, claimed, results(claimed)[:1], settings=ledger.settings)
        assert job_states(ledger.database) == {first: "done", second: "leased"}
        finish(ledger.database, claimed, results(claimed)[1:], settings=ledger.settings)
        assert job_states(ledger.database) == {first: "done", second: "done"}


class TestErrors:
    @pytest.mark.parametrize("code", sorted(CODES))
    def test_each_code_ends_as_its_kind_says(self, ledger: Ledger, code: str) -> None:
        (film,) = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        outcome = Outcome(claimed.jobs[0], error=FilmError(code, "what was seen"))
        finish(ledger.database, claimed, [outcome], settings=ledger.settings)
        row = job_row(ledger.database, film)
        expected = {
            Kind.PERMANENT: "failed",
            Kind.ENGINE: "failed",
            Kind.INELIGIBLE: "ineligible",
            Kind.TRANSIENT: "delayed",
        }[CODES[code].kind]
        assert (row.state, row.code, row.stage, row.detail) == (expected, code, CODES[code].stage, "what was seen")
        assert check_invariants(ledger.database) == []

    def test_transient_trouble_is_tried_again_and_then_fails_with_its_own_code(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        waits = []
        for _ in range(ledger.settings.max_attempts - 1):
            claimed = ledger.must_claim()
            outcome = Outcome(claimed.jobs[0], error=FilmError("SOURCE_MISSING"))
            finish(ledger.database, claimed, [outcome], settings=ledger.settings)
            row = job_row(ledger.database, film)
            assert row.state == "delayed" and row.bundle_id is None
            waits.append(row.available_at)
            make_due(ledger.database)
            assert make_due_ready(ledger.database) == 1
        gaps = [later - earlier for earlier, later in itertools.pairwise(waits)]
        assert all(later > earlier for earlier, later in itertools.pairwise(gaps))
        claimed = ledger.must_claim()
        outcome = Outcome(claimed.jobs[0], error=FilmError("SOURCE_MISSING"))
        finish(ledger.database, claimed, [outcome], settings=ledger.settings)
        row = job_row(ledger.database, film)
        assert (row.state, row.code, row.attempts) == ("failed", "SOURCE_MISSING", ledger.settings.max_attempts)

    def test_the_wait_runs_on_the_databases_clock(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        finish(
            ledger.database,
            claimed,
            [Outcome(claimed.jobs[0], error=FilmError("READ_ERROR"))],
            settings=ledger.settings,
        )
        row = job_row(ledger.database, film)
        assert row.available_at - row.started_at >= timedelta(seconds=ledger.settings.backoff_seconds - 0.01)

    @given(attempt=st.integers(1, 10_000), backoff=st.floats(0.01, 1e6))
    def test_the_wait_doubles_up_to_an_hour(self, attempt: int, backoff: float) -> None:
        source = SourceReference("local", "a", "", 1, 1)
        item = ClaimedJob(1, tables.JobKind.PROCESS, 1, 1, source, 1, attempt, 0)
        settings = settings_for(None, max_attempts=10_001, backoff_seconds=backoff)  # type: ignore[arg-type]
        delay = _later(item, FilmError("READ_ERROR"), settings).delay
        longer = _later(replace(item, attempts=attempt + 1), FilmError("READ_ERROR"), settings)
        assert 0 < delay <= 3600 and delay <= (longer.delay or 3600)
        assert delay == min(3600.0, backoff * 2.0 ** min(attempt - 1, 30))

    def test_postpone_delays_whatever_the_kind(self, ledger: Ledger) -> None:
        ids = register_films(ledger.database, ["a", "b"])
        claimed = ledger.must_claim()
        finish(ledger.database, claimed, results(claimed)[:1], settings=ledger.settings)
        report = postpone(ledger.database, claimed, FilmError("ENGINE_FAILED"), settings=ledger.settings)
        assert (report.states, report.already) == ({ids[1]: JobState.DELAYED}, (ids[0],))
        assert job_row(ledger.database, ids[1]).code == "ENGINE_FAILED"


class TestFence:
    def test_who_lost_the_lease_writes_nothing(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        late = ledger.must_claim()
        age_leases(ledger.database)
        sweep(ledger.database)
        other = register_worker(ledger.database, ledger.settings, "two")
        current = ledger.must_claim(worker=other)
        report = finish(ledger.database, late, results(late), settings=ledger.settings)
        assert (report.states, report.fenced) == ({}, (film,))
        assert job_row(ledger.database, film).lease_id == current.lease_id
        assert count(ledger, "segmentation") == 0 and attempts(ledger, film) == ["expired"]
        assert finish(ledger.database, current, results(current), settings=ledger.settings).states
        assert finish(ledger.database, late, results(late), settings=ledger.settings).fenced == (film,)
        assert check_invariants(ledger.database) == []

    def test_a_lease_that_ran_out_but_was_not_taken_still_counts(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        age_leases(ledger.database)
        assert finish(ledger.database, claimed, results(claimed), settings=ledger.settings).states[film] == "done"

    def test_a_crash_report_for_a_film_that_was_finished_convicts_nobody(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        claimed = make_suspect(ledger)
        finish(ledger.database, claimed, results(claimed), settings=ledger.settings)
        report = finish(ledger.database, claimed, [Outcome(claimed.jobs[0], crash=-11)], settings=ledger.settings)
        assert report.already == (film,)
        assert job_row(ledger.database, film).state == "done"


class LosesAnswers(Database):
    """Commits, and then says that the connection broke."""

    losses = 1

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with super().write() as connection:
            yield connection
        if self.losses:
            self.losses -= 1
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))


def test_a_commit_whose_answer_was_lost_is_recognised(ledger: Ledger) -> None:
    ids = register_films(ledger.database, ["a", "b"])
    claimed = ledger.must_claim()
    broken = LosesAnswers(ledger.database.url)
    report = Patience(wait=lambda seconds: None).until_done(
        lambda: finish(broken, claimed, results(claimed), settings=ledger.settings)
    )
    broken.close()
    assert report.already == tuple(ids) and not report.states and not report.fenced
    assert count(ledger, "segmentation") == 2 and attempts(ledger, ids[0]) == ["done"]


class TestRejectedResults:
    def spoiled(self, result: FilmResult) -> FilmResult:
        return replace(result, scores=[FindingScore("pneumonia", 1.5, 0.0, 0.5, True, {})])

    @pytest.mark.parametrize("kind", ["constraint", "no segmentation", "not a number", "wrong type"])
    def test_only_the_culprit_fails(self, ledger: Ledger, kind: str) -> None:
        ids = register_films(ledger.database, ["a", "b", "c"])
        claimed = ledger.must_claim()
        outcomes = results(claimed)
        good = outcomes[1].result
        assert good is not None
        bad = {
            "constraint": self.spoiled(good),
            "no segmentation": replace(good, segmentation=None),
            "not a number": replace(good, scores=[FindingScore("pneumonia", float("nan"), 0.0, 0.5, True, {})]),
            "wrong type": replace(good, engine={"device": object()}),
        }[kind]
        outcomes[1] = replace(outcomes[1], result=bad)
        report = finish(ledger.database, claimed, outcomes, settings=ledger.settings)
        assert report.states == {ids[0]: "done", ids[1]: "failed", ids[2]: "done"}
        assert job_row(ledger.database, ids[1]).code == "RESULT_REJECTED"
        assert count(ledger, "segmentation") == 2
        assert check_invariants(ledger.database) == []

    def test_a_busy_database_is_nobodys_fault(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()

        def locked(*_arguments: object) -> None:
            raise OperationalError("INSERT", {}, Exception("database is locked"))

        event.listen(ledger.database._writer, "before_cursor_execute", locked)
        with pytest.raises(OperationalError):
            finish(ledger.database, claimed, results(claimed), settings=ledger.settings)
        event.remove(ledger.database._writer, "before_cursor_execute", locked)
        assert job_row(ledger.database, film).state == "leased"
        assert finish(ledger.database, claimed, results(claimed), settings=ledger.settings).states[film] == "done"

    @pytest.mark.parametrize("change", [None, *UPGRADES], ids=["a right or a table is missing", *UPGRADES.values()])
    def test_what_no_film_could_satisfy_is_no_films_fault(self, ledger: Ledger, change: str | None) -> None:
        """Tables of another version, or a role without its rights: every film would be refused."""
        (film,) = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        with ledger.database.write() as connection:
            connection.execute(text(change or "ALTER TABLE heatmap RENAME TO pictures"))
            if change:
                connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(
            DatabaseVersionError if change else DBAPIError, match="newer Carina" if change else "heatmap"
        ):
            finish(ledger.database, claimed, results(claimed), settings=ledger.settings)
        assert job_row(ledger.database, film).state == "leased" and count(ledger, "attempt") == 0


class TestCrashes:
    def crash(self, ledger: Ledger, claimed: Claim, code: int) -> None:
        finish(ledger.database, claimed, [Outcome(claimed.jobs[0], crash=code)], settings=ledger.settings)

    def test_the_first_death_makes_a_suspect(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        self.crash(ledger, ledger.must_claim(), -11)
        row = job_row(ledger.database, film)
        assert (row.state, row.crashes, row.attempts, row.bundle_id) == ("ready", 1, 0, None)
        assert attempts(ledger, film) == ["crashed"]

    @pytest.mark.parametrize("code", [-11, -6, -4, -7, 139])
    def test_a_death_alone_convicts(self, ledger: Ledger, code: int) -> None:
        (film,) = register_films(ledger.database, ["a"])
        self.crash(ledger, make_suspect(ledger), code)
        row = job_row(ledger.database, film)
        assert (row.state, row.code) == ("failed", "WORKER_CRASHED")
        assert attempts(ledger, film)[-1] == "crashed_alone"

    @pytest.mark.parametrize("code", [-9, -15])
    def test_a_death_that_may_come_from_outside_convicts_at_the_third(self, ledger: Ledger, code: int) -> None:
        (film,) = register_films(ledger.database, ["a"])
        for number in range(LONE_DEATHS_FROM_OUTSIDE):
            assert job_row(ledger.database, film).state == "ready"
            assert job_row(ledger.database, film).attempts == 0
            self.crash(ledger, make_suspect(ledger), code)
            assert attempts(ledger, film).count("crashed_alone") == number + 1
        assert job_row(ledger.database, film).code == "WORKER_CRASHED"

    def test_a_retry_starts_the_count_again(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        for _ in range(LONE_DEATHS_FROM_OUTSIDE):
            self.crash(ledger, make_suspect(ledger), -9)
        assert retry(ledger.database, actor="a") == 1
        for _ in range(LONE_DEATHS_FROM_OUTSIDE - 1):
            self.crash(ledger, make_suspect(ledger), -9)
        assert job_row(ledger.database, film).state == "ready"

    def test_dead_workers_convict_nobody_however_often(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        for _ in range(6):
            ledger.must_claim()
            age_leases(ledger.database)
            sweep(ledger.database)
        self.crash(ledger, ledger.must_claim(), -9)
        row = job_row(ledger.database, film)
        assert (row.state, row.crashes, row.attempts) == ("ready", 7, 0)


class TestVerify:
    def verify(self, ledger: Ledger, outcome: dict[str, object]) -> tuple[int, int]:
        arrival_id, job_id = add_unverified(ledger.database, 1, "copy of a")
        claimed = ledger.must_claim()
        (item,) = [item for item in claimed.jobs if item.id == job_id]
        assert job_row(ledger.database, job_id).bundle_id is None
        finish(ledger.database, claimed, [Outcome(item, **outcome)], settings=ledger.settings)  # type: ignore[arg-type]
        return arrival_id, job_id

    def arrival_state(self, ledger: Ledger, arrival_id: int) -> str:
        with ledger.database.read() as connection:
            return str(connection.scalar(select(tables.arrival.c.state).where(tables.arrival.c.id == arrival_id)))

    def done(self, ledger: Ledger) -> FilmResult:
        register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        finish(ledger.database, claimed, results(claimed), settings=ledger.settings)
        return full_result("a")

    def test_the_same_file_is_a_duplicate(self, ledger: Ledger) -> None:
        film = self.done(ledger)
        content = Content(film.file_hash, film.content_hash)
        arrival_id, job_id = self.verify(ledger, {"content": content})
        assert self.arrival_state(ledger, arrival_id) == "duplicate"
        assert job_row(ledger.database, job_id).state == "done"
        assert check_invariants(ledger.database) == []

    def test_an_unreadable_file_is_rejected_and_the_job_done(self, ledger: Ledger) -> None:
        self.done(ledger)
        arrival_id, job_id = self.verify(ledger, {"error": FilmError("TRUNCATED_PIXELS")})
        assert self.arrival_state(ledger, arrival_id) == "rejected"
        assert job_row(ledger.database, job_id).state == "done"

    def test_waits_for_the_films_own_job_without_counting(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])
        ledger.must_claim()
        arrival_id, job_id = self.verify(ledger, {"content": Content("1" * 64, "2" * 64)})
        row = job_row(ledger.database, job_id)
        assert (row.state, row.code, row.attempts) == ("delayed", WAITING, 0)
        assert self.arrival_state(ledger, arrival_id) == "unverified"
        assert check_invariants(ledger.database) == []

    def test_each_look_at_a_film_that_is_not_ready_waits_longer(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])
        ledger.must_claim()
        _, job_id = self.verify(ledger, {"content": Content("1" * 64, "2" * 64)})
        waits = []
        for _ in range(10):
            with ledger.database.write() as connection:
                due = connection.scalar(select(-seconds_since(job.c.available_at)).where(job.c.id == job_id))
                waits.append(due)
                connection.execute(update(job).where(job.c.id == job_id).values(available_at=database_now()))
            make_due_ready(ledger.database)
            claimed = ledger.must_claim()
            outcomes = [Outcome(item, content=Content("1" * 64, "2" * 64)) for item in claimed.jobs]
            finish(ledger.database, claimed, outcomes, settings=ledger.settings)
        assert waits == sorted(waits)
        assert waits[3] > 4 * waits[0]
        assert waits[-1] <= 300
