from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worker.queue import solo
from worker.queue.solo import watch_child

REPOSITORY = Path(solo.__file__).parents[2]


@pytest.mark.parametrize("code", [0, 1, 7])
def test_the_exit_code_comes_back(code: int) -> None:
    child = [sys.executable, "-c", f"raise SystemExit({code})"]
    assert watch_child(child, alive=lambda: None, stop=lambda: False, limit_seconds=60) == code


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
