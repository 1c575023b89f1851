from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ledger_rows import (
    Ledger,
    add_unverified,
    age_leases,
    full_result,
    job_row,
    job_states,
    register_films,
    settings_for,
)
from passthrough_worker import command
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from waiting import wait_until

from schema import tables
from schema.database import Database, DatabaseVersionError
from worker.errors import CarinaError, FilmError, MachineError
from worker.queue.batches import BatchReport
from worker.queue.duties import Duty
from worker.queue.invariants import check_invariants
from worker.queue.leases import sweep
from worker.queue.loop import STALLED_EXIT_CODE, WorkerLoop
from worker.queue.outcomes import ClaimedJob, Content, Outcome
from worker.queue.watermarks import DiskWatermark

WAIT = 60.0


class Scripted:
    """A processor that does what ``script`` says for each film; default: a full result."""

    bundle_id = 1

    def __init__(self, script: Callable[[ClaimedJob], Outcome | None] | None = None) -> None:
        self.script = script or (lambda job: Outcome(job, result=full_result(job.source.path)))
        self.batches: list[list[str]] = []

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        self.batches.append([job.source.path for job in jobs])
        outcomes = []
        for job in jobs:
            outcome = self.script(job)
            if outcome is not None:
                outcomes.append(outcome)
            progress()
        return outcomes


log = logging.getLogger(__name__)


def loop(ledger: Ledger, processor: Any, **options: Any) -> WorkerLoop:
    # A disk that is slow for 0.3 s must not end the process that runs the tests.
    options = {"solo_command": [sys.executable, "-c", "raise SystemExit(7)"], "on_stall": log.warning, **options}
    return WorkerLoop(ledger.settings, options.pop("database", ledger.database), ledger.worker, processor, **options)


@contextmanager
def running(worker_loop: WorkerLoop, **options: Any) -> Iterator[tuple[threading.Thread, threading.Event]]:
    stop = threading.Event()
    thread = threading.Thread(target=worker_loop.run, args=(stop,), kwargs=options)
    thread.start()
    try:
        yield thread, stop
    finally:
        stop.set()
        thread.join(WAIT)
        assert not thread.is_alive()


class TestUntilIdle:
    def test_every_film_is_done(self, ledger: Ledger) -> None:
        ids = register_films(ledger.database, [f"film-{number}" for number in range(50)])
        processor = Scripted()
        loop(ledger, processor).run(threading.Event(), until_idle=True)
        assert job_states(ledger.database) == dict.fromkeys(ids, "done")
        assert sorted(name for batch in processor.batches for name in batch) == sorted(f"film-{n}" for n in range(50))
        assert check_invariants(ledger.database) == []

    def test_each_batch_is_told_with_what_came_of_it(self, ledger: Ledger) -> None:
        register_films(ledger.database, [f"film-{number}" for number in range(20)])
        seen: list[tuple[BatchReport, float]] = []
        worker_loop = loop(ledger, Scripted(), observe=lambda *told: seen.append(told))
        worker_loop.run(threading.Event(), until_idle=True)
        assert sum(report.states["done"] for report, _ in seen) == 20
        assert all(report.claimed and seconds >= 0 for report, seconds in seen)

    def test_waits_for_delayed_films(self, ledger: Ledger) -> None:
        ledger.settings = settings_for(ledger.settings.home, backoff_seconds=0.05)
        (film,) = register_films(ledger.database, ["a"])
        tries = []

        def second_time(job: ClaimedJob) -> Outcome:
            tries.append(job.attempts)
            if len(tries) == 1:
                return Outcome(job, error=FilmError("SOURCE_MISSING"))
            return Outcome(job, result=full_result("a"))

        loop(ledger, Scripted(second_time)).run(threading.Event(), until_idle=True)
        assert tries == [1, 2] and job_row(ledger.database, film).state == "done"

    def test_a_verification_waits_for_its_film(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])
        _, verification = add_unverified(ledger.database, 1, "copy")
        film = full_result("a")

        def process(job: ClaimedJob) -> Outcome:
            if job.kind == "verify":
                return Outcome(job, content=Content(film.file_hash, film.content_hash))
            return Outcome(job, result=film)

        loop(ledger, Scripted(process)).run(threading.Event(), until_idle=True)
        assert job_row(ledger.database, verification).state == "done"
        assert check_invariants(ledger.database) == []

    def test_ends_with_its_own_submission(self, ledger: Ledger) -> None:
        (mine,) = register_films(ledger.database, ["mine"], lane="icu")
        (other,) = register_films(ledger.database, ["other"])
        held = ledger.must_claim(2)
        assert [item.id for item in held.jobs] == [mine, other]
        with ledger.database.write() as connection:
            connection.execute(
                tables.job.update()
                .where(tables.job.c.id == mine)
                .values(state="cancelled", lease_id=None, bundle_id=None)
            )
        # Another film stays leased to somebody else: a loop that waited for it would never end.
        loop(ledger, Scripted()).run(threading.Event(), submission_id=1)
        assert job_row(ledger.database, other).state == "leased"

    def test_a_submission_still_being_scanned_is_not_over(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])
        with ledger.database.write() as connection:
            connection.execute(tables.submission.update().values(scan_complete=False))
        with running(loop(ledger, Scripted()), submission_id=1) as (thread, _):
            wait_until(lambda: set(job_states(ledger.database).values()) == {"done"})
            assert thread.is_alive()
            with ledger.database.write() as connection:
                connection.execute(tables.submission.update().values(scan_complete=True))
            thread.join(WAIT)
            assert not thread.is_alive()


