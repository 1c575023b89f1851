"""How quick is the page?

    python benchmarks/serve.py                     # SQLite, 100,000 films
    python benchmarks/serve.py --films 10000 --nights 37    # a tenth, nights as long as in the whole
    python benchmarks/serve.py --postgresql        # a PostgreSQL server of its own

The films are those of benchmarks/views.py. Each address is asked seven times over a real socket; printed are the first
time, when nothing is remembered, the median of the others, and the size. Target: the first screen in 300 ms.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ledger import own_server
from page_server import Browser, serving
from stored_films import MANIFEST
from views import PLANNER, _tidy, fill

from schema.daily import count_days
from schema.database import Database
from schema.tables import bundle
from worker.settings import Settings

FIRST_SCREEN = "/"
TARGET_MS = 300.0
ADDRESSES = (
    FIRST_SCREEN,
    "/?after={half}",
    "/?flag=any",
    "/?flag=low_confidence",
    "/?flag=missing_region",
    "/?finding=pneumonia",
    "/?finding=pneumonia&sort=score",
    "/?state=failed",
    "/?state=ineligible",
    "/?state=rejected",
    "/?station=STATION1&lane=icu",
    "/?station=NONE",
    "/film/{half}",
    "/queue",
    "/failed",
    "/drift",
    "/drift?station=STATION1&days=365",
    "/performance",
)


def ask(browser: Browser, films: int) -> float:
    """Print a line for each address; returns the milliseconds of the slowest first screen."""
    print(f"{'address':38} {'first ms':>9} {'median ms':>10} {'kB':>7}")
    slowest = 0.0
    for pattern in ADDRESSES:
        address = pattern.format(half=films // 2 + 3)
        times = []
        for _ in range(7):
            started = time.perf_counter()
            answer = browser.page(address)
            times.append(1000.0 * (time.perf_counter() - started))
        if address == FIRST_SCREEN:
            slowest = max(times)
        print(f"{address:38} {times[0]:9.1f} {median(times[1:]):10.1f} {len(answer.body) / 1000:7.1f}", flush=True)
    return slowest


def main() -> int:
    """Print the table; exit code 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=100_000)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--postgresql", action="store_true", help="start a PostgreSQL server and use it")
    parser.add_argument("--dir", type=Path, help="where the SQLite database is made (default: the temporary folder)")
    options = parser.parse_args()
    server = own_server() if options.postgresql else None
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        database = Database(
            f"{server.fresh_database()}?options={PLANNER}" if server else f"sqlite:///{folder}/carina.sqlite"
        )
        database.upgrade()
        print(f"{database.dialect}, {options.films:,} films, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        fill(database, options.films, options.nights, today)
        with database.write() as connection:
            connection.execute(bundle.update().values(manifest=MANIFEST))
        _tidy(database)
        count_days(database, limit=options.nights)
        _tidy(database)
        with serving(database, Settings(home=Path(folder) / "home")) as browser:
            slowest = ask(browser, options.films)
        database.close()
        if server:
            server.drop(database.url)
    print(f"first screen {slowest:.0f} ms at most; target {TARGET_MS:.0f} ms")
    return int(slowest > TARGET_MS)


if __name__ == "__main__":
    raise SystemExit(main())
