"""Shadow jobs: read by a bundle on trial, unseen, never in anybody's way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from ledger_rows import Ledger, add_bundle, age_leases, full_result, job_row, make_due, register_films
from sqlalchemy import func, insert, select, text, update

from schema import queries, tables
from schema.tables import JobKind, Lane
from schema.view_tables import published_result
from worker import REVISION
from worker.errors import CarinaError, FilmError
from worker.intake.arrivals import replace_file
from worker.intake.resubmission import outdated_films
from worker.queue.claim_statements import EVERYWHERE
from worker.queue.engines import Engines, OneEngine
from worker.queue.finish import finish
from worker.queue.idle import Idle
from worker.queue.invariants import check_invariants
from worker.queue.leases import make_due_ready, sweep
from worker.queue.ledger import release, retry
from worker.queue.loop import WorkerLoop
from worker.queue.outcomes import Claim, ClaimedJob, Outcome
from worker.queue.roots import waiting_films
from worker.queue.shadow import bundles_on_trial, open_shadow_jobs, publish
from worker.queue.watermarks import backlog


@pytest.fixture
def candidate(ledger: Ledger) -> int:
    point(ledger, champion=ledger.bundle_id)
    return add_bundle(ledger.database, "candidate")


def point(ledger: Ledger, **aliases: int) -> None:
    with ledger.database.write() as connection:
        connection.execute(tables.bundle_alias.delete())
        connection.execute(
            insert(tables.bundle_alias), [{"alias": name, "bundle_id": number} for name, number in aliases.items()]
        )


def read(ledger: Ledger, claimed: Claim, **bad: str) -> None:
    """Finish a batch: every film gets a result, those named in ``bad`` (f1="DECODE_FAILED") do not."""
    outcomes = [
        Outcome(item, error=FilmError(bad[item.source.path]))
        if item.source.path in bad
        else Outcome(item, result=full_result(item.source.path))
        for item in claimed.jobs
    ]
    report = finish(ledger.database, claimed, outcomes, settings=ledger.settings)
    assert len(report.states) == len(claimed.jobs)


def done_films(ledger: Ledger, count: int) -> list[int]:
    jobs = register_films(ledger.database, [f"f{number}" for number in range(count)])
    read(ledger, ledger.must_claim(count, revision=REVISION))
    return jobs


def shadow_rows(ledger: Ledger) -> list[Any]:
    with ledger.database.read() as connection:
        return list(
            connection.execute(select(tables.job).where(tables.job.c.kind == "shadow").order_by(tables.job.c.id))
        )


def shadow_claim(ledger: Ledger, candidate: int, limit: int = 16, **changes: Any) -> Claim | None:
    return ledger.claim(limit, bundle_id=candidate, revision=REVISION, shadow=True, **changes)


def published(ledger: Ledger) -> dict[int, int]:
    """Film → bundle that speaks for it."""
    with ledger.database.read() as connection:
        rows = connection.execute(select(published_result.c.instance_id, published_result.c.bundle_id))
        return {row.instance_id: row.bundle_id for row in rows}


class TestOpening:
    def test_films_with_a_result_get_a_job_that_waits_for_its_bundle_alone(
        self, ledger: Ledger, candidate: int
    ) -> None:
        done_films(ledger, 3)
        register_films(ledger.database, ["waits"])
        report = open_shadow_jobs(ledger.database, candidate)
        assert (report.opened, report.known, report.states) == (3, 0, {"ready": 3})
        rows = shadow_rows(ledger)
        assert {(row.state, row.bundle_id, row.revision, row.published) for row in rows} == {
            ("ready", candidate, None, False)
        }
        assert check_invariants(ledger.database) == []

    def test_asking_again_opens_nothing_and_tries_failures_again(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 3)
        open_shadow_jobs(ledger.database, candidate)
        assert open_shadow_jobs(ledger.database, candidate).to_json() == {
            "opened": 0, "known": 3, "states": {"ready": 3},
        }  # fmt: skip
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        read(ledger, claimed, f1="DECODE_FAILED")
        assert open_shadow_jobs(ledger.database, candidate).to_json() == {
            "opened": 1, "known": 2, "states": {"cancelled": 1, "done": 2, "ready": 1},
        }  # fmt: skip

    def test_the_last_films_or_a_share_that_stays_the_same(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 40)
        open_shadow_jobs(ledger.database, candidate, last=5)
        assert [row.instance_id for row in shadow_rows(ledger)] == [36, 37, 38, 39, 40]
        other = add_bundle(ledger.database, "other")
        opened = open_shadow_jobs(ledger.database, other, share=0.5).opened
        assert 8 <= opened <= 32
        assert open_shadow_jobs(ledger.database, other, share=0.5).opened == 0
        assert open_shadow_jobs(ledger.database, other).opened == 40 - opened

    def test_a_film_that_the_bundle_read_in_earnest_needs_none(self, ledger: Ledger, candidate: int) -> None:
        register_films(ledger.database, ["a"])
        read(ledger, ledger.must_claim(1, bundle_id=candidate, revision=REVISION))
        done_films(ledger, 1)
        assert open_shadow_jobs(ledger.database, candidate).to_json()["opened"] == 1

    def test_the_bundle_in_service_reads_every_film_anyway(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 1)
        with pytest.raises(CarinaError, match="in service"):
            open_shadow_jobs(ledger.database, ledger.bundle_id)
        assert shadow_rows(ledger) == []


class TestClaiming:
    @pytest.mark.parametrize("lane", list(Lane))
    def test_only_when_nothing_else_is_ready(self, ledger: Ledger, candidate: int, lane: Lane) -> None:
        done_films(ledger, 2)
        open_shadow_jobs(ledger.database, candidate)
        (film,) = register_films(ledger.database, ["urgent"], lane=lane)
        assert shadow_claim(ledger, candidate) is None
        claimed = ledger.must_claim(16, revision=REVISION)
        assert [item.id for item in claimed.jobs] == [film]
        # It is in work, not waiting.
        found = shadow_claim(ledger, candidate)
        assert found is not None and found.bundle_id == candidate
        assert {item.kind for item in found.jobs} == {JobKind.SHADOW}
        assert {(row.state, row.bundle_id, row.revision) for row in shadow_rows(ledger)} == {
            ("leased", candidate, REVISION)
        }

    @pytest.mark.parametrize("drawn", [0.0, 0.1, 0.29, 0.31, 0.99])
    def test_nobody_else_claims_them_whoevers_turn_it_is(self, ledger: Ledger, candidate: int, drawn: float) -> None:
        done_films(ledger, 2)
        open_shadow_jobs(ledger.database, candidate)
        assert ledger.claim(draw=lambda: drawn) is None
        assert ledger.claim(bundle_id=candidate, draw=lambda: drawn) is None
        assert shadow_claim(ledger, ledger.bundle_id) is None
        assert check_invariants(ledger.database) == []

    def test_given_back_or_postponed_they_stay_their_bundles(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 2)
        open_shadow_jobs(ledger.database, candidate)
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        release(ledger.database, claimed.lease_id)
        assert {(row.state, row.bundle_id) for row in shadow_rows(ledger)} == {("ready", candidate)}
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        read(ledger, claimed, f0="SOURCE_MISSING")
        assert [(row.state, row.bundle_id) for row in shadow_rows(ledger)] == [
            ("delayed", candidate), ("done", candidate),
        ]  # fmt: skip
        make_due(ledger.database)
        assert make_due_ready(ledger.database) == 1
        assert check_invariants(ledger.database) == []

    def test_one_whose_reader_died_is_read_alone(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 2)
        open_shadow_jobs(ledger.database, candidate)
        shadow_claim(ledger, candidate)
        age_leases(ledger.database)
        sweep(ledger.database)
        assert ledger.claim() is None
        assert shadow_claim(ledger, candidate, suspects=False) is None
        alone = shadow_claim(ledger, candidate)
        assert alone is not None and alone.suspect and len(alone.jobs) == 1
        assert alone.bundle_id == candidate

    def test_films_under_a_root_that_the_machine_lacks_are_left(self, ledger: Ledger, candidate: int) -> None:
        register_films(ledger.database, ["a"], root="elsewhere")
        register_films(ledger.database, ["b"])
        read(ledger, ledger.must_claim(2, revision=REVISION))
        open_shadow_jobs(ledger.database, candidate)
        # What waits for other machines does not keep this one from its own.
        register_films(ledger.database, ["c"], root="elsewhere")
        claimed = shadow_claim(ledger, candidate, missing_roots=["elsewhere"])
        assert claimed is not None and [item.source.path for item in claimed.jobs] == ["b"]
        assert shadow_claim(ledger, candidate, missing_roots=["elsewhere"]) is None


class TestUnseen:
    def test_nothing_that_people_or_commands_read_counts_them(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 3)

        def seen() -> list[Any]:
            views = ("film_state", "published_result", "overnight_summary", "turnaround", "backlog", "dead_letters")
            with ledger.database.read() as connection:
                everything: list[Any] = [
                    [tuple(row) for row in connection.execute(text(f"SELECT * FROM {view} ORDER BY 1"))]
                    for view in views
                ]
                everything += [
                    queries.state_counts(connection),
                    {
                        lane: (each.ready, each.leased, each.delayed)
                        for lane, each in queries.backlog(connection).items()
                    },
                    queries.submission_counts(connection, 1),
                    queries.open_films(connection, 1),
                    queries.failed_films(connection),
                    waiting_films(connection),
                    [Idle(which, OneEngine(Reader(1))).anything_open(connection, ()) for which in (None, 1)],
                    outdated_films(connection, [1, 2, 3]),
                ]
                pace = queries.throughput(connection)
            return [*everything, (pace.done, pace.failed), backlog(ledger.database, 100)]

        before = seen()
        open_shadow_jobs(ledger.database, candidate)
        assert seen() == before
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        assert seen() == before
        read(ledger, claimed, f0="DECODE_FAILED", f1="NOT_A_CHEST")
        assert Counter(row.state for row in shadow_rows(ledger)) == {"failed": 1, "ineligible": 1, "done": 1}
        assert seen() == before
        assert retry(ledger.database, actor="someone") == 0
        assert check_invariants(ledger.database) == []

    def test_their_flags_and_findings_count_for_their_own_bundle(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 1)
        open_shadow_jobs(ledger.database, candidate)
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        read(ledger, claimed)
        with ledger.database.read() as connection:
            rows = connection.execute(text("SELECT DISTINCT bundle, films FROM flag_rates ORDER BY bundle")).all()
        assert [tuple(row) for row in rows] == [("candidate:1", 1), ("test:1", 1)]

    def test_what_the_film_is_stays_as_it_was_settled(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 1)
        open_shadow_jobs(ledger.database, candidate)
        with ledger.database.read() as connection:
            before = [connection.execute(select(table)).all() for table in (tables.instance, tables.arrival)]
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        outcome = Outcome(claimed.jobs[0], result=full_result("another content"))
        finish(ledger.database, claimed, [outcome], settings=ledger.settings)
        with ledger.database.read() as connection:
            assert [connection.execute(select(table)).all() for table in (tables.instance, tables.arrival)] == before

    def test_a_film_whose_file_is_replaced_is_not_read_in_the_shadow_any_more(
        self, ledger: Ledger, candidate: int
    ) -> None:
        done_films(ledger, 1)
        open_shadow_jobs(ledger.database, candidate)
        with ledger.database.write() as connection:
            submission = connection.scalar(select(tables.submission.c.id))
            other = connection.execute(
                insert(tables.arrival).values(submission_id=submission, instance_id=1, state="conflict")
            ).inserted_primary_key[0]
            connection.execute(
                insert(tables.identity).values(arrival_id=other, root="local", path="other", size=1, modified_ns=1)
            )
            replace_file(connection, 1, other, former=tables.ArrivalState.CONFLICT, code=None, detail="")
        assert [row.state for row in shadow_rows(ledger)] == ["cancelled"]
        assert check_invariants(ledger.database) == []


class TestPublishing:
    def promote(self, ledger: Ledger, candidate: int) -> int:
        with ledger.database.write() as connection:
            found = publish(connection, candidate)
        point(ledger, champion=candidate, previous=ledger.bundle_id)
        return found

    def test_what_was_read_is_shown_and_not_read_again(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 3)
        open_shadow_jobs(ledger.database, candidate, last=2)
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        read(ledger, claimed, f1="NOT_A_CHEST")
        assert self.promote(ledger, candidate) == 2
        assert published(ledger) == {1: 1, 2: 1, 3: candidate}
        with ledger.database.read() as connection:
            # Submitted again, only the film that the new bundle has not read gets a job.
            assert outdated_films(connection, [1, 2, 3]) == ({1}, set())
            assert queries.submission_counts(connection, 1).ineligible == 1
        assert check_invariants(ledger.database) == []

    def test_open_ones_are_cancelled_and_whoever_works_on_them_writes_nothing(
        self, ledger: Ledger, candidate: int
    ) -> None:
        done_films(ledger, 3)
        open_shadow_jobs(ledger.database, candidate)
        claimed = shadow_claim(ledger, candidate, limit=1)
        assert claimed is not None
        assert self.promote(ledger, candidate) == 0
        assert {row.state for row in shadow_rows(ledger)} == {"cancelled"}
        outcome = Outcome(claimed.jobs[0], result=full_result("f0"))
        report = finish(ledger.database, claimed, [outcome], settings=ledger.settings)
        assert report.fenced == (claimed.jobs[0].id,)
        assert published(ledger) == {1: 1, 2: 1, 3: 1}
        assert check_invariants(ledger.database) == []

    def test_a_film_that_waits_to_be_read_again_is_through(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 1)
        open_shadow_jobs(ledger.database, candidate)
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        read(ledger, claimed)
        with ledger.database.write() as connection:
            waiting = connection.execute(insert(tables.job).values(instance_id=1, priority=0)).inserted_primary_key[0]
        assert self.promote(ledger, candidate) == 1
        assert ledger.claim(bundle_id=candidate, revision=REVISION) is None
        assert job_row(ledger.database, waiting).state == "cancelled"
        assert published(ledger) == {1: candidate}

    def test_a_worker_that_has_the_candidate_still_reads_in_earnest(self, ledger: Ledger, candidate: int) -> None:
        """It was in service, was rolled back, and this worker has not noticed yet."""
        done_films(ledger, 1)
        open_shadow_jobs(ledger.database, candidate)
        with ledger.database.write() as connection:
            connection.execute(insert(tables.job).values(instance_id=1, priority=0))
        claimed = ledger.must_claim(1, bundle_id=candidate, revision=REVISION)
        read(ledger, claimed)
        again = shadow_claim(ledger, candidate)
        assert again is not None
        read(ledger, again)
        # Two results of one bundle: the one that is shown already stays.
        assert self.promote(ledger, candidate) == 0
        assert published(ledger) == {1: candidate}
        assert check_invariants(ledger.database) == []

    def test_what_was_said_about_a_replaced_file_is_not_shown(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 1)
        open_shadow_jobs(ledger.database, candidate)
        claimed = shadow_claim(ledger, candidate)
        assert claimed is not None
        read(ledger, claimed)
        with ledger.database.write() as connection:
            connection.execute(update(tables.instance).values(generation=2))
        assert self.promote(ledger, candidate) == 0


class Reader:
    """Gives every film its result and remembers what it read."""

    def __init__(self, bundle_id: int) -> None:
        self.bundle_id = bundle_id
        self.films: list[str] = []

    def process(self, jobs: Sequence[ClaimedJob], progress: Any) -> list[Outcome]:
        self.films += [item.source.path for item in jobs]
        return [Outcome(item, result=full_result(item.source.path)) for item in jobs]


class Both(Engines):
    """One bundle serves and one is on trial."""

    do_shadow_jobs = True

    def __init__(self, ledger: Ledger, serving: Reader, trial: Reader, *, loads: bool = True) -> None:
        self.ledger, self.serving, self.trial, self.loads = ledger, serving, trial, loads

    def hold(self) -> Any:
        return OneEngine(self.serving).hold()

    @contextmanager
    def hold_shadow(self) -> Iterator[Reader | None]:
        yield self.trial if self.loads else None

    def look(self) -> None:
        pass

    @property
    def refused(self) -> tuple[int, ...]:
        return () if self.loads else (self.trial.bundle_id,)


class TestInTheLoop:
    def test_until_idle_does_the_night_first_and_then_the_shadow_jobs(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 30)
        open_shadow_jobs(ledger.database, candidate)
        register_films(ledger.database, [f"night-{number}" for number in range(40)])
        serving, trial = Reader(ledger.bundle_id), Reader(candidate)
        loop = WorkerLoop(
            ledger.settings, ledger.database, ledger.worker, Both(ledger, serving, trial), solo_command=["false"]
        )
        loop.run(threading.Event(), until_idle=True)
        assert sorted(serving.films) == sorted(f"night-{number}" for number in range(40))
        assert sorted(trial.films) == sorted(f"f{number}" for number in range(30))
        with ledger.database.read() as connection:
            bound = connection.execute(
                select(tables.job.c.kind, tables.job.c.bundle_id, func.count()).group_by(
                    tables.job.c.kind, tables.job.c.bundle_id
                )
            ).all()
            assert bundles_on_trial(connection) == []
        assert sorted(tuple(row) for row in bound) == [("process", ledger.bundle_id, 70), ("shadow", candidate, 30)]
        assert check_invariants(ledger.database) == []

    def test_nobody_waits_for_a_bundle_that_cannot_be_loaded(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 2)
        open_shadow_jobs(ledger.database, candidate)
        trial = Reader(candidate)
        engines = Both(ledger, Reader(ledger.bundle_id), trial, loads=False)
        loop = WorkerLoop(ledger.settings, ledger.database, ledger.worker, engines, solo_command=["false"])
        loop.run(threading.Event(), until_idle=True)
        assert trial.films == []
        assert {row.state for row in shadow_rows(ledger)} == {"ready"}

    def test_nobody_waits_for_films_that_this_machine_cannot_reach(self, ledger: Ledger, candidate: int) -> None:
        register_films(ledger.database, ["a"], root="elsewhere")
        read(ledger, ledger.must_claim(1, revision=REVISION))
        done_films(ledger, 1)
        open_shadow_jobs(ledger.database, candidate)
        trial = Reader(candidate)
        engines = Both(ledger, Reader(ledger.bundle_id), trial)
        loop = WorkerLoop(ledger.settings, ledger.database, ledger.worker, engines, solo_command=["false"])
        loop.run(threading.Event(), until_idle=True)
        assert trial.films == ["f0"]
        assert sorted(row.state for row in shadow_rows(ledger)) == ["done", "ready"]

    def test_a_submission_does_not_wait_for_them(self, ledger: Ledger, candidate: int) -> None:
        done_films(ledger, 2)
        open_shadow_jobs(ledger.database, candidate)
        engines = Both(ledger, Reader(ledger.bundle_id), Reader(candidate), loads=False)
        loop = WorkerLoop(ledger.settings, ledger.database, ledger.worker, engines, solo_command=["false"])
        loop.run(threading.Event(), submission_id=1)
        assert {row.state for row in shadow_rows(ledger)} == {"ready"}


def test_counting_what_waits_takes_an_index(ledger: Ledger, candidate: int) -> None:
    if ledger.database.dialect != "sqlite":
        pytest.skip("asks SQLite for its plan")
    statements = [
        EVERYWHERE.anything,
        EVERYWHERE.only_shadows,
        EVERYWHERE.claims["shadow"],
    ]
    for statement in statements:
        compiled = statement.compile(ledger.database._writer)
        with ledger.database.read() as connection:
            plan = connection.exec_driver_sql(
                "EXPLAIN QUERY PLAN " + str(compiled), tuple(None for _ in compiled.positiontup or ())
            ).all()
        steps = [row.detail for row in plan]
        assert not [step for step in steps if step.startswith("SCAN job") and "INDEX" not in step], steps
