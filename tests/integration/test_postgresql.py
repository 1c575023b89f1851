"""What only a real PostgreSQL can show: several clients at once, a server that dies, its own refusals.

The rest of the suite runs on PostgreSQL too, by the fixtures of its own folders.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from intake_rows import film, header, registrar, source
from ledger_rows import (
    Ledger,
    add_bundle,
    age_leases,
    full_result,
    job_row,
    job_states,
    make_due,
    register_films,
    settings_for,
)
from proxy import Proxy
from servers import GivenPostgresql, PostgresqlServer, wait_until
from sqlalchemy import func, insert, make_url, select, text, update
from sqlalchemy.exc import DBAPIError

from schema import queries, tables
from schema.database import POSTGRESQL_SETTINGS, Database, DatabaseDriverError, is_busy
from schema.tables import Lane
from schema.types import database_now
from worker.errors import CarinaError, FilmError
from worker.intake.register import Examined
from worker.queue.duties import Duty, do_due_duties, ensure_duties, prune
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.leases import heartbeat, make_due_ready, sweep
from worker.queue.ledger import claim, retry
from worker.queue.outcomes import Claim, Outcome
from worker.queue.patience import Patience
from worker.queue.workers import WorkerIdentity, register_worker

pytestmark = pytest.mark.services


@pytest.fixture
def database(postgresql_url: str) -> Iterator[Database]:
    opened = Database(postgresql_url)
    add_bundle(opened)
    yield opened
    opened.close()


@pytest.fixture
def ledger(database: Database, tmp_path: Path) -> Iterator[Ledger]:
    settings = settings_for(tmp_path)
    worker = register_worker(database, settings, "one")
    yield Ledger(database, settings, worker)
    worker.release_name()


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(0)``, ``work(1)``, ... in threads that start at the same moment; their results or exceptions."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait()
        try:
            return work(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def claim_as(ledger: Ledger, worker: WorkerIdentity, limit: int = 16) -> Claim | None:
    return claim(
        ledger.database, worker, bundle_id=ledger.bundle_id, revision=1, limit=limit, lease_seconds=120.0,
        draw=lambda: 0.99,
    )  # fmt: skip


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
def test_trouble_of_the_server_passes(database: Database, state: str) -> None:
    assert is_busy(server_says(database, state))


@pytest.mark.parametrize(
    "state",
    ["0A000", "22001", "22003", "22021", "22P02", "22P05", "23502", "23503", "23505", "23514", "42501", "42601",
     "42703", "42P01", "54000", "XX000"],
)  # fmt: skip
def test_what_the_server_will_never_take_does_not_pass(database: Database, state: str) -> None:
    assert not is_busy(server_says(database, state))


def test_a_value_the_driver_refuses_does_not_pass(database: Database) -> None:
    with pytest.raises(DBAPIError) as raised, database.write() as connection:
        connection.execute(insert(tables.duty).values(name="a\0b", every_seconds=1.0, due_at=database_now()))
    assert not is_busy(raised.value)


def test_waiting_for_a_lock_ends_and_passes(database: Database, postgresql_url: str) -> None:
    impatient = Database(make_url(postgresql_url).update_query_dict({"options": "-c lock_timeout=50ms"}))
    with database.write() as holder:
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


def test_a_session_ended_by_the_operator_passes(database: Database) -> None:
    with pytest.raises(DBAPIError) as raised, database.write() as connection:
        own = connection.scalar(text("SELECT pg_backend_pid()"))
        with database.write() as operator:
            operator.execute(text("SELECT pg_terminate_backend(:own)"), {"own": own})
        connection.execute(text("SELECT 1"))
    assert is_busy(raised.value)
    assert job_states(database) == {}


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


# Several workers at once


def test_claims_never_overlap_and_never_exceed_their_limit(ledger: Ledger) -> None:
    archive = register_films(ledger.database, [f"archive {number}" for number in range(300)])
    urgent = register_films(ledger.database, [f"urgent {number}" for number in range(60)], lane=Lane.ICU)
    workers = [register_worker(ledger.database, ledger.settings, f"worker {number}") for number in range(4)]

    def empty_the_ledger(number: int) -> list[list[int]]:
        batches = []
        while (claimed := claim_as(ledger, workers[number], limit=7)) is not None:
            batches.append([job.id for job in claimed.jobs])
        return batches

    found = together(4, empty_the_ledger)
    batches = [batch for worker in found for batch in worker]
    assert Counter(job for batch in batches for job in batch) == Counter([*archive, *urgent])
    assert max(map(len, batches)) <= 7
    for worker in found:
        lanes = [job in urgent for batch in worker for job in batch]
        assert lanes == sorted(lanes, reverse=True)
    assert check_invariants(ledger.database) == []
    for worker in workers:
        worker.release_name()


def test_a_claim_steps_over_what_another_one_is_taking(ledger: Ledger) -> None:
    first, second = register_films(ledger.database, ["a", "b"])
    with ledger.database.write() as other:
        other.execute(select(tables.job.c.id).where(tables.job.c.id == first).with_for_update())
        assert [job.id for job in ledger.must_claim(1).jobs] == [second]
        assert ledger.claim(1) is None
    assert [job.id for job in ledger.must_claim(1).jobs] == [first]


def test_a_claim_of_a_large_ledger_uses_its_index(ledger: Ledger) -> None:
    register_films(ledger.database, [str(number) for number in range(3000)])
    with ledger.database.write() as connection:
        connection.execute(update(tables.job).where(tables.job.c.id % 100 != 0).values(state="cancelled"))
    with ledger.database.write() as connection:
        connection.execute(text("ANALYZE job"))
    with ledger.database.write() as connection:
        connection.execute(
            text("PREPARE chosen AS SELECT id FROM job WHERE state = 'ready' AND crashes = 0"
                 " ORDER BY priority, id LIMIT 16 FOR UPDATE SKIP LOCKED")
        )  # fmt: skip
        plan = "\n".join(connection.scalars(text("EXPLAIN EXECUTE chosen")))
        recent = select(tables.job.c.id).where(tables.job.c.finished_at >= database_now(-300.0))
        sql = recent.compile(connection.engine, compile_kwargs={"literal_binds": True})
        recent_plan = "\n".join(connection.scalars(text(f"EXPLAIN {sql}")))
    assert "ix_job_ready" in plan and "Seq Scan" not in plan
    assert "ix_job_finished_at" in recent_plan and "Seq Scan" not in recent_plan


@pytest.mark.parametrize("opposite", [False, True], ids=["same order", "opposite order"])
def test_the_same_contents_in_two_batches_become_one_film_each(ledger: Ledger, opposite: bool) -> None:
    """Two workers settle equal pictures in the same moment: the partial unique index decides."""
    contents = [f"content {number}" for number in range(8)]
    register_films(ledger.database, [f"first {content}" for content in contents])
    first = ledger.must_claim(8)
    register_films(ledger.database, [f"second {content}" for content in contents])
    second = ledger.must_claim(8)

    def results(claimed: Claim, turned: bool) -> list[Outcome]:
        jobs = claimed.jobs[::-1] if turned else claimed.jobs
        return [Outcome(job, result=full_result(job.source.path.partition(" ")[2])) for job in jobs]

    batches = [(first, results(first, False)), (second, results(second, opposite))]

    def write(number: int) -> Any:
        claimed, outcomes = batches[number]
        patience = Patience(wait=lambda _: None)
        return patience.until_done(lambda: finish(ledger.database, claimed, outcomes, settings=ledger.settings))

    reports = together(2, write)
    assert Counter(state for report in reports for state in report.states.values()) == {"done": 8, "cancelled": 8}
    with ledger.database.read() as connection:
        films = connection.execute(select(tables.instance.c.content_hash, tables.instance.c.alias_of)).all()
    assert Counter(film.content_hash for film in films if film.alias_of is None).most_common(1)[0][1] == 1
    assert sum(film.alias_of is not None for film in films) == 8
    assert check_invariants(ledger.database) == []


def test_a_sweep_beside_a_late_finish_gives_each_film_one_end(ledger: Ledger) -> None:
    """The holder writes while another worker takes its films back: one of them wins, whole."""
    for turn in range(6):
        register_films(ledger.database, [f"{turn} {number}" for number in range(4)])
        claimed = ledger.must_claim(4)
        age_leases(ledger.database)
        outcomes = [Outcome(job, result=full_result(job.source.path)) for job in claimed.jobs]
        report, swept = together(
            2,
            lambda number, claimed=claimed, outcomes=outcomes: (
                sweep(ledger.database)
                if number
                else finish(ledger.database, claimed, outcomes, settings=ledger.settings)
            ),
        )
        assert (len(report.states), swept.expired) in ((4, 0), (0, 4))
        assert check_invariants(ledger.database) == []
        with ledger.database.write() as connection:
            connection.execute(update(tables.job).where(tables.job.c.state == "ready").values(state="cancelled"))


def test_the_same_files_registered_at_once_are_registered_once(ledger: Ledger) -> None:
    files = [film(f"2.25.{number}", f"/films/{number}") for number in range(40)]
    registrars = [registrar(ledger.database) for _ in range(4)]
    patience = Patience(wait=lambda _: None)
    counts = together(4, lambda number: patience.until_done(lambda: registrars[number].register(files)))
    assert sum(count.registered for count in counts) == 40
    assert all(count.files == 40 for count in counts)
    with ledger.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.arrival)) == 40
        seen = select(func.count()).select_from(tables.submission_arrival)
        assert connection.scalar(seen) == 160
    assert Counter(job_states(ledger.database).values()) == {"ready": 40}
    assert check_invariants(ledger.database) == []


def test_workers_that_start_together_agree_on_names_and_duties(database: Database, tmp_path: Path) -> None:
    """On several machines, so that no lock file keeps them apart."""
    settings = [settings_for(tmp_path / str(number)) for number in range(4)]
    started = together(4, lambda number: register_worker(database, settings[number], "the same"))
    assert all(isinstance(worker, (WorkerIdentity, CarinaError)) for worker in started), started
    duties = [Duty(name, 60.0, prune) for name in ("one", "two")]
    assert together(4, lambda _: ensure_duties(database, duties)) == [None] * 4
    worker = next(worker for worker in started if isinstance(worker, WorkerIdentity))
    done = together(4, lambda _: do_due_duties(database, worker, duties))
    assert sorted(name for names in done for name in names) == ["one", "two"]


# A film's whole life


def test_every_way_a_film_can_go(ledger: Ledger) -> None:
    database, settings = ledger.database, ledger.settings
    names = ["done", "refused", "later", "lateral", "lost"]
    done, refused, later, lateral, lost = register_films(database, names)
    claimed = ledger.must_claim(4)
    outcomes = dict(zip(names, claimed.jobs, strict=False))
    report = finish(
        database,
        claimed,
        [
            Outcome(outcomes["done"], result=full_result("done")),
            Outcome(outcomes["refused"], error=FilmError("DECODE_FAILED", "a NUL \0 and a lone surrogate \udc80")),
            Outcome(outcomes["later"], error=FilmError("SOURCE_MISSING")),
            Outcome(outcomes["lateral"], error=FilmError("LATERAL")),
        ],
        settings=settings,
    )
    assert report.states == {done: "done", refused: "failed", later: "delayed", lateral: "ineligible"}
    assert [job.id for job in ledger.must_claim().jobs] == [lost]
    assert heartbeat(database, job_row(database, lost).lease_id, 60.0)
    age_leases(database)
    assert sweep(database).expired == 1
    make_due(database)
    assert make_due_ready(database) == 1
    assert retry(database, codes=["DECODE_FAILED"], actor="someone") == 1
    with database.read() as connection:
        backlog = queries.backlog(connection)["archive"]
        assert (backlog.ready, backlog.leased, backlog.delayed) == (3, 0, 0)
        assert queries.throughput(connection).done == 1
        assert queries.workers_seen(connection)[0].name == "one"
    assert check_invariants(database) == []


def test_words_postgresql_cannot_keep_cost_at_most_their_own_film(ledger: Ledger) -> None:
    register_films(ledger.database, ["good", "odd facts", "odd flag"])
    claimed = ledger.must_claim()
    good, facts, flag = (full_result(job.source.path) for job in claimed.jobs)
    facts = replace(facts, facts=replace(facts.facts, body_part="ÄÖ\0\udc80" * 40, view_position="P" * 40))
    flag.flags[0] = replace(flag.flags[0], detail="\0")
    outcomes = [Outcome(job, result=result) for job, result in zip(claimed.jobs, (good, facts, flag), strict=True)]
    report = finish(ledger.database, claimed, outcomes, settings=ledger.settings)
    assert [report.states[job.id] for job in claimed.jobs] == ["done", "done", "failed"]
    assert job_row(ledger.database, claimed.jobs[2].id).code == "RESULT_REJECTED"
    assert check_invariants(ledger.database) == []


def test_headers_with_words_postgresql_cannot_keep_are_registered(ledger: Ledger) -> None:
    files = [
        film("2.25.1", "/a", patient_id="NUL \0", station_name="\udc80" * 99, manufacturer="é" * 99),
        Examined(source("/b"), None, "BAD_VALUE", "the header says \0 and \udc80"),
        Examined(source("/ü \udc80".encode("utf-8", "surrogateescape").hex()), header("2.25.3")),
    ]
    counts = registrar(ledger.database).register(files)
    assert (counts.registered, counts.rejected.total()) == (2, 1)


def test_a_job_keeps_room_for_its_updates(database: Database) -> None:
    def options() -> set[str]:
        with database.read() as connection:
            return set(connection.scalar(text("SELECT reloptions FROM pg_class WHERE relname = 'job'")) or ())

    wanted = {"fillfactor=80", "autovacuum_vacuum_scale_factor=0.02", "autovacuum_vacuum_cost_delay=0"}
    assert options() == wanted
    database.downgrade("0001")
    assert options() == set()
    database.upgrade()
    assert options() == wanted
    with database.read() as connection:
        columns = "SELECT attname, attstorage FROM pg_attribute WHERE attname IN ('mask', 'raw_mask', 'maps')"
        assert {row.attname: row.attstorage for row in connection.execute(text(columns))} == {
            "mask": "e", "raw_mask": "e", "maps": "e",
        }  # fmt: skip


def test_a_server_given_by_its_url_is_used_and_left_clean(postgresql_server: Any) -> None:
    given = GivenPostgresql(postgresql_server.admin_url.render_as_string(hide_password=False))
    given._numbers = iter(range(10_000, 10_010))
    made = given.fresh_database()
    database = Database(made)
    database.require_current()
    database.close()
    given.drop_all()
    atexit.unregister(given.drop_all)
    with pytest.raises(DBAPIError, match="does not exist"):
        Database(made).version()


def test_servers_leave_nothing_behind(tmp_path: Path) -> None:
    """The process that started them is killed: they end too."""
    script = (
        "import sys, servers\n"
        "server = servers.PostgresqlServer(servers.postgresql_binaries()[-1]).start()\n"
        "broker = servers.BrokerServer(servers.broker_binaries()[-1]).start()\n"
        "print(server.port, broker.port, server.folder, broker.folder, flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"},
        text=True,
    ) as child:
        assert child.stdout is not None
        first, second, *folders = child.stdout.readline().split()
        ports = [int(first), int(second)]
        assert all(map(listening, ports))
        child.kill()
        child.wait()
    wait_until(lambda: not any(map(listening, ports)), "the servers did not end with their starter")
    for folder in folders:
        shutil.rmtree(folder)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
