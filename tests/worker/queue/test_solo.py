from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from ledger_rows import settings_for
from sqlalchemy.exc import OperationalError

from schema.database import Database
from worker.queue import solo
from worker.queue.outcomes import ClaimedJob, Outcome
from worker.queue.solo import run_solo, watch_child
from worker.queue.watchdog import STALLED_EXIT_CODE, Watchdog

REPOSITORY = Path(solo.__file__).parents[2]


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_exit_code_comes_back(code: int) -> None:
    child = [sys.executable, "-c", f"raise SystemExit({code})"]
    assert watch_child(child, alive=lambda: None, stop=lambda: False, limit_seconds=60) == code


class Never:
    bundle_id = 1

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        raise AssertionError("there is nothing to process")


@pytest.mark.parametrize("passes", [True, False])
def test_the_child_says_that_its_database_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    monkeypatch.setattr(solo, "die_with_parent", lambda: None)
    # Nor may a slow disk end the process that runs the tests.
    monkeypatch.setattr(solo, "Watchdog", partial(Watchdog, on_stall=print))
    database = Database(f"sqlite:///{tmp_path / 'missing' / 'a.sqlite' if passes else tmp_path / 'empty.sqlite'}")
    with pytest.raises(SystemExit if passes else OperationalError) as ended:
        run_solo(settings_for(tmp_path, stall_seconds=0.4), database, Never(), "lease")
    database.close()
    assert not passes or ended.value.code == STALLED_EXIT_CODE


def test_a_signal_comes_back_negative() -> None:
    child = [sys.executable, "-c", "import os; os.abort()"]
    assert watch_child(child, alive=lambda: None, stop=lambda: False, limit_seconds=60) == -signal.SIGABRT


def test_says_that_it_is_alive_and_ends_it_on_request() -> None:
    calls: list[int] = []
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    code = watch_child(child, alive=lambda: calls.append(1), stop=lambda: len(calls) > 2, limit_seconds=60)
    assert code is None and len(calls) == 3


_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=sys.stdout)
sys.stdin.read()
"""
_CHILD = """
import time
from worker.queue.solo import die_with_parent
die_with_parent()
print("up", flush=True)
time.sleep(600)
"""


def test_the_child_dies_with_its_parent() -> None:
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, _CHILD], stdin=subprocess.PIPE, stdout=write, cwd=REPOSITORY
    ) as parent:
        os.close(write)
        with os.fdopen(read) as output:
            assert output.readline() == "up\n"
            parent.kill()
            # The end of the file comes when the last process that could write is gone.
            assert output.read() == ""


def test_a_parent_that_died_before_is_noticed() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _CHILD], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=REPOSITORY, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, b"")
