from __future__ import annotations

import pytest
from ledger_rows import Ledger, age_leases, register_films
from sqlalchemy import insert, select, update

from schema import tables
from schema.database import Database
from schema.types import database_now
from worker.queue.duties import (
    Duty,
    claim_duty,
    do_due_duties,
    ensure_duties,
    finish_duty,
    prune,
    standard_duties,
)
from worker.queue.ledger import register_worker


def row(database: Database, name: str) -> object:
    with database.read() as connection:
        return connection.execute(select(tables.duty).where(tables.duty.c.name == name)).one()


def nothing(database: Database) -> str:
    return "nothing to do"


def test_a_due_duty_is_done_by_one_worker_only(ledger: Ledger) -> None:
    other = register_worker(ledger.database, ledger.settings, "two")
    duty = Duty("count", 3600.0, nothing)
    ensure_duties(ledger.database, [duty])
    assert claim_duty(ledger.database, ledger.worker, duty)
    assert not claim_duty(ledger.database, other, duty)
    finish_duty(ledger.database, ledger.worker, duty, "counted")
    assert not claim_duty(ledger.database, other, duty)
    found = row(ledger.database, "count")
    assert (found.outcome, found.claimed_by) == ("counted", None)
    assert (found.due_at - found.finished_at).total_seconds() == pytest.approx(3600.0, abs=0.1)


def test_the_claim_of_a_dead_holder_runs_out(ledger: Ledger) -> None:
    other = register_worker(ledger.database, ledger.settings, "two")
    duty = Duty("count", 3600.0, nothing, limit_seconds=-1.0)
    ensure_duties(ledger.database, [duty])
    assert claim_duty(ledger.database, ledger.worker, duty)
    assert claim_duty(ledger.database, other, duty)
    finish_duty(ledger.database, ledger.worker, duty, "too late")
    assert row(ledger.database, "count").outcome == ""


def test_what_is_not_due_is_not_done(ledger: Ledger) -> None:
    calls = []
    duties = [Duty("count", 3600.0, lambda database: calls.append(1) or "counted")]
    ensure_duties(ledger.database, duties)
    assert do_due_duties(ledger.database, ledger.worker, duties) == ["count"]
    assert do_due_duties(ledger.database, ledger.worker, duties) == []
    assert calls == [1]


def test_a_failing_duty_stops_nobody(ledger: Ledger) -> None:
    def fail(database: Database) -> str:
        raise ValueError("Doe^John")

    duties = [Duty("a", 60.0, fail), Duty("b", 60.0, nothing)]
    ensure_duties(ledger.database, duties)
    assert sorted(do_due_duties(ledger.database, ledger.worker, duties)) == ["a", "b"]
    assert row(ledger.database, "a").outcome == "failed: ValueError"


def test_a_changed_interval_is_kept(ledger: Ledger) -> None:
    ensure_duties(ledger.database, [Duty("a", 60.0, nothing)])
    ensure_duties(ledger.database, [Duty("a", 30.0, nothing), Duty("b", 1.0, nothing)])
    assert row(ledger.database, "a").every_seconds == 30.0
    assert row(ledger.database, "b").every_seconds == 1.0


def test_the_standard_duties_sweep_but_not_what_is_in_flight(ledger: Ledger) -> None:
    register_films(ledger.database, ["a", "b"])
    mine, dead = ledger.must_claim(1), ledger.must_claim(1)
    age_leases(ledger.database)
    duties = standard_duties(ledger.settings, lambda: [mine.lease_id])
    ensure_duties(ledger.database, duties)
    done = sorted(do_due_duties(ledger.database, ledger.worker, duties))
    assert done == ["alerts", "auc", "count days", "drift", "prune", "sweep"]
    with ledger.database.read() as connection:
        assert set(connection.scalars(select(tables.lease.c.id))) == {mine.lease_id}
    assert row(ledger.database, "sweep").outcome.startswith("1 taken back")
    assert dead.jobs


def test_prune_deletes_empty_leases_and_notes_silent_workers(ledger: Ledger) -> None:
    with ledger.database.write() as connection:
        connection.execute(
            insert(tables.lease).values(
                id="x" * 36, worker_id=ledger.worker.id, boot_id="", expires_at=database_now(-1)
            )
        )
        connection.execute(update(tables.worker).values(seen_at=database_now(-2 * 86400)))
    assert prune(ledger.database) == "1 empty leases deleted, 1 silent workers noted as stopped"
    assert prune(ledger.database) == "0 empty leases deleted, 0 silent workers noted as stopped"
