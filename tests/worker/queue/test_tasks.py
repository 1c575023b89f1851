from __future__ import annotations

import threading
import traceback
from collections import Counter
from pathlib import Path

import pytest
from ledger_rows import settings_for

pytest.importorskip("celery")

from worker.queue import tasks
from worker.queue.app import make_app
from worker.queue.batches import BatchReport
from worker.queue.tasks import BATCH, BatchFailedError, TicketConsumer, consuming, register

#: Nobody listens on port 1 of the loopback interface.
NOBODY = "redis://127.0.0.1:1/0"
WAIT = 60.0


def test_the_task_runs_one_batch_and_returns_what_came_of_it(tmp_path: Path) -> None:
    reports = [BatchReport(16, Counter(done=15, failed=1)), BatchReport()]
    task = register(make_app(settings_for(tmp_path, broker_url=NOBODY)), lambda: reports.pop(0))
    assert (task.name, task.ignore_result, task.acks_late) == (BATCH, True, False)
    assert [task(), task()] == [{"claimed": 16, "done": 15, "failed": 1}, {"claimed": 0}]


def test_a_batch_that_failed_as_a_whole_is_a_task_that_failed(tmp_path: Path) -> None:
    report = BatchReport(2, Counter(delayed=2), failure="ValueError in pipeline.py:12")
    task = register(make_app(settings_for(tmp_path, broker_url=NOBODY)), lambda: report)
    with pytest.raises(BatchFailedError, match=r"^2 films, tried again later: ValueError in pipeline\.py:12$"):
        task()


def test_celery_is_not_told_the_words_of_an_exception(tmp_path: Path) -> None:
    def broken() -> BatchReport:
        raise ValueError("DOE^JANE")

    task = register(make_app(settings_for(tmp_path, broker_url=NOBODY)), broken)
    with pytest.raises(BatchFailedError, match="ValueError") as caught:
        task()
    assert "DOE" not in "".join(traceback.format_exception(caught.value))


def test_a_worker_of_celery_itself_is_told_what_to_start_instead(tmp_path: Path) -> None:
    task = register(make_app(settings_for(tmp_path, broker_url=NOBODY)))
    with pytest.raises(BatchFailedError, match="carina worker"):
        task()


def test_without_a_broker_nothing_is_consumed(tmp_path: Path) -> None:
    stop = threading.Event()
    before = threading.active_count()
    with consuming(settings_for(tmp_path), BatchReport, name="one", stop=stop) as end:
        assert threading.active_count() == before
        end()
    assert stop.is_set()


def test_a_broker_that_is_away_neither_keeps_it_from_starting_nor_from_ending(tmp_path: Path) -> None:
    stop = threading.Event()
    with consuming(settings_for(tmp_path, broker_url=NOBODY), BatchReport, name="one", stop=stop) as end:
        consumer = next(thread for thread in threading.enumerate() if thread.name == "tickets")
        assert not stop.is_set()
        end()
    assert stop.is_set() and not consumer.is_alive()


def test_a_celery_that_breaks_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_RESTART_SECONDS", 0.01)
    starts, third = [], threading.Event()

    def serve(consumer: TicketConsumer) -> int:
        starts.append(1)
        if len(starts) == 1:
            raise RuntimeError("secret words")
        if len(starts) == 3:
            third.set()
        return 1

    monkeypatch.setattr(TicketConsumer, "_serve", serve)
    shut_down = threading.Event()
    settings = settings_for(tmp_path, broker_url=NOBODY)
    consumer = TicketConsumer(settings, BatchReport, name="one", on_shutdown=shut_down.set)
    consumer.start()
    assert third.wait(WAIT)
    consumer.stop()
    consumer.join()
    assert not shut_down.is_set()
