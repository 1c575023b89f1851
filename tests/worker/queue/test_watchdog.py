from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from schema.database import Database
from worker.queue import watchdog
from worker.queue.watchdog import BATCHES, STALLED_EXIT_CODE, TRANSACTIONS, Watchdog

WAIT = 60.0


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_what_moves_or_ended_is_no_cause_for_complaint() -> None:
    clock = Clock()
    dog = Watchdog(10.0, clock=clock)
    with dog.watching(BATCHES, "a"), dog.watching(BATCHES, "b"):
        with dog.watching(TRANSACTIONS, "c"):
            clock.seconds = 9.0
            assert dog.complaint() is None
        dog.moved("a")
        dog.moved("never seen")
        clock.seconds = 12.0
        assert "in 1 of 2 batches:" in str(dog.complaint())
        clock.seconds = 20.0
        assert "for 10 s in 2 of 2 batches:" in str(dog.complaint())
    assert dog.complaint() is None


def test_a_process_that_was_suspended_is_no_cause_for_complaint() -> None:
    """What it was doing has had no more time to move than before."""
    clock, said, looks = Clock(), [], []

    class Pauses(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            looks.append(timeout)
            clock.seconds += 5000.0 if len(looks) in (3, 9) else timeout
            return len(looks) > 1000

    dog = Watchdog(10.0, on_stall=said.append, clock=clock)
    with dog.watching(BATCHES, "a"):
        dog._look(Pauses())
    assert len(said) == 1 and "for 10 s in 1 of 1 batches:" in said[0]
    # So long it would have had without having been suspended twice.
    assert 10.0 < sum(looks) <= 11.0


def test_a_transaction_that_does_not_end_is_noticed_and_others_are_not(database: Database) -> None:
    said: list[str] = []
    stalled = threading.Event()
    dog = Watchdog(0.2, on_stall=lambda message: (said.append(message), stalled.set()))
    with dog.over(database):
        with database.read() as connection:
            connection.execute(text("SELECT 1"))
        with database.write():
            assert stalled.wait(WAIT)
    assert len(said) == 1 and "in 1 of 1 database transactions:" in said[0]


def test_watch_over_a_database_ends_with_the_block(database: Database) -> None:
    outer, inner = Watchdog(WAIT), Watchdog(WAIT)
    with outer.over(database):
        around = database.around
        with pytest.raises(KeyError), inner.over(database):
            assert database.around is not around
            raise KeyError
        assert database.around is around
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


def test_a_process_that_is_stuck_ends(tmp_path: Path) -> None:
    script = (
        "import sys; from schema.database import Database; from worker.queue.watchdog import Watchdog\n"
        "database = Database(sys.argv[1])\n"
        "with Watchdog(0.1).over(database), database.read():\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, f"sqlite:///{tmp_path / 'a.sqlite'}"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(watchdog.__file__).parents[2],
        text=True,
    ) as stuck:
        assert stuck.wait(WAIT) == STALLED_EXIT_CODE
        assert stuck.stderr is not None and "Nothing moved for 0 s" in stuck.stderr.read()
