from __future__ import annotations

from ledger_rows import Ledger, age_leases, job_row, job_states, make_due, register_films
from sqlalchemy import select

from schema import tables
from worker.errors import FilmError
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.leases import heartbeat, make_due_ready, seen, sweep
from worker.queue.outcomes import Outcome


def test_heartbeat_moves_the_end_of_one_lease(ledger: Ledger) -> None:
    register_films(ledger.database, ["a", "b"])
    first, second = ledger.must_claim(1), ledger.must_claim(1)
    age_leases(ledger.database)
    assert heartbeat(ledger.database, first.lease_id, 60.0)
    assert sweep(ledger.database).expired == 1
    states = job_states(ledger.database)
    assert (states[first.jobs[0].id], states[second.jobs[0].id]) == ("leased", "ready")


def test_heartbeat_says_when_the_lease_is_gone(ledger: Ledger) -> None:
    register_films(ledger.database, ["a"])
    claimed = ledger.must_claim()
    age_leases(ledger.database)
    sweep(ledger.database)
    assert not heartbeat(ledger.database, claimed.lease_id, 60.0)


def test_sweep_makes_suspects_and_does_not_count_the_attempt(ledger: Ledger) -> None:
    ids = register_films(ledger.database, ["a", "b"])
    ledger.must_claim()
    assert sweep(ledger.database).expired == 0
    age_leases(ledger.database)
    assert sweep(ledger.database).expired == 2
    row = job_row(ledger.database, ids[0])
    assert (row.state, row.crashes, row.attempts, row.bundle_id) == ("ready", 1, 0, None)
    with ledger.database.read() as connection:
        assert set(connection.scalars(select(tables.attempt.c.outcome))) == {"expired"}
    assert check_invariants(ledger.database) == []


def test_sweep_spares_the_batches_of_its_own_process(ledger: Ledger) -> None:
    register_films(ledger.database, ["a"])
    claimed = ledger.must_claim()
    age_leases(ledger.database)
    assert sweep(ledger.database, mine=[claimed.lease_id]).expired == 0
    assert heartbeat(ledger.database, claimed.lease_id, 60.0)


def test_delayed_jobs_become_ready_when_they_are_due(ledger: Ledger) -> None:
    register_films(ledger.database, ["a", "b"])
    claimed = ledger.must_claim()
    outcomes = [Outcome(item, error=FilmError("SOURCE_MISSING")) for item in claimed.jobs]
    finish(ledger.database, claimed, outcomes, settings=ledger.settings)
    assert make_due_ready(ledger.database) == 0
    make_due(ledger.database)
    assert make_due_ready(ledger.database) == 2
    assert set(job_states(ledger.database).values()) == {"ready"}


def test_seen(ledger: Ledger) -> None:
    with ledger.database.read() as connection:
        before = connection.scalar(select(tables.worker.c.seen_at))
    assert seen(ledger.database, ledger.worker.id, ledger.worker.boot_id, home_free_bytes=1 << 40)
    assert not seen(ledger.database, ledger.worker.id, "another start")
    with ledger.database.read() as connection:
        assert connection.scalar(select(tables.worker.c.seen_at)) >= before
        assert connection.scalar(select(tables.worker.c.home_free_bytes)) == 1 << 40
