from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_rows import Ledger, age_leases, full_result, job_states, register_films, settings_for

from worker.queue.batches import BatchReport, Slots
from worker.queue.loop import WorkerLoop
from worker.queue.outcomes import ClaimedJob, Outcome

WAIT = 30.0


def waiting_ticket(slots: Slots) -> tuple[threading.Thread, list[bool]]:
    """A ticket in a thread of its own, and whether it was given a slot."""
    given_slot: list[bool] = []

    def take() -> None:
        with slots.for_ticket() as given:
            given_slot.append(given)

    thread = threading.Thread(target=take)
    thread.start()
    return thread, given_slot


def test_a_report_has_counts_and_only_the_remarks_that_apply() -> None:
    report = BatchReport(5, Counter(done=3, failed=1), released=1)
    assert report.to_json() == {"claimed": 5, "done": 3, "failed": 1, "released": 1}
    assert BatchReport().to_json() == {"claimed": 0}


def test_nothing_is_given_before_the_opening_and_after_the_close() -> None:
    slots = Slots(1)
    with slots.for_poll() as given:
        assert not given
    thread, given_slot = waiting_ticket(slots)
    slots.open()
    thread.join(WAIT)
    slots.close()
    with slots.for_poll() as polled, slots.for_ticket() as announced:
        assert (polled, announced) == (False, False)
    assert given_slot == [True]


def test_a_ticket_waits_for_a_slot_and_is_sent_away_at_the_end() -> None:
    slots = Slots(1)
    slots.open()
    with slots.for_poll() as given:
        assert given
        thread, given_slot = waiting_ticket(slots)
        slots.close()
        thread.join(WAIT)
        assert given_slot == [False]
    slots.wait_until_free()


def test_whoever_merely_looks_lets_a_waiting_ticket_pass() -> None:
    slots = Slots(1)
    slots.open()
    looked = threading.Event()
    with slots.for_poll():
        thread, given_slot = waiting_ticket(slots)
        while not slots._tickets_waiting:
            looked.wait(0.01)
        with slots.for_poll() as again:
            assert not again
    thread.join(WAIT)
    assert given_slot == [True]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 3), callers=st.lists(st.booleans(), min_size=1, max_size=8))
def test_there_are_never_more_batches_than_slots(count: int, callers: list[bool]) -> None:
    slots = Slots(count)
    slots.open()
    lock, inside, most = threading.Lock(), [0], [0]

    def work(ticket: bool) -> None:
        with slots.for_ticket() if ticket else slots.for_poll() as given:
            if not given:
                return
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(ticket,)) for ticket in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    slots.wait_until_free()
    assert most[0] <= count and inside[0] == 0
    assert not any(callers) or most[0] >= 1


class Reader:
    """A processor that reads every film, or breaks."""

    bundle_id = 1

    def __init__(self, *, breaks: bool = False) -> None:
        self.breaks = breaks

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        if self.breaks:
            raise RuntimeError("words that may hold identity")
        return [Outcome(job, result=full_result(job.source.path)) for job in jobs]


class TestRunBatch:
    """What a ticket does, on a loop that would not look by itself within a test."""

    @contextmanager
    def running(
        self, ledger: Ledger, *, breaks: bool = False, **changes: object
    ) -> Iterator[tuple[WorkerLoop, list[int]]]:
        ledger.settings = settings_for(ledger.settings.home, poll_seconds=3600.0, **changes)
        announced: list[int] = []
        loop = WorkerLoop(
            ledger.settings,
            ledger.database,
            ledger.worker,
            Reader(breaks=breaks),
            solo_command=["false"],
            announce=announced.append,
        )
        stop = threading.Event()
        thread = threading.Thread(target=loop.run, args=(stop,))
        thread.start()
        try:
            # Nothing is ready yet: the first look of both threads is over before the first film comes.
            assert loop.run_batch() == BatchReport()
            while not all(item._started.is_set() for item in threading.enumerate()):
                pass
            yield loop, announced
        finally:
            stop.set()
            thread.join(WAIT)
            assert not thread.is_alive()
            assert loop.run_batch() == BatchReport()

    def test_it_claims_one_batch_and_announces_the_next_if_it_was_full(self, ledger: Ledger) -> None:
        with self.running(ledger, claim_size=3) as (loop, announced):
            with loop._slots.for_poll() as first, loop._slots.for_poll() as second:
                # While the loop's own threads find no slot, only tickets work.
                assert first or second
            films = register_films(ledger.database, [f"film-{number}" for number in range(5)])
            reports = [loop.run_batch() for _ in range(3)]
        assert sum(report.claimed for report in reports) <= len(films)
        assert Counter(job_states(ledger.database).values()) == {"done": 5}
        assert set(announced) == {3}
