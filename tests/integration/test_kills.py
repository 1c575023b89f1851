"""Kill the worker again and again: at the end every film has its result, exactly one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from ledger_rows import job_row
from sqlalchemy import select
from waiting import wait_until
from worker_site import Site, descendants, make_site

from schema import tables
from worker.queue.invariants import check_invariants

POISON = {17: "poison", 203: "poison", 120: "brittle"}
BROKEN = {5: "broken", 250: "broken"}
#: A film's process may be killed from outside twice before the film is blamed.
LONE_KILLS = 2


def choose_victims(process_id: int, dice: random.Random, lone_kills: int) -> tuple[list[int], bool]:
    """Whom to kill: worker, supervisor, both, or the child that runs a suspect; and whether it is the last."""
    family = descendants(process_id)
    workers = [item.pid for item in family if "worker" in _mode(item)]
    solos = [item.pid for item in family if "solo" in _mode(item)]
    if solos and lone_kills < LONE_KILLS and dice.random() < 0.5:
        return solos[:1], True
    return dice.choice([workers, [process_id], [process_id, *workers], [*workers, *solos]]), False


def _mode(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()[2:3]
    except psutil.Error:
        return []


def kill_again_and_again(site: Site, names: list[str], kills: int, dice: random.Random) -> Counter[str]:
    """Kill until ``kills`` have hit or nothing is left to do, then wait for the end."""
    done: Counter[str] = Counter()
    while done.total() < kills and site.open():
        time.sleep(dice.uniform(0.2, 1.2))
        name = dice.choice(names)
        process = site.processes[name]
        if process.poll() is not None:
            site.start(name)
            continue
        victims, alone = choose_victims(process.pid, dice, done["suspect"])
        # A suspect that dies together with its worker is not blamed: that kind has no limit.
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                done["suspect" if alone else "worker"] += 1
    while before := site.open():
        for name in names:
            if site.processes[name].poll() is not None and site.open():
                site.start(name)
        # Each suspect needs a process of its own: how long all of them take is the machine's affair.
        wait_until(
            lambda before=before: (
                site.open() < before or any(site.processes[name].poll() is not None for name in names)
            ),
            lambda: f"the next film: {site.states()}",
        )
    return done


@pytest.mark.parametrize(
    ("kills", "workers", "claim_size", "seed"),
    [
        pytest.param(8, 1, 2, 1, id="short"),
        pytest.param(60, 2, 4, 2, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
        pytest.param(60, 3, 8, 3, id="longer", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_kill_9_loses_no_film_doubles_none_and_convicts_only_the_culprits(
    tmp_path: Path, database_url: str, kills: int, workers: int, claim_size: int, seed: int
) -> None:
    names = [f"w{number}" for number in range(workers)]
    special = POISON | BROKEN
    with make_site(tmp_path, database_url, 300, special, claim_size=claim_size, lease_seconds=2.0) as site:
        for name in names:
            site.start(name)
        done = kill_again_and_again(site, names, kills, random.Random(seed))
        assert done.total() >= kills // 2, f"only {done} before the films were through"
        good = 300 - len(special)
        assert site.states() == {"done": good, "failed": len(special)}
        failed = {site.jobs[number]: "WORKER_CRASHED" for number in POISON}
        failed |= {site.jobs[number]: "DECODE_FAILED" for number in BROKEN}
        with site.database.read() as connection:
            rows = connection.execute(select(tables.job.c.id, tables.job.c.code).where(tables.job.c.state == "failed"))
            assert dict(rows.all()) == failed
        assert check_invariants(site.database) == []
        assert [site.count(table) for table in ("segmentation", "region_measurement", "finding_score", "lease")] == [
            good,
            8 * good,
            10 * good,
            0,
        ]


def test_a_worker_that_was_frozen_past_its_lease_writes_nothing(tmp_path: Path, database_url: str) -> None:
    gate = tmp_path / "gate"
    with make_site(tmp_path, database_url, 6, {0: f"gate {gate}"}, claim_size=3, lease_seconds=1.5) as site:
        frozen = site.start("frozen", "worker")
        wait_until(gate.with_suffix(".started").exists, "the first film to be in work")
        with site.database.write():
            # While we have SQLite's write lock the worker has not: frozen with it, nobody could go on.
            frozen.send_signal(signal.SIGSTOP)
        gate.with_suffix(".go").touch()
        lease = job_row(site.database, site.jobs[0]).lease_id
        site.start("other")
        wait_until(lambda: not site.open(), "the other worker to finish everything")
        results = site.count("segmentation")
        rows = [job_row(site.database, number) for number in site.jobs]
        frozen.send_signal(signal.SIGCONT)
        assert frozen.wait(timeout=60) == 0
        assert "fenced, nothing written" in site.log("frozen")
        assert [job_row(site.database, number) for number in site.jobs] == rows
        assert site.count("segmentation") == results == 6
        assert job_row(site.database, site.jobs[0]).finished_lease != lease
        assert site.states() == {"done": 6}
        assert check_invariants(site.database) == []


def test_a_worker_told_to_stop_finishes_its_batch_and_gives_back_the_rest(tmp_path: Path, database_url: str) -> None:
    gate = tmp_path / "gate"
    with make_site(tmp_path, database_url, 40, {0: f"gate {gate}"}, claim_size=4, lease_seconds=60.0) as site:
        site.seconds_per_film = 0.2
        worker = site.start("w", "worker", stay=True)
        wait_until(gate.with_suffix(".started").exists, "the first film to be in work")
        worker.terminate()
        gate.with_suffix(".go").touch()
        assert worker.wait(timeout=60) == 0
        states = site.states()
        assert states["leased"] == 0 and states["done"] >= 4 and states["ready"] > 0
        with site.database.read() as connection:
            waiting = select(tables.job.c.attempts, tables.job.c.crashes).where(tables.job.c.state == "ready")
            assert set(connection.execute(waiting)) == {(0, 0)}
            assert connection.scalar(select(tables.worker.c.stopped_at)) is not None
        assert site.count("lease") == 0
        assert check_invariants(site.database) == []
