"""Everything goes wrong at once: faults for a cluster, and a rage of them.

:data:`FAULTS` are blocks: something is wrong within each, and afterwards the servers and the
network are well again; the workers have to see for themselves how they recover.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import psutil
from chaos_cluster import LEASE_SECONDS, Cluster
from proxy import Mode, Proxy
from sqlalchemy import select
from waiting import wait_until

from schema import tables

Fault = Callable[[Cluster], AbstractContextManager[object]]


@contextmanager
def worker_killed(cluster: Cluster) -> Iterator[None]:
    cluster.any_machine().kill_worker()
    yield


@contextmanager
def machine_lost(cluster: Cluster) -> Iterator[None]:
    machine = cluster.any_machine()
    machine.kill_all()
    try:
        yield
    finally:
        machine.run()


@contextmanager
def worker_frozen_past_its_lease(cluster: Cluster) -> Iterator[None]:
    frozen = cluster.any_machine().workers()
    _signal(frozen, signal.SIGSTOP)
    try:
        yield
        time.sleep(LEASE_SECONDS)
    finally:
        _signal(frozen, signal.SIGCONT)


@contextmanager
def database_killed(cluster: Cluster) -> Iterator[None]:
    cluster.postgresql.kill9()
    try:
        yield
    finally:
        cluster.postgresql.start()


@contextmanager
def broker_killed(cluster: Cluster) -> Iterator[None]:
    cluster.broker.kill9()
    try:
        yield
    finally:
        cluster.broker.start()


@contextmanager
def broker_restarted_empty(cluster: Cluster) -> Iterator[None]:
    cluster.broker.restart()
    yield


@contextmanager
def broker_flushed(cluster: Cluster) -> Iterator[None]:
    assert "+OK" in cluster.broker.ask(f"AUTH {cluster.broker.password}", "FLUSHALL")
    yield


@contextmanager
def name_used_twice_here(cluster: Cluster) -> Iterator[None]:
    machine = cluster.any_machine()
    machine.run("worker")
    yield


@contextmanager
def name_used_twice_elsewhere(cluster: Cluster) -> Iterator[None]:
    other = cluster.elsewhere(cluster.any_machine())
    other.run()
    try:
        wait_until(lambda: "another machine" in other.log or cluster.bears_name(other), lambda: other.log, 60)
        yield
    finally:
        other.kill_all()


def commit(*, asked: bool) -> Callable[[bytes, bool], bool]:
    """The moment at which a COMMIT is ``asked`` for, else that at which it is answered."""
    return lambda piece, from_client: from_client == asked and b"COMMIT\0" in piece


def results(piece: bytes, from_client: bool) -> bool:
    """A moment in the middle of films' results: rows on their way to a COPY."""
    return from_client and piece[:1] == b"d"


@contextmanager
def silent_in_the_middle_of_results(cluster: Cluster) -> Iterator[None]:
    """Nobody ever hears of the connections again, and the server waits for the rest of the rows."""
    with cluster.database_proxy.at_next(results, cluster.database_proxy.freeze) as struck:
        assert struck.wait(60), f"nobody writes results: {cluster.story()}"
        yield


def commit_cut(*, asked: bool) -> Fault:
    """All connections break while a COMMIT is on its way: to the server, or its answer from there."""

    @contextmanager
    def fault(cluster: Cluster) -> Iterator[None]:
        proxy = cluster.database_proxy
        with proxy.at_next(commit(asked=asked), lambda: proxy.drop(reset=True)) as struck:
            assert struck.wait(60), f"nobody commits: {cluster.story()}"
            yield

    return fault


def commit_frozen(*, asked: bool) -> Fault:
    """All connections fall silent while a COMMIT is on its way, and break a while later."""

    @contextmanager
    def fault(cluster: Cluster) -> Iterator[None]:
        proxy = cluster.database_proxy
        with proxy.at_next(commit(asked=asked), proxy.freeze) as struck:
            assert struck.wait(60), f"nobody commits: {cluster.story()}"
            yield
        proxy.drop(reset=True)

    return fault


def network(which: str, mode: Mode) -> Fault:
    """The connections to ``"database"`` or ``"broker"`` are in ``mode`` for a while, and break at its end."""

    @contextmanager
    def fault(cluster: Cluster) -> Iterator[None]:
        proxy = _proxy(cluster, which)
        proxy.mode = mode
        try:
            yield
        finally:
            proxy.mode = "pass"
            # What a black hole swallowed is missing: such a connection cannot go on.
            if mode == "blackhole":
                proxy.drop(reset=True)

    return fault


