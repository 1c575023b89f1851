from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_rows import Ledger, age_leases, full_result, job_states, register_films, settings_for

from worker.queue.batches import BatchReport, Slots
from worker.queue.duties import standard_duties
from worker.queue.invariants import check_invariants
from worker.queue.leases import sweep
from worker.queue.loop import Processor, WorkerLoop
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


class FullForTheLoop:
    """A disk on which the loop's own threads find no room, so that only tickets work."""

    def full(self) -> bool:
        return threading.current_thread().name.startswith("batch-")


class TestRunBatch:
    """What a ticket does."""

    @contextmanager
    def running(
        self, ledger: Ledger, processor: Processor | None = None, **changes: object
    ) -> Iterator[tuple[WorkerLoop, list[int]]]:
        ledger.settings = settings_for(ledger.settings.home, **changes)
        announced: list[int] = []
        loop = WorkerLoop(
            ledger.settings,
            ledger.database,
            ledger.worker,
            processor or Reader(),
            solo_command=[sys.executable, "-c", "raise SystemExit(7)"],
            announce=announced.append,
            disk=FullForTheLoop(),  # type: ignore[arg-type]
        )
        stop = threading.Event()
        thread = threading.Thread(target=loop.run, args=(stop,))
        thread.start()
        try:
            yield loop, announced
        finally:
            stop.set()
            thread.join(WAIT)
            assert not thread.is_alive()

    def test_it_claims_one_batch_and_announces_the_next_if_it_was_full(self, ledger: Ledger) -> None:
        register_films(ledger.database, [f"film-{number}" for number in range(5)])
        with self.running(ledger, claim_size=3) as (loop, announced):
            reports = [loop.run_batch().to_json() for _ in range(3)]
        assert reports == [{"claimed": 3, "done": 3}, {"claimed": 2, "done": 2}, {"claimed": 0}]
        assert announced == [3]
        assert check_invariants(ledger.database) == []

    def test_the_next_is_announced_before_the_batch_is_worked_on(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a", "b"])
        seen: list[list[int]] = []

        class Looks(Reader):
            def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
                seen.append(list(announced))
                return super().process(jobs, progress)

        with self.running(ledger, Looks(), claim_size=1) as (loop, announced):
            loop.run_batch()
        assert seen == [[1]]

    def test_a_batch_that_fails_as_a_whole_says_why_and_is_tried_again(self, ledger: Ledger) -> None:
        (film,) = register_films(ledger.database, ["a"])
        with self.running(ledger, Reader(breaks=True)) as (loop, _):
            report = loop.run_batch()
        assert report.failure.startswith("RuntimeError in test_batches.py:") and "identity" not in report.failure
        assert report.states == {"delayed": 1} and job_states(ledger.database) == {film: "delayed"}

    def test_a_suspect_is_marked_and_others_may_wait_behind_it(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a", "b"])
        ledger.must_claim(2)
        age_leases(ledger.database)
        sweep(ledger.database)
        with self.running(ledger, backoff_seconds=60.0) as (loop, announced):
            report = loop.run_batch()
        assert report.to_json() == {"claimed": 1, "delayed": 1, "alone": True}
        assert announced == [ledger.settings.claim_size]

    def test_what_comes_too_late_is_counted_as_fenced(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])

        class Loses(Reader):
            def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
                age_leases(ledger.database)
                sweep(ledger.database)
                return super().process(jobs, progress)

        with self.running(ledger, Loses()) as (loop, _):
            assert loop.run_batch().to_json() == {"claimed": 1, "fenced": 1}

    def test_the_end_of_the_loop_waits_for_it(self, ledger: Ledger) -> None:
        films = register_films(ledger.database, ["a", "b"])
        inside, go = threading.Event(), threading.Event()
        reports: list[BatchReport] = []

        class Waits(Reader):
            def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
                inside.set()
                assert go.wait(WAIT)
                return super().process(jobs, progress)

        with self.running(ledger, Waits(), claim_size=1) as (loop, _):
            ticket = threading.Thread(target=lambda: reports.append(loop.run_batch()))
            ticket.start()
            assert inside.wait(WAIT)
            release = threading.Timer(0.2, go.set)
            release.start()
        assert job_states(ledger.database) == {films[0]: "done", films[1]: "ready"}
        ticket.join(WAIT)
        assert [report.to_json() for report in reports] == [{"claimed": 1, "done": 1}]
        assert loop.run_batch() == BatchReport()

    def test_a_fault_of_ours_ends_the_loop_and_comes_out_of_it(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register_films(ledger.database, ["a"])
        loop = WorkerLoop(ledger.settings, ledger.database, ledger.worker, Reader(), solo_command=["false"])
        monkeypatch.setattr(loop, "_claim", lambda bundle_id: 1 / 0)
        loop._slots.open()
        with pytest.raises(ZeroDivisionError):
            loop.run_batch()
        assert loop._over.is_set()


def test_a_sweep_announces_what_it_made_ready(ledger: Ledger) -> None:
    register_films(ledger.database, ["a", "b", "c"])
    ledger.must_claim(2)
    announced: list[int] = []
    duty = standard_duties(ledger.settings, list, announced.append)[0]
    duty.function(ledger.database)
    assert announced == []
    age_leases(ledger.database)
    duty.function(ledger.database)
    assert announced == [2]
