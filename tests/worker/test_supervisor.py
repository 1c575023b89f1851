from __future__ import annotations

import sys

import pytest

from worker.errors import CarinaError
from worker.supervisor import DEATHS_WITHOUT_PROGRESS, WorkerProcess


def ended(*, code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait(worker: WorkerProcess) -> None:
    worker._process.wait(timeout=60)


def test_a_worker_that_cannot_start_is_not_started_again() -> None:
    worker = WorkerProcess(ended(code="raise SystemExit(1)"))
    wait(worker)
    with pytest.raises(CarinaError, match="could not start"):
        worker.keep_alive(0)


def test_a_worker_that_dies_without_finishing_a_film_is_given_up() -> None:
    worker = WorkerProcess(ended(code="import os; os.kill(os.getpid(), 11)"))
    for _ in range(DEATHS_WITHOUT_PROGRESS):
        wait(worker)
        worker.keep_alive(7)
    wait(worker)
    with pytest.raises(CarinaError, match="Nothing is lost"):
        worker.keep_alive(7)


def test_deaths_between_finished_films_do_not_add_up() -> None:
    worker = WorkerProcess(ended(code="import os; os.kill(os.getpid(), 9)"))
    for finished in range(DEATHS_WITHOUT_PROGRESS + 3):
        wait(worker)
        worker.keep_alive(finished)
    wait(worker)
    worker.stop()
    assert worker._process.returncode == -9


def test_stopping_ends_a_running_worker() -> None:
    worker = WorkerProcess(ended(code="import time; time.sleep(600)"))
    worker.keep_alive(0)
    worker.stop()
    assert worker._process.returncode is not None
