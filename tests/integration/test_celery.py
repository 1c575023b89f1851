"""Workers with a real broker: tickets make them quick, and nothing depends on them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import servers
from ledger_rows import add_bundle, fresh_database, register_films, settings_for
from passthrough_worker import command
from sqlalchemy import func, select
from waiting import wait_until

from schema import tables
from schema.database import Database
from worker.queue.app import QUEUE, make_app
from worker.queue.invariants import check_invariants
from worker.queue.tasks import BATCH, register
from worker.queue.tickets import announcing

pytest.importorskip("celery")
pytestmark = pytest.mark.services

#: So seldom does a worker look by itself that within a test only tickets can wake it.
NEVER = 3600.0
OFTEN = 0.2
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cluster:
    """A ledger, a broker, and the workers on both."""

    home: Path
    database: Database
    broker_url: str
    database_url: str = ""
    claim_size: int = 4
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.app = make_app(settings_for(self.home, broker_url=self.broker_url))
        register(self.app)

    def films(self, count: int, special: dict[int, str] | None = None, *, announce: bool = True) -> list[int]:
        """Register so many films, and announce them."""
        folder = self.home / f"films-{time.monotonic_ns()}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:04d}").write_text((special or {}).get(number, "film"))
        jobs = register_films(self.database, [str(folder / f"{n:04d}").lstrip("/") for n in range(count)])
        if announce:
            self.announce(count)
        return jobs

    def announce(self, films: int) -> None:
        settings = settings_for(self.home, broker_url=self.broker_url, claim_size=self.claim_size)
        with announcing(settings, self.database) as announce:
            announce(films)

    def start(self, name: str, *, mode: str = "worker", poll_seconds: float = NEVER, **settings: Any) -> None:
        values = {
            "broker_url": self.broker_url,
            "database_url": self.database_url,
            "poll_seconds": poll_seconds,
            "claim_size": self.claim_size,
            **settings,
        }
        options = {"home": str(self.home), "name": name, "settings": values, "seconds_per_film": 0.005, "stay": True}
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(command(mode, options), stdin=subprocess.PIPE, stderr=log)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def inspect(self) -> Any:
        # Not from the pool, which is the process's and remembers brokers that were killed.
        return self.app.control.inspect(timeout=1.0, connection=self.app.connection_for_write())

    def await_ready(self, *names: str) -> None:
        """Wait until the workers answer Celery's ping."""
        wanted = {f"carina@{name}" for name in names}
        wait_until(lambda: wanted <= set(self.inspect().ping() or {}), f"{names} to answer")

    def states(self) -> Counter[str]:
        with self.database.read() as connection:
            rows = connection.execute(select(tables.job.c.state, func.count()).group_by(tables.job.c.state)).all()
        return Counter(dict(rows))

    def await_done(self, count: int) -> None:
        wait_until(lambda: self.states() == {"done": count}, f"{count} films, not {self.states()}")

    def results(self) -> int:
        with self.database.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(tables.segmentation)) or 0)

    def attempts(self) -> Counter[str]:
        with self.database.read() as connection:
            return Counter(connection.scalars(select(tables.attempt.c.outcome)))

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["type"] == kind]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Collect Celery's events, as Flower does."""
        stop = threading.Event()
        ready = threading.Event()

        def collect() -> None:
            with self.app.connection_for_read() as connection:
                receiver = self.app.events.Receiver(connection, handlers={"*": self.events.append})
                with receiver.consumer_context() as (own_connection, *_):
                    while not stop.is_set():
                        with contextlib.suppress(TimeoutError):
                            own_connection.drain_events(timeout=0.2)
                        ready.set()

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            assert ready.wait(30)
            yield
        finally:
            stop.set()
            thread.join(30)


@contextlib.contextmanager
def make_cluster(folder: Path, broker_url: str, database_url: str = "") -> Iterator[Cluster]:
    (folder / "home").mkdir()
    database = Database(database_url) if database_url else fresh_database(folder / "home")
    add_bundle(database)
    cluster = Cluster(folder / "home", database, broker_url, database_url)
    try:
        yield cluster
    finally:
        for process in cluster.processes.values():
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for victim in (*family, process):
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    victim.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        cluster.app.close()
        database.close()


@pytest.fixture
def cluster(tmp_path: Path, own_broker: servers.BrokerServer) -> Iterator[Cluster]:
    flush(own_broker)
    with make_cluster(tmp_path, own_broker.url) as made:
        yield made
    own_broker.start()
    flush(own_broker)


def flush(broker: servers.BrokerServer) -> str:
    return broker.ask(f"AUTH {broker.password}", "FLUSHALL")


def waiting_tickets(cluster: Cluster) -> int:
    with cluster.app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(queue=QUEUE, durable=True).message_count)