class TestTrouble:
    def test_a_batch_that_fails_as_a_whole_is_tried_again(
        self, ledger: Ledger, caplog: pytest.LogCaptureFixture
    ) -> None:
        ledger.settings = settings_for(ledger.settings.home, backoff_seconds=0.01)
        (film,) = register_films(ledger.database, ["a"])
        calls = []

        def once(job: ClaimedJob) -> Outcome:
            calls.append(job.id)
            if len(calls) == 1:
                raise RuntimeError("Doe^John")
            return Outcome(job, result=full_result("a"))

        loop(ledger, Scripted(once)).run(threading.Event(), until_idle=True)
        assert job_row(ledger.database, film).state == "done"
        assert "RuntimeError in test_loop.py" in caplog.text and "Doe" not in caplog.text

    def test_a_film_without_an_outcome_fails_in_the_end_and_alone(self, ledger: Ledger) -> None:
        ledger.settings = settings_for(ledger.settings.home, backoff_seconds=0.001, max_attempts=2)
        lost, good = register_films(ledger.database, ["lost", "good"])
        processor = Scripted(
            lambda job: None if job.source.path == "lost" else Outcome(job, result=full_result("good"))
        )
        loop(ledger, processor).run(threading.Event(), until_idle=True)
        assert job_states(ledger.database) == {lost: "failed", good: "done"}
        assert job_row(ledger.database, lost).code == "ENGINE_FAILED"

    def test_a_fault_of_ours_comes_out_of_run(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])

        class Broken(Database):
            @contextmanager
            def read(self) -> Iterator[Connection]:
                raise ProgrammingError("SELECT", {}, Exception("no such column"))
                yield

        with pytest.raises(ProgrammingError):
            loop(ledger, Scripted(), database=Broken(ledger.database.url)).run(threading.Event(), until_idle=True)

    def test_an_upgraded_database_ends_it_and_puts_no_film_under_suspicion(self, ledger: Ledger) -> None:
        films = register_films(ledger.database, ["a", "b"])
        upgraded = threading.Lock()

        def upgrade(job: ClaimedJob) -> Outcome:
            if upgraded.acquire(blocking=False):
                with ledger.database.write() as connection:
                    connection.execute(text("ALTER TABLE heatmap ADD COLUMN place TEXT CHECK (place IS NOT NULL)"))
                    connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            return Outcome(job, result=full_result(job.source.path))

        with pytest.raises(DatabaseVersionError, match="newer Carina"):
            loop(ledger, Scripted(upgrade)).run(threading.Event(), until_idle=True)
        rows = [job_row(ledger.database, film) for film in films]
        assert [(row.state, row.attempts, row.crashes) for row in rows] == [("ready", 0, 0)] * 2

    def test_a_machine_that_can_read_nothing_gives_all_films_back(self, ledger: Ledger) -> None:
        films = register_films(ledger.database, ["a", "b"])

        def no_decoder(job: ClaimedJob) -> Outcome:
            raise MachineError("No decoder child can be started.")

        with pytest.raises(MachineError, match="decoder child"):
            loop(ledger, Scripted(no_decoder)).run(threading.Event(), until_idle=True)
        rows = [job_row(ledger.database, film) for film in films]
        assert [(row.state, row.attempts, row.crashes) for row in rows] == [("ready", 0, 0)] * 2

    def test_outlives_a_database_that_is_away(self, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
        # A Celery worker that ran in this process may have raised the root logger's level.
        caplog.set_level("WARNING")
        ids = register_films(ledger.database, [f"film-{number}" for number in range(20)])

        class Flaky(Database):
            calls = 0

            @contextmanager
            def write(self) -> Iterator[Connection]:
                Flaky.calls += 1
                if Flaky.calls % 3 == 0:
                    raise OperationalError("BEGIN", {}, Exception("database is locked"))
                with super().write() as connection:
                    yield connection
                if Flaky.calls % 5 == 0:
                    raise OperationalError("COMMIT", {}, Exception("connection lost"))

        flaky = Flaky(ledger.database.url)
        loop(ledger, Scripted(), database=flaky).run(threading.Event(), until_idle=True)
        flaky.close()
        assert job_states(ledger.database) == dict.fromkeys(ids, "done")
        assert "does not take our work" in caplog.text and "takes our work again" in caplog.text
        assert check_invariants(ledger.database) == []
        with ledger.database.read() as connection:
            assert set(connection.scalars(select(tables.job.c.crashes))) == {0}

    def test_pauses_while_the_disk_is_full(self, ledger: Ledger, tmp_path: Path) -> None:
        register_films(ledger.database, ["a"])
        free = {"bytes": 0}
        looks = []

        def look(folder: Path) -> int:
            looks.append(1)
            return free["bytes"]

        disk = DiskWatermark(tmp_path, 1000, free=look)
        with running(loop(ledger, Scripted(), disk=disk)):
            wait_until(lambda: len(looks) > 6)
            assert set(job_states(ledger.database).values()) == {"ready"}
            free["bytes"] = 5000
            wait_until(lambda: set(job_states(ledger.database).values()) == {"done"})

    def test_says_how_much_room_its_disk_has(self, ledger: Ledger, tmp_path: Path) -> None:
        ledger.settings = settings_for(ledger.settings.home, lease_seconds=0.2)

        def told() -> int | None:
            with ledger.database.read() as connection:
                free: int | None = connection.scalar(select(tables.worker.c.home_free_bytes))
            return free

        with running(loop(ledger, Scripted(), disk=DiskWatermark(tmp_path, 0, free=lambda folder: 5000))):
            wait_until(lambda: told() == 5000)

    def test_a_stuck_batch_ends_the_process_and_its_lease_is_not_renewed(self, ledger: Ledger) -> None:
        ledger.settings = settings_for(ledger.settings.home, stall_seconds=0.2, lease_seconds=0.4)
        (film,) = register_films(ledger.database, ["a"])
        release_film, stalled = threading.Event(), threading.Event()
        said: list[str] = []

        def stick(job: ClaimedJob) -> Outcome:
            release_film.wait(WAIT)
            return Outcome(job, result=full_result("a"))

        def on_stall(message: str) -> None:
            said.append(message)
            stalled.set()

        with running(loop(ledger, Scripted(stick), on_stall=on_stall)) as (_, stop):
            assert stalled.wait(WAIT)
            # A process that has ended claims nothing either.
            stop.set()
            age_leases(ledger.database)
            sweep(ledger.database)  # unless the loop's own duty was quicker
            assert set(job_states(ledger.database).values()) == {"ready"}
            release_film.set()
        assert said[0].startswith("Nothing moved for 0 s in 1 of 1 batches")
        assert (job_row(ledger.database, film).state, job_row(ledger.database, film).crashes) == ("ready", 1)

    def test_a_database_that_falls_silent_ends_even_an_idle_process(self, ledger: Ledger) -> None:
        """A connection nobody answers on any more: whoever asked waits, and no batch is there to be missed."""
        ledger.settings = settings_for(ledger.settings.home, stall_seconds=0.2)
        frozen, thawed, stalled = threading.Event(), threading.Event(), threading.Event()
        said: list[str] = []

        class Silent(Database):
            @contextmanager
            def read(self) -> Iterator[Connection]:
                with super().read() as connection:
                    if frozen.is_set():
                        thawed.wait(WAIT)
                    yield connection

        silent = Silent(ledger.database.url)
        worker_loop = loop(
            ledger, Scripted(), database=silent, on_stall=lambda message: (said.append(message), stalled.set())
        )
        with running(worker_loop):
            frozen.set()
            assert stalled.wait(WAIT)
            thawed.set()
        silent.close()
        assert "database transactions" in said[0] and "batches" not in said[0]

    def test_ends_when_its_name_was_taken(self, ledger: Ledger) -> None:
        ledger.settings = settings_for(ledger.settings.home, lease_seconds=0.2)
        with ledger.database.write() as connection:
            connection.execute(tables.worker.update().values(boot_id="another start"))
        with pytest.raises(CarinaError, match="named one was started while this one was silent"):
            loop(ledger, Scripted()).run(threading.Event())
        with ledger.database.read() as connection:
            assert connection.scalar(select(tables.worker.c.stopped_at)) is None


class TestStop:
    def test_finishes_what_is_being_processed(self, ledger: Ledger) -> None:
        ledger.settings = settings_for(ledger.settings.home, claim_size=2)
        register_films(ledger.database, [f"film-{number}" for number in range(12)])
        started, go_on = threading.Barrier(3), threading.Event()

        def wait(job: ClaimedJob) -> Outcome:
            if not go_on.is_set():
                started.wait(WAIT)
                go_on.wait(WAIT)
            return Outcome(job, result=full_result(job.source.path))

        with running(loop(ledger, Scripted(wait))) as (_, stop):
            started.wait(WAIT)
            stop.set()
            go_on.set()
        states = list(job_states(ledger.database).values())
        assert (states.count("done"), states.count("ready")) == (4, 8)
        with ledger.database.read() as connection:
            assert connection.scalar(select(tables.worker.c.stopped_at)) is not None
            assert connection.scalar(select(tables.lease.c.id)) is None

    def test_without_its_database_it_ends_after_a_lease_and_keeps_what_it_holds(self, ledger: Ledger) -> None:
        """Somebody takes the films back when their lease runs out: there is nobody to give them to now."""
        ledger.settings = settings_for(ledger.settings.home, lease_seconds=0.3)
        (film,) = register_films(ledger.database, ["a"])
        away, stop = threading.Event(), threading.Event()

        class Away(Database):
            @contextmanager
            def write(self) -> Iterator[Connection]:
                if away.is_set():
                    raise OperationalError("BEGIN", {}, Exception("connection lost"))
                with super().write() as connection:
                    yield connection

        def cut_off(job: ClaimedJob) -> Outcome:
            away.set()
            stop.set()
            return Outcome(job, result=full_result("a"))

        database = Away(ledger.database.url)
        loop(ledger, Scripted(cut_off), database=database).run(stop)
        database.close()
        assert job_row(ledger.database, film).state == "leased"

    def test_a_new_film_wakes_an_idle_worker(self, ledger: Ledger) -> None:
        ledger.settings = settings_for(ledger.settings.home, poll_seconds=WAIT * 2)
        worker_loop = loop(ledger, Scripted())
        with running(worker_loop):
            register_films(ledger.database, ["a"])

            def done() -> bool:
                worker_loop.wake()
                return set(job_states(ledger.database).values()) == {"done"}

            wait_until(done)


def test_duties_are_done_while_it_runs(ledger: Ledger) -> None:
    done = threading.Event()
    duty = Duty("extra", 3600.0, lambda database: done.set() or "done")  # type: ignore[func-returns-value]
    with running(loop(ledger, Scripted(), extra_duties=[duty])):
        assert done.wait(WAIT)


class TestSuspects:
    def suspects(self, ledger: Ledger, folder: Path, *words: str) -> list[int]:
        names = []
        for number, word in enumerate(words):
            (folder / f"suspect-{number}").write_text(word)
            names.append(str(folder / f"suspect-{number}").lstrip("/"))
        ids = register_films(ledger.database, names)
        ledger.must_claim(len(ids))
        age_leases(ledger.database)
        sweep(ledger.database)
        return ids

    def solo(self, ledger: Ledger) -> list[str]:
        settings = {"database_url": ledger.settings.database_url}
        options = {"home": str(ledger.settings.home), "settings": settings, "seconds_per_film": 0.0}
        return command("solo", options)

    def test_run_in_a_child_only_the_culprit_is_convicted(self, ledger: Ledger, tmp_path: Path) -> None:
        innocent, poison, brittle = self.suspects(ledger, tmp_path, "film", "poison", "brittle")
        processor = Scripted()
        loop(ledger, processor, solo_command=self.solo(ledger)).run(threading.Event(), until_idle=True)
        assert job_states(ledger.database) == {innocent: "done", poison: "failed", brittle: "failed"}
        assert {job_row(ledger.database, film).code for film in (poison, brittle)} == {"WORKER_CRASHED"}
        assert processor.batches == []
        assert check_invariants(ledger.database) == []

    @pytest.mark.parametrize(
        ("program", "said"),
        [(["-c", "raise SystemExit(1)"], "exit code 1"), (["-c", "pass"], "exit code 0"), (None, "did not start")],
    )
    def test_a_child_that_gives_up_is_no_proof_against_the_film(
        self, ledger: Ledger, tmp_path: Path, program: list[str] | None, said: str
    ) -> None:
        ledger.settings = settings_for(ledger.settings.home, backoff_seconds=0.001, max_attempts=2)
        (film,) = self.suspects(ledger, tmp_path, "film")
        solo = [sys.executable, *program] if program else [str(tmp_path / "missing")]
        loop(ledger, Scripted(), solo_command=solo).run(threading.Event(), until_idle=True)
        row = job_row(ledger.database, film)
        assert (row.state, row.code) == ("failed", "ENGINE_FAILED") and said in row.detail
        with ledger.database.read() as connection:
            outcomes = list(connection.scalars(select(tables.attempt.c.outcome).order_by(tables.attempt.c.id)))
        assert outcomes == ["expired", "delayed", "failed"]

    def test_a_child_that_an_upgraded_database_refused_costs_its_film_no_attempt(
        self, ledger: Ledger, tmp_path: Path
    ) -> None:
        (film,) = self.suspects(ledger, tmp_path, "film")
        with ledger.database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            connection.execute(text("DROP TABLE heatmap"))
        with pytest.raises(DatabaseVersionError, match="newer Carina"):
            loop(ledger, Scripted(), solo_command=self.solo(ledger)).run(threading.Event(), until_idle=True)
        row = job_row(ledger.database, film)
        assert (row.state, row.attempts, row.crashes) == ("ready", 0, 1)

    def test_a_child_without_its_database_gives_the_film_back(self, ledger: Ledger, tmp_path: Path) -> None:
        (film,) = self.suspects(ledger, tmp_path, "film")
        ledger.settings = replace(ledger.settings, max_attempts=2)
        sentinel = tmp_path / "tries"
        # Three times no database, then the real child.
        script = (
            "import os, sys; file = sys.argv[1]; tries = os.path.getsize(file) if os.path.exists(file) else 0\n"
            "open(file, 'a').write('x')\n"
            f"if tries < 3: raise SystemExit({STALLED_EXIT_CODE})\n"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        child = [sys.executable, "-c", script, str(sentinel), *self.solo(ledger)]
        loop(ledger, Scripted(), solo_command=child).run(threading.Event(), until_idle=True)
        row = job_row(ledger.database, film)
        assert (row.state, row.attempts, row.crashes) == ("done", 1, 1)

    def test_a_child_that_hangs_is_ended_and_blamed_at_the_third_time(self, ledger: Ledger, tmp_path: Path) -> None:
        ledger.settings = settings_for(ledger.settings.home, stall_seconds=0.3)
        (film,) = self.suspects(ledger, tmp_path, "film")
        hang = [sys.executable, "-c", "import time; time.sleep(600)"]
        loop(ledger, Scripted(), solo_command=hang).run(threading.Event(), until_idle=True)
        assert job_row(ledger.database, film).code == "WORKER_CRASHED"
        assert job_row(ledger.database, film).crashes == 3

    def test_stopping_ends_the_child_and_gives_the_film_back(self, ledger: Ledger, tmp_path: Path) -> None:
        (film,) = self.suspects(ledger, tmp_path, f"gate {tmp_path / 'gate'}")
        with running(loop(ledger, Scripted(), solo_command=self.solo(ledger))):
            wait_until((tmp_path / "gate.started").exists)
        row = job_row(ledger.database, film)
        assert (row.state, row.crashes, row.attempts) == ("ready", 1, 0)
        assert check_invariants(ledger.database) == []


def test_says_when_results_came_too_late(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    (film,) = register_films(ledger.database, ["a"])

    def lose_the_lease(job: ClaimedJob) -> Outcome:
        # At once: between two steps the loop would claim the film again.
        with ledger.database.write() as connection:
            connection.execute(tables.job.update().values(state="cancelled", lease_id=None))
        return Outcome(job, result=full_result("a"))

    with caplog.at_level(logging.WARNING):
        loop(ledger, Scripted(lose_the_lease)).run(threading.Event(), until_idle=True)
    assert "fenced, nothing written" in caplog.text
    assert job_row(ledger.database, film).state == "cancelled"
