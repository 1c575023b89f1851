from __future__ import annotations

import threading
from pathlib import Path

import pytest
from ledger_rows import Ledger, add_bundle, age_leases, full_result, job_states, register_films, settings_for
from proxy import Proxy
from servers import wait_until
from sqlalchemy import make_url, select, text
from sqlalchemy.exc import DBAPIError

from schema.database import Database, is_busy
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.leases import sweep
from worker.queue.ledger import register_worker
from worker.queue.outcomes import Outcome
from worker.queue.sessions import end_silent_sessions

WAIT = 60.0


def test_nobody_else_is_cut_off(ledger: Ledger) -> None:
    """An idle session, one in the middle of a transaction, and our own."""
    with ledger.database.read() as connection:
        connection.execute(select(1))
        assert end_silent_sessions(ledger.database, 0.0) == 0
        assert connection.scalar(select(2)) == 2


@pytest.mark.services
def test_a_slow_reader_is_not_cut_off(postgresql_url: str) -> None:
    """A backup by the same role, whose client takes its time: it holds no films."""
    database = Database(postgresql_url)
    waits = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query LIKE 'COPY%'")
    with database.read() as connection:
        cursor = connection.connection.driver_connection.cursor()
        with cursor.copy("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 50000)) TO STDOUT") as copy:
            with database.write() as other:
                wait_until(lambda: other.scalar(waits) == 1, "the server does not wait for the reader", WAIT)
            assert end_silent_sessions(database, 0.0) == 0
            assert sum(1 for _ in copy.rows()) == 50000
    database.close()


@pytest.mark.services
def test_who_falls_silent_in_the_middle_of_its_results_loses_its_films(postgresql_url: str, tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    database = Database(postgresql_url)
    add_bundle(database)
    errors: list[DBAPIError] = []
    with Proxy(make_url(postgresql_url).port or 0) as proxy:
        remote = Database(make_url(postgresql_url).set(port=proxy.port))
        worker = register_worker(remote, settings, "silent")
        films = register_films(database, [f"film-{number}" for number in range(8)])
        claim = Ledger(remote, settings, worker).must_claim(8)
        outcomes = [Outcome(job, result=full_result(job.source.path)) for job in claim.jobs]
        silent = threading.Event()

        def freeze_at_results(piece: bytes, from_client: bool) -> None:
            if from_client and len(piece) > 8000:
                proxy.freeze()
                silent.set()

        def write() -> None:
            try:
                finish(remote, claim, outcomes, settings=settings)
            except DBAPIError as error:
                errors.append(error)

        proxy.on_piece = freeze_at_results
        writer = threading.Thread(target=write)
        writer.start()
        assert silent.wait(WAIT)
        assert sweep(database).expired == 0
        assert end_silent_sessions(database, WAIT) == 0
        wait_until(lambda: end_silent_sessions(database, 0.2) == 1, "the session was not ended", WAIT)
        wait_until(lambda: _aged_and_swept(database) == 8, "the films were not taken back", WAIT)
        proxy.on_piece = lambda piece, from_client: None
        proxy.drop(reset=True)
        writer.join(WAIT)
        assert len(errors) == 1 and is_busy(errors[0])
        # Alive after all, it does its work again, and finds that the films are not its own any more.
        assert finish(remote, claim, outcomes, settings=settings).fenced == tuple(films)
        remote.close()
    worker.release_name()
    assert set(job_states(database).values()) == {"ready"}
    assert check_invariants(database) == []
    database.close()


def _aged_and_swept(database: Database) -> int:
    age_leases(database)
    return sweep(database).expired