def frozen(which: str, *, thawed: bool) -> Fault:
    """Connections hold everything back for a while; not ``thawed`` they never say anything again."""

    @contextmanager
    def fault(cluster: Cluster) -> Iterator[None]:
        proxy = _proxy(cluster, which)
        proxy.freeze()
        yield
        if thawed:
            proxy.thaw()

    return fault


FAULTS: dict[str, Fault] = {
    "worker killed": worker_killed,
    "worker killed once more": worker_killed,
    "machine lost": machine_lost,
    "worker frozen past its lease": worker_frozen_past_its_lease,
    "database killed": database_killed,
    "broker killed": broker_killed,
    "broker restarted empty": broker_restarted_empty,
    "broker flushed": broker_flushed,
    "name used twice on one machine": name_used_twice_here,
    "name used twice on two machines": name_used_twice_elsewhere,
    "database connections silent in the middle of results": silent_in_the_middle_of_results,
    "COMMIT cut on its way": commit_cut(asked=True),
    "answer to COMMIT cut": commit_cut(asked=False),
    "COMMIT frozen on its way": commit_frozen(asked=True),
    "answer to COMMIT frozen": commit_frozen(asked=False),
    "database connections reset": network("database", "reset"),
    "database connections refused": network("database", "refuse"),
    "database connections slow": network("database", "delay"),
    "database connections into a black hole": network("database", "blackhole"),
    "database connections frozen for a while": frozen("database", thawed=True),
    "database connections silent for ever": frozen("database", thawed=False),
    "broker connections reset": network("broker", "reset"),
    "broker connections slow": network("broker", "delay"),
    "broker connections into a black hole": network("broker", "blackhole"),
    "broker connections frozen for a while": frozen("broker", thawed=True),
    "broker connections silent for ever": frozen("broker", thawed=False),
}


def rage(cluster: Cluster, films: int, poison: Sequence[str], *, say: Callable[[str], object] = print) -> Counter[str]:
    """Register ``films`` in waves and let a fault meet each; returns how often each fault happened.

    Every fault happens before any happens again, in an order that the dice decide; one in three
    has a killed worker on top.
    """
    happened: Counter[str] = Counter()
    waves = _waves(films, poison, cluster.dice)
    order: list[str] = []
    with cluster.announcing() as announce:
        for count, words in waves:
            if not order:
                order = cluster.dice.sample(sorted(FAULTS), len(FAULTS))
            name = order.pop()
            cluster.films(count, words)
            announce(count)
            cluster.let_pass(0.0, 0.6)
            say(f"{name}: {dict(cluster.states())}")
            with FAULTS[name](cluster):
                cluster.let_pass(0.3, 1.5)
                if cluster.dice.random() < 1 / 3:
                    cluster.any_machine().kill_worker()
            happened[name] += 1
    return happened


def oddities(cluster: Cluster) -> list[str]:
    """What the attempts say that cannot be, besides the invariants: a sentence each."""
    with cluster.database.read() as connection:
        jobs = connection.execute(select(tables.job)).all()
        outcomes: dict[int, Counter[str]] = defaultdict(Counter)
        for row in connection.execute(select(tables.attempt.c.job_id, tables.attempt.c.outcome)):
            outcomes[row.job_id][row.outcome] += 1
    found = []
    for job in jobs:
        had = outcomes[job.id]
        final_crash = had["crashed_alone"] > 0 and job.state == "failed"
        checks = {
            "one end": had["done"] + final_crash == 1 and (had["done"] == 1) == (job.state == "done"),
            "nothing unheard of": set(had) <= {"done", "delayed", "expired", "crashed", "crashed_alone"},
            "as many crashes as deaths": job.crashes
            == had["expired"] + had["crashed"] + had["crashed_alone"] - final_crash,
            "as many attempts as were its own": job.attempts == 1 + had["delayed"],
            "no lease any more": job.lease_id is None and job.finished_lease is not None,
        }
        found += [f"job {job.id}, {job.state}, {dict(had)}: not {what}" for what, holds in checks.items() if not holds]
    return found


def _waves(films: int, poison: Sequence[str], dice: random.Random) -> list[tuple[int, list[str]]]:
    """(films, deadly words) for each fault of so many rounds as there are 300 films."""
    count = len(FAULTS) * max(1, films // 300)
    sizes = [films // count + (number < films % count) for number in range(count)]
    words: dict[int, list[str]] = defaultdict(list)
    for word in poison:
        words[dice.randrange(count)].append(word)
    return [(size, words[number]) for number, size in enumerate(sizes)]


def _proxy(cluster: Cluster, which: str) -> Proxy:
    return {"database": cluster.database_proxy, "broker": cluster.broker_proxy}[which]


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