def send_tickets(cluster: Cluster, count: int) -> None:
    with cluster.app.connection_for_write() as connection:
        producer = cluster.app.amqp.Producer(connection.default_channel, auto_declare=False)
        for _ in range(count):
            cluster.app.send_task(BATCH, producer=producer, queue=QUEUE, ignore_result=True)


def test_a_ticket_wakes_an_idle_worker_and_a_full_batch_sends_the_next(cluster: Cluster) -> None:
    with cluster.watching():
        cluster.start("one")
        cluster.await_ready("one")
        cluster.films(30, announce=False)
        cluster.announce(1)
        cluster.await_done(30)
        wait_until(lambda: len(cluster.of_type("task-succeeded")) >= 8, "all batches to be seen")
    outcomes = [event["result"] for event in cluster.of_type("task-succeeded")]
    assert sum(int(number) for text in outcomes for number in re.findall(r"'claimed': (\d+)", text)) == 30
    assert sum(int(number) for text in outcomes for number in re.findall(r"'done': (\d+)", text)) == 30
    assert cluster.results() == 30 and check_invariants(cluster.database) == []


def test_a_batch_is_a_task_that_celery_shows_and_a_ticket_says_nothing(cluster: Cluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with cluster.watching():
        cluster.start("one")
        cluster.await_ready("one")
        cluster.films(3, {0: f"gate {gate}", 1: "broken"})
        wait_until(gate.with_suffix(".started").exists, "the batch to begin")
        active = cluster.inspect().active()["carina@one"]
        assert [(task["name"], task["args"], task["kwargs"]) for task in active] == [(BATCH, [], {})]
        assert BATCH in cluster.inspect().registered()["carina@one"]
        assert cluster.inspect().stats()["carina@one"]["pool"]["max-concurrency"] == 2
        gate.with_suffix(".go").touch()
        wait_until(lambda: cluster.of_type("task-succeeded"), "the task to succeed")
    (received, *_), (succeeded, *_) = cluster.of_type("task-received"), cluster.of_type("task-succeeded")
    assert (received["name"], received["args"], received["kwargs"]) == (BATCH, "()", "{}")
    assert "'claimed': 3" in succeeded["result"] and "'failed': 1" in succeeded["result"]
    assert succeeded["runtime"] > 0 and succeeded["hostname"] == "carina@one"
    assert cluster.of_type("task-sent") and cluster.of_type("worker-online")


def test_a_broker_that_is_flushed_and_killed_costs_no_film(cluster: Cluster, own_broker: servers.BrokerServer) -> None:
    cluster.start("one", poll_seconds=OFTEN)
    cluster.start("two", poll_seconds=OFTEN)
    cluster.await_ready("one", "two")
    for before in (0, 150, 300):
        cluster.films(60)
        wait_until(lambda done=before: cluster.states()["done"] > done, "the round to begin")
        flush(own_broker)
        cluster.films(60)
        own_broker.kill9()
        # Announced to nobody: these come out without a single ticket.
        cluster.films(30)
        cluster.await_done(before + 150)
        own_broker.start()
    total = 450
    assert cluster.attempts() == {"done": total}
    assert cluster.results() == total and check_invariants(cluster.database) == []


def test_without_a_broker_at_the_start_it_works_and_takes_tickets_later(
    cluster: Cluster, own_broker: servers.BrokerServer
) -> None:
    own_broker.stop()
    cluster.films(20)
    cluster.start("one", poll_seconds=OFTEN)
    cluster.await_done(20)
    own_broker.start()
    cluster.await_ready("one")
    with cluster.watching():
        send_tickets(cluster, 1)
        wait_until(lambda: cluster.of_type("task-succeeded"), "the ticket to be taken")
    assert check_invariants(cluster.database) == []


def test_doubled_tickets_change_nothing(cluster: Cluster) -> None:
    jobs = cluster.films(10, announce=False)
    send_tickets(cluster, 40)
    with cluster.watching():
        cluster.start("one")
        cluster.start("two")
        wait_until(lambda: len(cluster.of_type("task-succeeded")) >= 40, "all tickets to be used up")
    assert cluster.states() == {"done": len(jobs)}
    assert cluster.attempts() == {"done": len(jobs)}
    assert cluster.results() == len(jobs) and check_invariants(cluster.database) == []


def test_two_workers_share_what_is_announced(cluster: Cluster, tmp_path: Path) -> None:
    cluster.claim_size = 1
    cluster.start("one")
    cluster.start("two")
    cluster.await_ready("one", "two")
    gates = [tmp_path / f"gate-{number}" for number in range(4)]
    cluster.films(4, {number: f"gate {gate}" for number, gate in enumerate(gates)}, announce=False)
    send_tickets(cluster, 8)
    # Each has room for two batches: four at once need both.
    wait_until(lambda: all(gate.with_suffix(".started").exists() for gate in gates), "all four to be in work")
    with cluster.database.read() as connection:
        holders = Counter(connection.scalars(select(tables.lease.c.worker_id)))
    assert sorted(holders.values()) == [2, 2]
    for gate in gates:
        gate.with_suffix(".go").touch()
    cluster.await_done(4)


def test_told_to_stop_it_finishes_its_batches_and_leaves_the_rest(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start("one")
    cluster.await_ready("one")
    gates = [tmp_path / f"gate-{number}" for number in range(2)]
    cluster.films(40, {0: f"gate {gates[0]}", 4: f"gate {gates[1]}"})
    wait_until(lambda: all(gate.with_suffix(".started").exists() for gate in gates), "both batches to be in work")
    process = cluster.processes["one"]
    process.terminate()
    wait_until(lambda: not cluster.inspect().ping(), "the worker to take no more tickets")
    for gate in gates:
        gate.with_suffix(".go").touch()
    assert process.wait(timeout=60) == 0
    assert cluster.states() == {"done": 8, "ready": 32}
    with cluster.database.read() as connection:
        waiting = select(tables.job.c.attempts, tables.job.c.crashes).where(tables.job.c.state == "ready")
        assert set(connection.execute(waiting)) == {(0, 0)}
        assert connection.scalar(select(tables.worker.c.stopped_at)) is not None
        assert connection.scalar(select(tables.lease.c.id)) is None
    # Those it had taken but not begun are back: they wake the next worker.
    assert waiting_tickets(cluster) > 0
    cluster.start("two")
    cluster.await_done(40)
    assert check_invariants(cluster.database) == []


def test_celery_can_stop_a_worker(cluster: Cluster) -> None:
    cluster.start("one")
    cluster.await_ready("one")
    cluster.app.control.shutdown(destination=["carina@one"])
    assert cluster.processes["one"].wait(timeout=60) == 0
    with cluster.database.read() as connection:
        assert connection.scalar(select(tables.worker.c.stopped_at)) is not None


def test_a_worker_killed_over_a_ticket_loses_no_film(cluster: Cluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    cluster.start("victim", lease_seconds=1.5)
    cluster.await_ready("victim")
    cluster.films(4, {1: f"gate {gate}"})
    wait_until(gate.with_suffix(".started").exists, "the batch to be in work")
    os.kill(cluster.processes["victim"].pid, signal.SIGKILL)
    gate.with_suffix(".go").touch()
    cluster.start("heir", poll_seconds=OFTEN, lease_seconds=1.5)
    cluster.await_done(4)
    assert cluster.attempts() == {"expired": 4, "done": 4}
    assert cluster.results() == 4 and check_invariants(cluster.database) == []


def test_a_broker_user_limited_to_our_keys_and_channels_is_enough(tmp_path: Path) -> None:
    binaries = servers.broker_binaries()
    if not binaries:
        pytest.skip("no Valkey or Redis on this machine")
    rules = re.search(r"^user carina on #\S+ (.*)$", (ROOT / "deploy/redis/users.acl.template").read_text(), re.M)
    assert rules is not None
    with contextlib.closing(servers.BrokerServer(binaries[0], config=f"user carina on >secret {rules[1]}")) as broker:
        broker.start()
        with make_cluster(tmp_path, f"redis://carina:secret@127.0.0.1:{broker.port}/0") as cluster:
            with cluster.watching():
                cluster.start("one")
                cluster.await_ready("one")
                cluster.films(30)
                cluster.await_done(30)
                wait_until(lambda: cluster.of_type("task-succeeded"), "events to arrive")
            keys = broker.ask(f"AUTH {broker.password}", "KEYS *")
    names = [line for line in keys.splitlines() if line and line[0] not in "*$+"]
    assert names and all(name.startswith("carina:") for name in names)


def test_the_hospitals_set_up_reads_each_film_once(
    tmp_path: Path, own_broker: servers.BrokerServer, postgresql_url: str
) -> None:
    flush(own_broker)
    with make_cluster(tmp_path, own_broker.url, postgresql_url) as cluster:
        for name in ("one", "two", "three"):
            cluster.start(name)
        cluster.await_ready("one", "two", "three")
        cluster.films(200, {7: "broken"})
        wait_until(lambda: cluster.states() == {"done": 199, "failed": 1}, "all films")
        assert cluster.attempts() == {"done": 199, "failed": 1}
        assert cluster.results() == 199 and check_invariants(cluster.database) == []
        for process in cluster.processes.values():
            process.terminate()
        assert [process.wait(timeout=60) for process in cluster.processes.values()] == [0, 0, 0]
