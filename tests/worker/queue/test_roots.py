"""Films under roots that a machine lacks: it says so and leaves them, and somebody else reads them."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
from sqlalchemy import select, update
from waiting import wait_until

from schema import tables
from schema.database import Database
from worker.errors import FilmError
from worker.intake.sources import resolve
from worker.queue.invariants import check_invariants
from worker.queue.leases import sweep
from worker.queue.ledger import register_worker
from worker.queue.loop import WorkerLoop
from worker.queue.outcomes import ClaimedJob, Outcome
from worker.queue.roots import films_left, missing_roots, waiting_films
from worker.settings import Settings

WAIT = 60.0


class Reader:
    """A processor that looks for each film where its settings say that it lies."""

    bundle_id = 1

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.read: list[str] = []

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        outcomes = []
        for job in jobs:
            self.read.append(job.source.path)
            try:
                resolve(self._settings, job.source)
            except FilmError as error:
                outcomes.append(Outcome(job, error=error))
            else:
                outcomes.append(Outcome(job, result=full_result(job.source.path)))
            progress()
        return outcomes


class Machine:
    """A worker with folders of its own on a ledger it shares."""

    def __init__(self, database: Database, home: Path, name: str, **folders: Path) -> None:
        roots = ",".join(f"{root}={folder}" for root, folder in folders.items())
        self.settings = settings_for(home / name, roots=roots, claim_size=4, poll_seconds=0.02, backoff_seconds=600.0)
        self.reader = Reader(self.settings)
        self._database = database
        self._worker = register_worker(database, self.settings, name)
        self._loop = WorkerLoop(self.settings, database, self._worker, self.reader, solo_command=["false"])

    def run_until_idle(self) -> None:
        self._loop.run(threading.Event(), until_idle=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._loop.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(WAIT)
            assert not thread.is_alive()


def put(database: Database, folder: Path, root: str, count: int) -> list[int]:
    """So many films in ``folder``, registered under ``root``."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{root}-{number}.dcm" for number in range(count)]
    for name in names:
        (folder / name).write_bytes(b"x")
    jobs = register_films(database, names, root=root)
    with database.write() as connection:
        for name in names:
            connection.execute(
                update(tables.identity)
                .where(tables.identity.c.path == name)
                .values(modified_ns=(folder / name).stat().st_mtime_ns)
            )
    return jobs


def outcomes_of(database: Database) -> Counter[str]:
    with database.read() as connection:
        return Counter(connection.scalars(select(tables.attempt.c.outcome)))


class TestMissingRoots:
    def test_a_folder_that_is_not_there_or_empty_is_told_with_its_reason(self, tmp_path: Path) -> None:
        for name in ("full", "empty"):
            (tmp_path / name).mkdir()
        (tmp_path / "full" / "film").touch()
        names = ("full", "empty", "absent", "full/film")
        found = missing_roots({name: tmp_path / name for name in names})
        assert found == {
            "empty": "its folder is empty: is it mounted?",
            "absent": "its folder is not there",
            "full/film": "its folder is not there",
        }

    @pytest.mark.parametrize(("mode", "missing"), [(0o000, True), (0o100, False), (0o500, False)])
    def test_a_folder_that_may_be_entered_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, missing: bool
    ) -> None:
        """As for a user who is not root, whom no mode keeps out."""

        def scan(folder: Path) -> object:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("worker.queue.roots.os.scandir", scan)
        monkeypatch.setattr("worker.queue.roots.os.access", lambda folder, wanted: bool(mode >> 6 & wanted))
        assert ("pacs" in missing_roots({"pacs": tmp_path})) is missing

    def test_a_share_that_is_gone_is_told_without_its_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def scan(folder: Path) -> object:
            raise OSError(116, "Stale file handle", str(folder))

        monkeypatch.setattr("worker.queue.roots.os.scandir", scan)
        assert missing_roots({"pacs": tmp_path}) == {"pacs": "its folder cannot be read (Stale file handle)"}


