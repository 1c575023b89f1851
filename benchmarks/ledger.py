"""What does the ledger cost a film?

One worker claims 16 films, renews its lease once, and finishes them with the full payload
(eight regions, ten findings, flags, two masks, heat maps), on SQLite with synchronous=FULL,
in ledgers of growing size. Target: 1 ms a film or less, flat from 1,000 to 100,000 films.

    python benchmarks/ledger.py [--sizes 1000 10000 100000] [--batches 30] [--dir FOLDER] [--profile]

With ``--database-url postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`` the ledgers are new databases
on that server, which are dropped afterwards; the named one is left alone.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ledger_rows import add_bundle, fresh_database, full_result, register_films, settings_for
from servers import GivenPostgresql

from schema.database import Database
from worker.queue.finish import finish
from worker.queue.leases import heartbeat
from worker.queue.ledger import claim, deregister_worker, register_worker
from worker.queue.outcomes import Outcome

TARGET_MS = 1.0
CLAIM = 16


def one_batch(database: Database, worker, bundle_id: int, settings) -> dict[str, float]:
    """Milliseconds per film of each step of one batch; building the results is not counted."""
    started = time.perf_counter()
    claimed = claim(database, worker, bundle_id=bundle_id, revision=1, limit=CLAIM, lease_seconds=120.0)
    times = {"claim": time.perf_counter() - started}
    assert claimed is not None and len(claimed.jobs) == CLAIM
    outcomes = [Outcome(item, result=full_result(item.source.path)) for item in claimed.jobs]
    started = time.perf_counter()
    assert heartbeat(database, claimed.lease_id, 120.0)
    times["heartbeat"] = time.perf_counter() - started
    started = time.perf_counter()
    report = finish(database, claimed, outcomes, settings=settings)
    times["finish"] = time.perf_counter() - started
    assert len(report.states) == CLAIM
    return {name: 1000.0 * seconds / CLAIM for name, seconds in times.items()}


def measure(
    folder: Path, size: int, batches: int, profile: cProfile.Profile | None, server: GivenPostgresql | None
) -> dict[str, float]:
    """Median milliseconds per film at a ledger of ``size`` films."""
    database = Database(server.fresh_database()) if server else fresh_database(folder / str(size))
    settings = settings_for(folder / str(size))
    bundle_id = add_bundle(database)
    for first in range(0, size, 5000):
        register_films(database, [f"film-{number}" for number in range(first, min(first + 5000, size))])
    worker = register_worker(database, settings, "bench")
    one_batch(database, worker, bundle_id, settings)
    if profile is not None:
        profile.enable()
    rows = [one_batch(database, worker, bundle_id, settings) for _ in range(batches)]
    if profile is not None:
        profile.disable()
    deregister_worker(database, worker)
    database.close()
    if server:
        server.drop(database.url)
    return {name: median(row[name] for row in rows) for name in rows[0]}


def main() -> int:
    """Print the table; exit code 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--database-url", help="a PostgreSQL server to measure instead of SQLite")
    parser.add_argument("--dir", type=Path, help="where the databases are made (default: the temporary folder)")
    parser.add_argument("--profile", action="store_true", help="print the profile in any case")
    options = parser.parse_args()
    server = GivenPostgresql(options.database_url) if options.database_url else None
    missed = False
    print(f"{'films':>8} {'claim':>8} {'heartbeat':>10} {'finish':>8} {'total':>8}  ms per film, claim {CLAIM}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            times = measure(Path(folder), size, options.batches, None, server)
            total = sum(times.values())
            print(
                f"{size:8d} {times['claim']:8.3f} {times['heartbeat']:10.3f} {times['finish']:8.3f} {total:8.3f}",
                flush=True,
            )
        missed |= total > TARGET_MS
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if missed or options.profile:
        profile = cProfile.Profile()
        with tempfile.TemporaryDirectory(dir=options.dir) as folder:
            measure(Path(folder), options.sizes[0], options.batches, profile, server)
        pstats.Stats(profile).sort_stats("cumulative").print_stats(30)
    if missed:
        print(f"more than {TARGET_MS} ms a film")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
