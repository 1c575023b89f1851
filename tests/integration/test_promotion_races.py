"""Two processes change over, promote and open shadow jobs in the same moment: only a real PostgreSQL lets them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ledger_rows import Ledger, add_bundle, full_result, register_films
from sqlalchemy import event, func, insert, select, text
from waiting import wait_until

from schema import tables
from schema.database import Database
from schema.queries import bundle_aliases
from worker import REVISION
from worker.errors import CarinaError
from worker.inference.registry import promote_bundle, record_engine, roll_back
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.outcomes import Outcome
from worker.queue.shadow import open_shadow_jobs

pytestmark = pytest.mark.services

_WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


@contextmanager
def before_the_commit(database: Database, other: Callable[[], object]) -> Iterator[list[BaseException]]:
    """At the block's first COMMIT ``other`` begins in a thread, until it waits for a lock; collects its errors."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            other()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)

    def begin(_: Any) -> None:
        thread.start()
        wait_until(lambda: waits(database) or not thread.is_alive(), "the other one to wait")

    event.listen(database._writer, "commit", begin, once=True)
    yield errors
    thread.join(60)
    assert not thread.is_alive()


def waits(database: Database) -> bool:
    with database.read() as connection:
        return bool(connection.scalar(_WAITING))


@pytest.fixture
def candidate(ledger: Ledger) -> int:
    """``ledger.bundle_id`` serves; one film has its result."""
    with ledger.database.write() as connection:
        connection.execute(insert(tables.bundle_alias).values(alias="champion", bundle_id=ledger.bundle_id))
    register_films(ledger.database, ["film"])
    claimed = ledger.must_claim(1, revision=REVISION)
    finish(ledger.database, claimed, [Outcome(claimed.jobs[0], result=full_result("film"))], settings=ledger.settings)
    return add_bundle(ledger.database, "candidate")


def key_of(ledger: Ledger, bundle_id: int) -> str:
    with ledger.database.read() as connection:
        row = connection.execute(select(tables.bundle).where(tables.bundle.c.id == bundle_id)).one()
    return f"{row.name}:{row.version}"


def test_no_shadow_job_is_opened_for_a_bundle_that_is_just_being_promoted(ledger: Ledger, candidate: int) -> None:
    with before_the_commit(ledger.database, lambda: open_shadow_jobs(ledger.database, candidate)) as errors:
        promote_bundle(ledger.database, ledger.settings, key_of(ledger, candidate), actor="ann")
    assert [type(error) for error in errors] == [CarinaError] and "in service" in str(errors)
    assert check_invariants(ledger.database) == []


def test_shadow_jobs_that_are_just_being_opened_are_cancelled_by_the_promotion(ledger: Ledger, candidate: int) -> None:
    def promote() -> None:
        promote_bundle(ledger.database, ledger.settings, key_of(ledger, candidate), actor="ann")

    with before_the_commit(ledger.database, promote) as errors:
        assert open_shadow_jobs(ledger.database, candidate).opened == 1
    assert errors == []
    with ledger.database.read() as connection:
        assert list(connection.scalars(select(tables.job.c.state).where(tables.job.c.kind == "shadow"))) == [
            "cancelled"
        ]
    assert check_invariants(ledger.database) == []


def test_of_a_promotion_and_a_rollback_in_the_same_moment_the_second_sees_the_first(
    ledger: Ledger, candidate: int
) -> None:
    first, second = key_of(ledger, ledger.bundle_id), key_of(ledger, candidate)
    with before_the_commit(ledger.database, lambda: roll_back(ledger.database, ledger.settings, actor="bob")) as errors:
        promote_bundle(ledger.database, ledger.settings, second, actor="ann")
    assert errors == []
    with ledger.database.read() as connection:
        assert bundle_aliases(connection) == {"champion": first, "previous": second}


def test_two_workers_that_change_over_in_the_same_moment_record_one_engine(ledger: Ledger, candidate: int) -> None:
    described = {"backend": "b", "backend_version": "1", "device": "d", "precision": "fp32"}

    def record() -> None:
        record_engine(ledger.database, candidate, described, {})

    with before_the_commit(ledger.database, record) as errors:
        record()
    assert errors == []
    with ledger.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.engine)) == 1