class TestClaim:
    def test_passes_over_films_under_missing_roots(self, ledger: Ledger) -> None:
        far = register_films(ledger.database, ["a", "b"], root="far")
        near = register_films(ledger.database, ["c"], root="near")
        other = register_films(ledger.database, ["d"], root="other")
        assert [item.id for item in ledger.must_claim(missing_roots=["far", "other"]).jobs] == near
        assert ledger.claim(missing_roots=["far", "other"]) is None
        assert [item.id for item in ledger.must_claim(missing_roots=["other"]).jobs] == far
        assert [item.id for item in ledger.must_claim().jobs] == other

    def test_passes_over_suspects_and_files_to_verify_too(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"], root="far")
        ledger.must_claim()
        age_leases(ledger.database)
        sweep(ledger.database)
        (near,) = register_films(ledger.database, ["b"], root="near")
        instance_id = ledger.must_claim().jobs[0].instance_id
        arrival_id, verify = add_unverified(ledger.database, instance_id, "copy of b")
        with ledger.database.write() as connection:
            connection.execute(
                update(tables.identity).where(tables.identity.c.arrival_id == arrival_id).values(root="far")
            )
        for drawn in (0.0, 0.2, 0.9):
            assert ledger.claim(missing_roots=["far"], draw=lambda drawn=drawn: drawn) is None
        assert job_states(ledger.database)[verify] == "ready"
        assert job_row(ledger.database, near).state == "leased"

    def test_a_job_without_a_file_of_its_own_lies_where_its_film_lies(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"], root="far")
        with ledger.database.write() as connection:
            connection.execute(update(tables.job).values(arrival_id=None))
        assert ledger.claim(missing_roots=["far"]) is None
        assert ledger.claim(missing_roots=["near"]) is not None

    def test_a_film_whose_file_is_forgotten_is_still_cancelled(self, ledger: Ledger) -> None:
        (gone,) = register_films(ledger.database, ["a"], root="far")
        with ledger.database.write() as connection:
            connection.execute(tables.identity.delete())
        assert ledger.claim(missing_roots=["far"]) is None
        assert job_row(ledger.database, gone).state == "cancelled"

    def test_finding_nothing_writes_nothing(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"], root="far")
        ledger.database.write = None  # type: ignore[assignment, method-assign]
        assert ledger.claim(missing_roots=["far"]) is None


class TestWorkers:
    def test_each_film_is_read_where_its_root_is(self, database: Database, tmp_path: Path) -> None:
        """Two machines, one database: each has a root that the other one lacks, and both have a third."""
        shared = tmp_path / "shared"
        here, there = tmp_path / "here", tmp_path / "there"
        jobs = [*put(database, here, "a", 30), *put(database, there, "b", 30), *put(database, shared, "c", 30)]
        one = Machine(database, tmp_path, "one", a=here, c=shared)
        two = Machine(database, tmp_path, "two", b=there, c=shared)
        with one.running(), two.running():
            wait_until(lambda: set(job_states(database).values()) == {"done"})
        assert job_states(database) == dict.fromkeys(jobs, "done")
        assert not [name for name in one.reader.read if name.startswith("b")]
        assert not [name for name in two.reader.read if name.startswith("a")]
        # Nobody tried in vain, and nobody waited for a second attempt.
        assert outcomes_of(database) == {"done": 90}
        with database.read() as connection:
            assert set(connection.execute(select(tables.job.c.attempts, tables.job.c.crashes))) == {(1, 0)}
        assert check_invariants(database) == []

    def test_films_that_nobody_here_can_reach_stay_as_they_were_and_it_is_said_once(
        self, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        near = put(database, tmp_path / "near", "near", 3)
        far = put(database, tmp_path / "far", "far", 10)
        before = [job_row(database, job) for job in far]
        machine = Machine(database, tmp_path, "one", near=tmp_path / "near")
        machine.run_until_idle()
        machine.run_until_idle()
        assert {job_row(database, job).state for job in near} == {"done"}
        kept = ("state", "attempts", "crashes", "code", "available_at", "created_at", "priority", "bundle_id")
        after = [job_row(database, job) for job in far]
        assert [[getattr(row, name) for name in kept] for row in after] == [
            [getattr(row, name) for name in kept] for row in before
        ]
        said = [record.getMessage() for record in caplog.records if "root" in record.getMessage()]
        assert said == [
            "Films under the root far are left to other machines: CARINA_ROOTS does not name it. See CARINA_ROOTS."
        ]
        assert check_invariants(database) == []

    def test_a_share_that_comes_back_is_read_again(
        self, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        mounted, mount = tmp_path / "share", tmp_path / "mount"
        jobs = put(database, mounted, "pacs", 6)
        mount.mkdir()
        machine = Machine(database, tmp_path, "one", pacs=mount)

        def said(words: str) -> bool:
            return words in caplog.text

        with machine.running():
            wait_until(lambda: said("left to other machines: its folder is empty: is it mounted?"))
            assert set(job_states(database).values()) == {"ready"} and machine.reader.read == []
            mount.rmdir()
            mounted.rename(mount)
            wait_until(lambda: set(job_states(database).values()) == {"done"})
        assert said("The root pacs is there again")
        assert outcomes_of(database) == {"done": len(jobs)}

    def test_an_empty_root_that_nobody_waits_for_is_not_worth_a_word(
        self, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Such as a folder whose films were all read and removed."""
        caplog.set_level(logging.WARNING)
        (tmp_path / "incoming").mkdir()
        put(database, tmp_path / "near", "near", 3)
        Machine(database, tmp_path, "one", near=tmp_path / "near", incoming=tmp_path / "incoming").run_until_idle()
        assert "incoming" not in caplog.text
        assert set(job_states(database).values()) == {"done"}


def test_films_that_wait_are_counted_by_root(ledger: Ledger, tmp_path: Path) -> None:
    register_films(ledger.database, ["a", "b", "c"], root="near")
    ledger.must_claim(1)
    register_films(ledger.database, ["d", "e"], root="far")
    (tmp_path / "film").touch()
    with ledger.database.read() as connection:
        assert waiting_films(connection) == {"near": 2, "far": 2}
        assert films_left(connection, {"near": tmp_path}) == {"far": (2, "CARINA_ROOTS does not name it")}
        assert films_left(connection, {"near": tmp_path / "absent", "far": tmp_path}) == {
            "near": (2, "its folder is not there")
        }
