from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import Ledger, register_films, settings_for

from worker.errors import FilmError
from worker.queue.finish import finish
from worker.queue.outcomes import Outcome
from worker.queue.watermarks import DiskWatermark, Room, Watermark, backlog, wait_for_room


@given(st.lists(st.integers(0, 100)), st.integers(0, 50), st.integers(0, 50))
def test_closed_exactly_between_a_high_and_the_next_low(levels: list[int], low: int, gap: int) -> None:
    mark = Watermark(low=low, high=low + gap)
    closed = False
    for level in levels:
        if closed and level <= low:
            closed = False
        elif not closed and level >= low + gap:
            closed = True
        assert mark.update(level) is closed


def test_the_marks_must_be_in_order() -> None:
    with pytest.raises(ValueError, match="above"):
        Watermark(low=2, high=1)


def test_the_disk_closes_below_the_reserve_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    free = {"bytes": 2000}
    disk = DiskWatermark(tmp_path, 1000, free=lambda folder: free["bytes"])
    seen = []
    with caplog.at_level(logging.WARNING):
        for free["bytes"] in (2000, 1000, 999, 500, 1050, 1100, 1050):
            seen.append(disk.full())
    assert seen == [False, False, True, True, True, False, False]
    assert [record.message.split(":")[1] for record in caplog.records] == [" work pauses.", " work goes on."]


def test_no_reserve_never_closes(tmp_path: Path) -> None:
    assert not DiskWatermark(tmp_path, 0, free=lambda folder: 0).full()


def test_the_real_disk_is_asked(tmp_path: Path) -> None:
    assert DiskWatermark(tmp_path, 1 << 62).full()
    assert not DiskWatermark(tmp_path, 1).full()


def test_backlog_counts_ready_jobs_up_to_a_limit(ledger: Ledger) -> None:
    register_films(ledger.database, ["a", "b", "c"])
    ledger.must_claim(1)
    assert backlog(ledger.database, 100) == 2
    assert backlog(ledger.database, 1) == 1


def test_room_is_back_only_at_the_low_mark(ledger: Ledger, tmp_path: Path) -> None:
    register_films(ledger.database, ["a", "b", "c"])
    room = Room(ledger.database, settings_for(tmp_path, backlog_high=3, backlog_low=1))
    missing = [room.missing()]
    for _ in range(2):
        claimed = ledger.must_claim(1)
        outcome = Outcome(claimed.jobs[0], error=FilmError("BAD_HEADER"))
        finish(ledger.database, claimed, [outcome], settings=ledger.settings)
        missing.append(room.missing())
    assert missing == ["3 films wait already", "3 films wait already", None]


def test_waiting_ends_when_there_is_room_and_says_why_it_waited(ledger: Ledger, tmp_path: Path) -> None:
    free = iter([0, 0, 5000])
    said: list[str] = []
    disk = DiskWatermark(tmp_path, 1000, free=lambda folder: next(free))
    room = Room(ledger.database, settings_for(tmp_path), disk=disk)
    assert room.wait(threading.Event(), poll_seconds=0.001, say=said.append)
    assert said == ["the disk of the home folder is nearly full"]


def test_waiting_ends_when_told_to_stop(ledger: Ledger, tmp_path: Path) -> None:
    register_films(ledger.database, ["a"])
    stop = threading.Event()
    settings = settings_for(tmp_path, backlog_high=1, backlog_low=0)
    assert not wait_for_room(ledger.database, settings, stop, say=lambda reason: stop.set())
