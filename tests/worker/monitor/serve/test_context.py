from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from waiting import wait_until

from worker.monitor.serve.context import Remembered


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        yield clock


def counted(clock: Clock, *, behind: bool) -> Remembered:
    answers = iter(range(1, 100))
    return Remembered(10.0, lambda: next(answers), behind=behind)


def test_an_answer_serves_others_too(clock: Clock) -> None:
    remembered = counted(clock, behind=False)
    assert remembered() == 1
    clock.now += 9
    assert remembered() == 1
    clock.now += 2
    assert remembered() == 2


def test_nobody_waits_for_a_new_answer(clock: Clock) -> None:
    gate = threading.Event()
    answers = iter(range(1, 100))

    def ask() -> int:
        answer = next(answers)
        if answer > 1:
            gate.wait(60)
        return answer

    remembered = Remembered(10.0, ask, behind=True)
    assert remembered() == 1
    clock.now += 11
    assert [remembered(), remembered()] == [1, 1]
    gate.set()
    wait_until(lambda: remembered() == 2, "the new answer")


def test_last_evenings_answer_is_not_given_in_the_morning(clock: Clock) -> None:
    remembered = counted(clock, behind=True)
    assert remembered() == 1
    clock.now += 8 * 3600
    assert remembered() == 2
