"""How long do the views take when a million films are through?

    python benchmarks/views.py                       # SQLite, 100,000 films
    python benchmarks/views.py --postgresql          # a PostgreSQL server of its own, 1,000,000 films
    python benchmarks/views.py --postgresql --films 100000 --nights 37   # a tenth, nights as long as in the whole

The database makes the films itself: one year of nights (``--nights``), two bundles, three stations, all age bands, ten
scores, seven regions and every fourth film with a flag; 1 of 200 failed, 1 of 50 is ineligible, and as many films as
two nights have wait. Of the last night nothing is counted yet (``schema/daily.py``), so its films are counted with each
question.

Each view is asked what people ask it: those with a row per film for last night's or for one film, the others for all
they know or for the last 30 days. Printed are the rows, the median of five times (what passes, and the processor time
of this process and of the database's session, which other programs do not lengthen), the indexes that the database says
it uses, and the large tables that it reads from end to end, if any. PostgreSQL uses one process for a question.
Targets: 200 ms on PostgreSQL, 1 s on SQLite.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ledger import own_server
from sqlalchemy import Connection, text

from schema.daily import count_days
from schema.database import Database
from schema.findings import Finding
from schema.regions import HOLSTE_REGIONS
from worker.monitor.drift_nights import look_at_drift

TARGET_MS = {"sqlite": 1000.0, "postgresql": 200.0}
FILMS = {"sqlite": 100_000, "postgresql": 1_000_000}
#: As stored masks are: what is read beside them is spread over as many pages.
MASK_BYTES = 1800
#: One process for a question; the cost of a page is that of deploy/postgres/roles.sql.
PLANNER = "-cmax_parallel_workers_per_gather%3D0%20-crandom_page_cost%3D1.1"
LARGE = {"arrival", "attempt", "failure_flag", "finding_score", "instance", "job", "region_measurement", "segmentation"}

QUESTIONS = {
    "all that is known": "SELECT * FROM {view}",
    "the last 30 days": "SELECT * FROM {view} WHERE day >= '{month}'",
    "files of last night": "SELECT * FROM {view} WHERE arrived_at >= '{today}'",
    "results of last night": "SELECT * FROM {view} WHERE finished_at >= '{today}'",
    "one film": "SELECT * FROM {view} WHERE instance_id = 77",
}
ASKED = {
    "overnight_summary": "all that is known",
    "turnaround": "all that is known",
    "backlog": "all that is known",
    "dead_letters": "all that is known",
    "flag_rates": "all that is known",
    "finding_rates": "all that is known",
    "delivery_backlog": "all that is known",
    "film_drift": "the last 30 days",
    "flag_drift": "the last 30 days",
    "score_drift": "the last 30 days",
    "area_drift": "the last 30 days",
    "input_drift": "the last 30 days",
    "view_drift": "the last 30 days",
    "film_state": ("files of last night", "one film"),
    "published_result": ("results of last night", "one film"),
}


def fill(database: Database, films: int, nights: int, today: datetime) -> None:
    """``films`` films in ``nights`` nights of which the last is today's."""
    night = -(-films // nights)
    begin = today - timedelta(days=(films - 1) // night)
    seconds = f"((n - 1) / {night}) * 86400 + ((n - 1) % {night}) * 21600 / {night}"
    sqlite = database.dialect == "sqlite"
    at = (
        f"strftime('%Y-%m-%d %H:%M:%f', '{begin:%Y-%m-%d}', ({seconds}) || ' seconds') || '000'"
        if sqlite
        else f"timestamptz '{begin:%Y-%m-%d}+00' + make_interval(secs => {seconds})"
    )
    blob = f"zeroblob({MASK_BYTES})" if sqlite else f"decode(repeat('00', {MASK_BYTES}), 'hex')"
    state = "CASE WHEN n % 200 = 0 THEN 'failed' WHEN n % 50 = 1 THEN 'ineligible' ELSE 'done' END"
    ended, waiting = f"n <= {films}", f"n > {films}"
    done = f"{ended} AND n % 200 <> 0 AND n % 50 <> 1"
    statements = [
        f"""CREATE TEMPORARY TABLE numbers AS WITH RECURSIVE counted(n) AS
            (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {films + 2 * night}) SELECT n FROM counted""",
        f"INSERT INTO submission (id, created_at, lane, scan_complete, files_seen, not_dicom) VALUES"
        f" (1, '{begin:%Y-%m-%d}', 'icu', true, {films}, 0)",
        *(
            f"INSERT INTO bundle (id, name, version, sha256, added_at, manifest) VALUES"
            f" ({number}, 'site', '{number}', '{number}', '{begin:%Y-%m-%d}', '{{}}')"
            for number in (1, 2)
        ),
        f"INSERT INTO bundle_alias (alias, bundle_id, since) VALUES ('champion', 2, '{begin:%Y-%m-%d}')",
        f"""INSERT INTO instance (id, key, patient_key, study_key, series_key, held_out, created_at, generation,
                sop_class_uid, transfer_syntax_uid, modality, body_part, view_position, station, manufacturer,
                photometric_interpretation, sex, age_days, row_spacing)
            SELECT n, n || '-key', (n / 2) || '-patient', n || '-study', n || '-series', n % 10 = 0, {at}, 1,
                '1.2.840.10008.5.1.4.1.1.1.1', '', 'DX', 'CHEST', CASE WHEN n % 5 = 0 THEN 'PA' ELSE 'AP' END,
                'STATION' || (n % 3), '', 'MONOCHROME2', CASE WHEN n % 2 = 0 THEN 'F' ELSE 'M' END,
                CASE WHEN n % 23 > 0 THEN (n * 37) % 6500 END, 0.139
            FROM numbers""",
        f"""INSERT INTO arrival (id, submission_id, instance_id, arrived_at, state, current, detail)
            SELECT n, 1, n, {at}, 'instance', true, '' FROM numbers""",
        f"""INSERT INTO job (instance_id, arrival_id, kind, state, priority, generation, bundle_id, revision, published,
                attempts, crashes, code, stage, detail, created_at, started_at, finished_at, wait_seconds, run_seconds)
            SELECT n, n, 'process', {state}, CASE WHEN n % 4 = 0 THEN 0 ELSE 10 END, 1,
                CASE WHEN n <= {films} / 2 THEN 1 ELSE 2 END, 1, true, 1, 0,
                CASE WHEN n % 200 = 0 THEN 'DECODE_FAILED' WHEN n % 50 = 1 THEN 'LATERAL' END, 'decode', '',
                {at}, {at}, {at}, (n * 31) % 900, 1.0 + n % 7
            FROM numbers WHERE {ended}""",
        f"""INSERT INTO job (instance_id, arrival_id, kind, state, priority, generation, published, attempts, crashes,
                detail, created_at)
            SELECT n, n, 'process', 'ready', 10, 1, true, 0, 0, '', {at} FROM numbers WHERE {waiting}""",
        f"""INSERT INTO segmentation (job_id, height, width, encoding, mask, resampler_version, film_rows, film_columns,
                flip_columns, flip_rows, repaired_pixels, voi_policy, engine, seconds, grey_mean, grey_spread)
            SELECT n, 256, 256, 'zstd', {blob}, 1, 2000, 1600, false, false, n % 11, '', '{{}}', '{{}}',
                0.3 + (n % 97) / 970.0, 0.2
            FROM numbers WHERE {done}""",
        f"""INSERT INTO region_measurement (job_id, region, area_pixels, area_fraction, components, repaired_pixels)
            SELECT n, region, 1000 + n % 5000, 0.01 + (n % 5000) / 50000.0, 1, 0
            FROM numbers, ({_list("region", [region.name for region in HOLSTE_REGIONS[1:]])}) AS regions
            WHERE {done} ORDER BY n""",
        f"""INSERT INTO finding_score (job_id, finding, probability, spread, threshold, positive, members)
            SELECT n, finding, ((n % 1000 * 7919 + number * 104729) % 1000) / 1000.0, 0.05, 0.8,
                (n % 1000 * 7919 + number * 104729) % 1000 >= 800, '{{}}'
            FROM numbers, ({_list("finding", list(Finding))}) AS findings WHERE {done} ORDER BY n""",
        f"""INSERT INTO failure_flag (job_id, rule, rule_version, source, detail)
            SELECT n, CASE WHEN n % 8 = 0 THEN 'low_confidence' ELSE 'area_out_of_range' END, 1, 'cleaned', ''
            FROM numbers WHERE {done} AND n % 4 = 0""",
        "INSERT INTO delivery_destination (id, name, kind, configuration, added_at, filled_until, failures, detail)"
        f" VALUES (1, 'archive', 'dicom', '{{}}', '{begin:%Y-%m-%d}', '{begin:%Y-%m-%d}', 0, '')",
        f"""INSERT INTO delivery (destination_id, job_id, output, revision, priority, state, attempts, code, detail,
                created_at, sent_at)
            SELECT 1, n, 'report', 1, 10, CASE WHEN n % 500 = 2 THEN 'failed' ELSE 'sent' END, 1,
                CASE WHEN n % 500 = 2 THEN 'REFUSED' END, '', {at}, {at}
            FROM numbers WHERE {done}""",
    ]
    with database.write() as connection:
        for statement in statements:
            _execute(connection, statement)


def _list(name: str, values: list[str]) -> str:
    return " UNION ALL ".join(f"SELECT '{value}' AS {name}, {number} AS number" for number, value in enumerate(values))


def _execute(connection: Connection, statement: str) -> None:
    started = time.perf_counter()
    connection.exec_driver_sql(statement.replace("%", "%%") if connection.dialect.name == "postgresql" else statement)
    passed = time.perf_counter() - started
    if passed > 1:
        print(f"  {passed:6.1f} s  {' '.join(statement.split()[:3])}", flush=True)


def _tidy(database: Database) -> None:
    """What autovacuum does in the hours between nights."""
    if database.dialect == "sqlite":
        with database.write() as connection:
            connection.execute(text("ANALYZE"))
        return
    import psycopg

    url = database.url.set(drivername="postgresql", query={}).render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


def plan(connection: Connection, question: str) -> tuple[list[str], list[str]]:
    """The indexes that a question uses, and the large tables that are read from end to end."""
    if connection.dialect.name == "sqlite":
        lines = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {question}"))]
        used = re.findall(r"USING (?:COVERING )?(?:INDEX (\w+)|(INTEGER PRIMARY KEY))", "\n".join(lines))
        scanned = [line.split()[1] for line in lines if line.startswith("SCAN") and " USING " not in line]
        return _unique(name or "row id" for name, row_id in used), _unique(name for name in scanned if name in LARGE)
    lines = [row[0] for row in connection.execute(text(f"EXPLAIN (ANALYZE, TIMING OFF) {question}"))]
    ran = "\n".join(line for line in lines if "never executed" not in line)
    used = re.findall(r"Index (?:Only )?Scan(?: Backward)? (?:using|on) (\w+)", ran)
    scanned = re.findall(r"Seq Scan on (\w+)", ran)
    return _unique(used), _unique(name for name in scanned if name in LARGE)


def _unique(names: object) -> list[str]:
    return list(dict.fromkeys(names))


class Clock:
    """Processor seconds of this process and, on PostgreSQL, of the session that answers it."""

    def __init__(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        postgresql = connection.dialect.name == "postgresql"
        self._session = Path(f"/proc/{driver.info.backend_pid}/schedstat") if postgresql else None

    def seconds(self) -> float:
        """Used so far."""
        return time.process_time() + (int(self._session.read_text().split()[0]) / 1e9 if self._session else 0.0)


def ask(database: Database, today: datetime) -> float:
    """Print a line for each view; returns the longest median in milliseconds of processor time."""
    words = {"today": f"{today:%Y-%m-%d}", "month": f"{today - timedelta(days=29):%Y-%m-%d}"}
    print(f"{'view':18} {'asked for':22} {'rows':>7} {'ms':>8} {'CPU ms':>8}  indexes; tables read from end to end")
    longest = 0.0
    for view, kinds in ASKED.items():
        for kind in (kinds,) if isinstance(kinds, str) else kinds:
            question = QUESTIONS[kind].format(view=view, **words)
            times, used_times = [], []
            with database.read() as connection:
                clock = Clock(connection)
                for _ in range(6):
                    started, used_before = time.perf_counter(), clock.seconds()
                    rows = len(connection.execute(text(question)).all())
                    times.append(1000.0 * (time.perf_counter() - started))
                    used_times.append(1000.0 * (clock.seconds() - used_before))
                used, scanned = plan(connection, question)
            passed, worked = median(times[1:]), median(used_times[1:])
            longest = max(longest, worked)
            remark = ", ".join(used) + (f"; reads all of {', '.join(scanned)}" if scanned else "")
            print(f"{view:18} {kind:22} {rows:7d} {passed:8.1f} {worked:8.1f}  {remark}", flush=True)
    return longest


def judge(database: Database) -> None:
    """Print how long the judgement of all nights takes: what ``carina drift`` does."""
    with database.read() as connection:
        clock = Clock(connection)
        started, used_before = time.perf_counter(), clock.seconds()
        report = look_at_drift(connection)
        used = clock.seconds() - used_before
    series = len(report.series) if report else 0
    print(f"drift of {series} series judged in {time.perf_counter() - started:.2f} s, {used:.2f} s of processor time")


def main() -> int:
    """Print the table; exit code 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, help="how many films (default: 100,000 on SQLite, else 1,000,000)")
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--postgresql", action="store_true", help="start a PostgreSQL server and measure it")
    parser.add_argument("--dir", type=Path, help="where the SQLite database is made (default: the temporary folder)")
    options = parser.parse_args()
    dialect = "postgresql" if options.postgresql else "sqlite"
    films = options.films or FILMS[dialect]
    server = own_server() if options.postgresql else None
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        database = Database(
            f"{server.fresh_database()}?options={PLANNER}" if server else f"sqlite:///{folder}/carina.sqlite"
        )
        database.upgrade()
        load = os.getloadavg()[0]
        print(
            f"{dialect}, {films:,} films, {os.cpu_count()} cores, load {load:.1f} before; making the films", flush=True
        )
        fill(database, films, options.nights, today)
        _tidy(database)
        started = time.perf_counter()
        days = count_days(database, limit=options.nights)
        print(f"{days} days counted in {time.perf_counter() - started:.1f} s", flush=True)
        _tidy(database)
        longest = ask(database, today)
        judge(database)
        database.close()
        if server:
            server.drop(database.url)
    print(f"longest {longest:.0f} ms of processor time; target {TARGET_MS[dialect]:.0f} ms")
    return int(longest > TARGET_MS[dialect])


if __name__ == "__main__":
    raise SystemExit(main())
