"""Nothing is lost and nothing done twice, whatever is killed, frozen, cut off or set wrongly.

The seed is printed; ``CARINA_TEST_CHAOS_SEED`` repeats the same faults in the same order.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import FAULTS, oddities, rage
from chaos_cluster import LEASE_SECONDS, MACHINES, Cluster
from ledger_rows import job_row
from servers import BrokerServer, PostgresqlServer
from sqlalchemy import func, select
from waiting import wait_until

from schema import tables
from worker.queue.invariants import check_invariants

pytestmark = pytest.mark.services

PER_RESULT = {"segmentation": 1, "region_measurement": 8, "finding_score": 10, "heatmap": 1}


@pytest.fixture
def seed() -> int:
    chosen = int(os.environ.get("CARINA_TEST_CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
    print(f"CARINA_TEST_CHAOS_SEED={chosen}")
    return chosen


@pytest.fixture
def cluster(
    tmp_path: Path, postgresql_url: str, own_postgresql: PostgresqlServer, own_broker: BrokerServer, seed: int
) -> Iterator[Cluster]:
    made = Cluster(tmp_path, postgresql_url, own_postgresql, own_broker, random.Random(seed))
    yield made
    made.close()
    own_postgresql.start()
    own_broker.start()
    own_broker.ask(f"AUTH {own_broker.password}", "FLUSHALL")


@pytest.mark.parametrize(
    ("films", "poison", "patience"),
    [
        pytest.param(300, ["poison", "poison", "brittle"], 120.0, id="300", marks=pytest.mark.timeout(600)),
        pytest.param(
            3000,
            ["poison"] * 8 + ["brittle"] * 4,
            600.0,
            id="3000",
            marks=[pytest.mark.slow, pytest.mark.timeout(3600)],
        ),
    ],
)
def test_chaos(cluster: Cluster, films: int, poison: list[str], patience: float) -> None:
    for machine in cluster.machines:
        machine.run()
    wait_until(lambda: len(cluster.answering()) == len(MACHINES), lambda: "the workers to start", 60)
    happened = rage(cluster, films, poison)
    wait_until(lambda: cluster.open() == 0, cluster.story, patience)

    good = films - len(poison)
    assert set(happened) == set(FAULTS)
    assert cluster.states() == {"done": good, "failed": len(poison)}
    with cluster.database.read() as connection:
        failed = select(tables.job.c.id, tables.job.c.code).where(tables.job.c.state == "failed")
        assert dict(connection.execute(failed).all()) == dict.fromkeys(cluster.poison, "WORKER_CRASHED")
        counts = {
            name: connection.scalar(select(func.count()).select_from(tables.metadata.tables[name]))
            for name in PER_RESULT
        }
        assert counts == {name: number * good for name, number in PER_RESULT.items()}
    assert check_invariants(cluster.database) == []
    assert oddities(cluster) == []
    # Whatever happened to them, all workers are back, and take tickets again.
    wait_until(
        lambda: len(cluster.answering()) == len(MACHINES),
        lambda: f"all but {cluster.answering()}\n{cluster.story()}",
        90,
    )


def test_a_name_is_refused_while_its_bearer_lives_and_taken_over_when_it_falls_silent(cluster: Cluster) -> None:
    gate = cluster.folder / "gate"
    machine = cluster.machines[0]
    cluster.films(4, [f"gate {gate}"])
    bearer = machine.run("worker")
    wait_until(gate.with_suffix(".started").exists, lambda: machine.log, 60)
    lease = job_row(cluster.database, cluster.jobs[0]).lease_id
    other = cluster.elsewhere(machine)
    try:
        assert machine.run("worker").wait(60) == 3
        assert "running on this machine" in machine.log
        assert other.run("worker").wait(60) == 3
        assert "running on another machine" in other.log
        assert job_row(cluster.database, cluster.jobs[0]).lease_id == lease

        with cluster.database.write() as connection:
            # While its row is locked the bearer cannot be in the middle of a heartbeat.
            connection.execute(select(tables.worker.c.id).with_for_update())
            bearer.send_signal(signal.SIGSTOP)
        gate.with_suffix(".go").touch()
        heir = other.run("supervise")
        wait_until(lambda: cluster.open() == 0, lambda: f"the heir: {cluster.states()}", 60 + 4 * LEASE_SECONDS)
        rows = [job_row(cluster.database, number) for number in cluster.jobs]
        bearer.send_signal(signal.SIGCONT)
        assert bearer.wait(60) == 3
        assert "named right was started while this one was silent" in machine.log
        assert [job_row(cluster.database, number) for number in cluster.jobs] == rows
        assert heir.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            heir.wait(2 * LEASE_SECONDS)
    finally:
        other.kill_all()
    assert cluster.states() == {"done": 4}
    assert check_invariants(cluster.database) == []
