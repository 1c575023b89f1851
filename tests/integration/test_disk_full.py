"""The disk fills up in the middle of the work: nothing is lost, and work goes on when there is room."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger_rows import Ledger, add_bundle, fresh_database, full_result, job_states, register_films, settings_for
from passthrough_worker import PassthroughProcessor
from sqlalchemy import event, func, select
from sqlalchemy.exc import OperationalError

from schema import tables
from schema.database import Database
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.ledger import register_worker
from worker.queue.loop import WorkerLoop
from worker.queue.outcomes import Outcome

FILMS = 60


class Limit:
    """At most so many pages in the database; SQLite keeps the limit per connection."""

    def __init__(self, database: Database) -> None:
        self.pages: int | None = None
        event.listen(database._writer, "begin", self._apply)

    def _apply(self, connection: object) -> None:
        pages = self.pages if self.pages is not None else 1 << 30
        connection.connection.driver_connection.execute(f"PRAGMA max_page_count = {pages}")  # type: ignore[attr-defined]


def page_count(database: Database) -> int:
    with database.read() as connection:
        return int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())


def results(database: Database) -> int:
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(tables.segmentation)) or 0)


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = fresh_database(tmp_path)
    add_bundle(database)
    yield database
    database.close()


def test_a_finish_that_finds_no_room_changes_nothing_and_can_be_repeated(database: Database, tmp_path: Path) -> None:
    ledger = Ledger(database, settings_for(tmp_path), register_worker(database, settings_for(tmp_path), "w"))
    ids = register_films(database, [f"film-{number}" for number in range(16)])
    limit = Limit(database)
    claimed = ledger.must_claim()
    outcomes = [Outcome(item, result=full_result(item.source.path)) for item in claimed.jobs]
    limit.pages = page_count(database) + 2
    for _ in range(3):
        with pytest.raises(OperationalError, match="full"):
            finish(database, claimed, outcomes, settings=ledger.settings)
        assert job_states(database) == dict.fromkeys(ids, "leased")
        assert results(database) == 0 and check_invariants(database) == []
    limit.pages = None
    assert finish(database, claimed, outcomes, settings=ledger.settings).states == dict.fromkeys(ids, "done")
    assert check_invariants(database) == []


def make_files(folder: Path) -> list[str]:
    folder.mkdir()
    for number in range(FILMS):
        (folder / f"{number}").write_text("film")
    return [str(folder / f"{number}").lstrip("/") for number in range(FILMS)]


def make_loop(database: Database, home: Path) -> WorkerLoop:
    settings = settings_for(home, claim_size=4, lease_seconds=2.0)
    worker = register_worker(database, settings, "w")
    return WorkerLoop(settings, database, worker, PassthroughProcessor(0.0), solo_command=["false"])


def all_innocent(database: Database) -> bool:
    """Nobody became a suspect: the holder of the films lived all the time."""
    with database.read() as connection:
        return set(connection.scalars(select(tables.job.c.crashes))) == {0}


def test_a_worker_waits_for_room_and_goes_on_by_itself(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = register_films(database, make_files(tmp_path / "films"))
    limit = Limit(database)
    limit.pages = page_count(database) + 40
    loop = make_loop(database, tmp_path)
    thread = threading.Thread(target=loop.run, args=(threading.Event(),), kwargs={"until_idle": True})
    thread.start()
    wait_until(lambda: "does not take our work" in caplog.text)
    assert results(database) < FILMS and thread.is_alive()
    assert check_invariants(database) == []
    limit.pages = None
    thread.join(120)
    assert not thread.is_alive()
    assert job_states(database) == dict.fromkeys(ids, "done")
    assert results(database) == FILMS and all_innocent(database)
    assert check_invariants(database) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = fresh_database(small_disk)
    add_bundle(database)
    ids = register_films(database, make_files(tmp_path / "films"))
    loop = make_loop(database, small_disk)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
        while True:
            stream.write(bytes(1 << 10))
    thread = threading.Thread(target=loop.run, args=(threading.Event(),), kwargs={"until_idle": True})
    thread.start()
    wait_until(lambda: "does not take our work" in caplog.text)
    assert thread.is_alive() and results(database) < FILMS
    ballast.unlink()
    thread.join(120)
    assert not thread.is_alive()
    assert job_states(database) == dict.fromkeys(ids, "done")
    assert check_invariants(database) == []
    database.close()
