"""A real PostgreSQL that is away, busy, killed or unwilling: what passes and what does not."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ledger_rows import Ledger, full_result, job_states, register_films
from proxy import Proxy
from servers import PostgresqlServer
from sqlalchemy import func, insert, make_url, select, text, update
from sqlalchemy.exc import DBAPIError

from schema import tables
from schema.database import POSTGRESQL_SETTINGS, Database, DatabaseDriverError, is_busy
from schema.types import database_now
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.outcomes import Outcome
from worker.queue.patience import Patience

pytestmark = pytest.mark.services


def server_says(database: Database, state: str) -> DBAPIError:
    """The error that the driver makes of an SQLSTATE from the server."""
    with pytest.raises(DBAPIError) as raised, database.write() as connection:
        connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'for the test' USING ERRCODE = '{state}'; END $$"))
    return raised.value


# The connection


def test_sessions_have_their_limits_whatever_else_the_url_asks_for(postgresql_url: str) -> None:
    url = make_url(postgresql_url).update_query_dict({"options": "-c search_path=pg_catalog", "connect_timeout": "7"})
    for asked in (url, url.set(drivername="postgresql")):
        database = Database(asked)
        with database.read() as connection:
            found = {name: connection.scalar(text(f"SHOW {name}")) for name in (*POSTGRESQL_SETTINGS, "search_path")}
            reads_only = connection.scalar(text("SHOW transaction_read_only"))
            isolation = connection.scalar(text("SHOW transaction_isolation"))
        with database.write() as connection:
            writes = connection.scalar(text("SHOW transaction_read_only"))
        database.close()
        assert found == {
            "idle_in_transaction_session_timeout": "1min",
            "lock_timeout": "10s",
            "timezone": "UTC",
            "jit": "off",
            "tcp_keepalives_idle": "15",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
            "tcp_user_timeout": "30000",
            "search_path": "pg_catalog",
        }
        assert (reads_only, isolation, writes) == ("on", "repeatable read", "off")


def test_a_missing_driver_is_named_with_what_installs_it() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from schema.database import Database, DatabaseDriverError\n"
        "try:\n    Database('postgresql+psycopg://someone:secret@host/name')\n"
        "except DatabaseDriverError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert "pip install 'carina-cxr[postgresql]'" in done.stdout
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("url", ["mysql://someone:secret@host/name", "no url at all: secret"])
def test_other_databases_are_refused_without_quoting_the_url(url: str) -> None:
    with pytest.raises(DatabaseDriverError, match="CARINA_DATABASE_URL") as refusal:
        Database(url)
    assert "secret" not in str(refusal.value)


# What passes and what does not


@pytest.mark.parametrize(
    "state",
    [
        "08006", "25006", "25P03", "40001", "40P01", "53000", "53100", "53200", "53300", "55P03", "57014", "57P01",
        "57P03", "58030",
    ],
)  # fmt: skip
def test_trouble_of_the_server_passes(postgresql: Database, state: str) -> None:
    assert is_busy(server_says(postgresql, state))


@pytest.mark.parametrize(
    "state",
    ["0A000", "22001", "22003", "22021", "22P02", "22P05", "23502", "23503", "23505", "23514", "42501", "42601",
     "42703", "42P01", "54000", "XX000"],
)  # fmt: skip
def test_what_the_server_will_never_take_does_not_pass(postgresql: Database, state: str) -> None:
    assert not is_busy(server_says(postgresql, state))


def test_a_value_the_driver_refuses_does_not_pass(postgresql: Database) -> None:
    with pytest.raises(DBAPIError) as raised, postgresql.write() as connection:
        connection.execute(insert(tables.duty).values(name="a\0b", every_seconds=1.0, due_at=database_now()))
    assert not is_busy(raised.value)


def test_waiting_for_a_lock_ends_and_passes(postgresql: Database, postgresql_url: str) -> None:
    impatient = Database(make_url(postgresql_url).update_query_dict({"options": "-c lock_timeout=50ms"}))
    with postgresql.write() as holder:
        holder.execute(text("LOCK TABLE duty IN EXCLUSIVE MODE"))
        with pytest.raises(DBAPIError) as raised, impatient.write() as connection:
            connection.execute(update(tables.duty).values(outcome=""))
    impatient.close()
    assert is_busy(raised.value)


def test_nobody_listening_passes(postgresql_url: str) -> None:
    with Proxy(make_url(postgresql_url).port or 0) as proxy:
        proxy.mode = "refuse"
        database = Database(make_url(postgresql_url).set(port=proxy.port))
        with pytest.raises(DBAPIError) as raised, database.read() as connection:
            connection.execute(text("SELECT 1"))
        assert is_busy(raised.value)
        proxy.mode = "pass"
        with database.read() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        database.close()


@pytest.mark.parametrize("place", ["statement", "savepoint", "commit"])
def test_a_connection_that_breaks_passes_and_is_replaced(postgresql_url: str, place: str) -> None:
    def work(proxy: Proxy, database: Database) -> None:
        with database.write() as connection:
            connection.execute(insert(tables.submission).values(lane="icu"))
            if place == "commit":
                proxy.drop(reset=True)
                return
            if place == "savepoint":
                with connection.begin_nested():
                    proxy.drop(reset=True)
                    connection.execute(insert(tables.submission).values(lane="icu"))
            proxy.drop(reset=True)
            connection.execute(insert(tables.submission).values(lane="icu"))

    with Proxy(make_url(postgresql_url).port or 0) as proxy:
        database = Database(make_url(postgresql_url).set(port=proxy.port))
        for _ in range(2):
            with pytest.raises(DBAPIError) as raised:
                work(proxy, database)
            assert is_busy(raised.value)
        with database.read() as connection:
            assert connection.scalar(select(func.count()).select_from(tables.submission)) == 0
        database.close()


def test_a_session_ended_by_the_operator_passes(postgresql: Database) -> None:
    with pytest.raises(DBAPIError) as raised, postgresql.write() as connection:
        own = connection.scalar(text("SELECT pg_backend_pid()"))
        with postgresql.write() as operator:
            operator.execute(text("SELECT pg_terminate_backend(:own)"), {"own": own})
        connection.execute(text("SELECT 1"))
    assert is_busy(raised.value)
    assert job_states(postgresql) == {}


def test_the_pool_recovers_from_a_killed_server(own_postgresql: PostgresqlServer, ledger: Ledger) -> None:
    """kill -9 of the postmaster while all pooled connections are in use; then it comes back."""
    register_films(ledger.database, ["a", "b", "c", "d"])
    claimed = ledger.must_claim(4)
    outcomes = [Outcome(job, result=full_result(job.source.path)) for job in claimed.jobs]

    def killed_in_a_session(number: int) -> DBAPIError:
        session = ledger.database.write() if number else ledger.database.read()
        with pytest.raises(DBAPIError) as raised, session as connection:
            connection.execute(text("SELECT 1"))
            all_inside.wait()
            gone.wait()
            connection.execute(text("SELECT 1"))
        return raised.value

    all_inside, gone = threading.Barrier(4), threading.Event()
    with ThreadPoolExecutor(3) as pool:
        sessions = [pool.submit(killed_in_a_session, number) for number in range(3)]
        all_inside.wait()
        own_postgresql.kill9()
        gone.set()
        assert all(is_busy(session.result()) for session in sessions)
    with pytest.raises(DBAPIError) as raised:
        finish(ledger.database, claimed, outcomes, settings=ledger.settings)
    assert is_busy(raised.value)
    own_postgresql.start()
    report = finish(ledger.database, claimed, outcomes, settings=ledger.settings)
    assert Counter(report.states.values()) == {"done": 4}
    assert check_invariants(ledger.database) == []


def test_a_server_that_starts_or_stops_passes(own_postgresql: PostgresqlServer, ledger: Ledger) -> None:
    """Patience outlives a restart, whatever the server says meanwhile."""
    register_films(ledger.database, ["a"])
    own_postgresql.stop()
    refused = threading.Event()
    restart = threading.Thread(target=lambda: (refused.wait(60), own_postgresql.start()))
    restart.start()
    claimed = Patience(wait=lambda seconds: (refused.set(), threading.Event().wait(seconds))).until_done(ledger.claim)
    restart.join()
    assert refused.is_set()
    assert claimed is not None and len(claimed.jobs) == 1


def test_a_frozen_server_is_worked_with_again(own_postgresql: PostgresqlServer, ledger: Ledger) -> None:
    register_films(ledger.database, ["a"])
    with ThreadPoolExecutor(1) as pool:
        with own_postgresql.paused():
            waiting = pool.submit(ledger.claim)
            assert not waiting.done()
        claimed = waiting.result(60)
    assert claimed is not None and len(claimed.jobs) == 1
