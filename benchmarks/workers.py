"""How many films a second do several workers write, and what ends the growth?

    python benchmarks/workers.py                       # PostgreSQL and SQLite, 1, 2, 4 and 8 processes
    python benchmarks/workers.py --postgresql-only --films 4000

Each process is a worker as in the hospital, with a processor that reads nothing and gives every
film the same full payload. Beside it, on the same PostgreSQL in the same run: one Celery message
and one transaction for each film, with the same rows written at the end.

Both servers are started here and flush every commit to the disk. Every process has worked through
a few films when the clock starts; a run ends with its last film, by the database's clock. ``ours``
is the share of the machine's processors that workers, database and broker took, ``busy`` what all
programs on the machine took: where they differ, the machine is not ours alone, and milliseconds of
processor time a film are what can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import psutil
from bulk_rows import register_many
from celery import Celery
from ledger import fsync_ms, own_server
from ledger_rows import add_bundle, fresh_database, full_result, settings_for
from servers import BrokerServer, PostgresqlServer, broker
from sqlalchemy import func, insert, select, update

from schema.database import Database
from schema.tables import JobState, arrival, attempt, instance, job
from schema.types import database_now
from worker import REVISION
from worker.queue.finish import finish
from worker.queue.ledger import WorkerIdentity, claim, register_worker
from worker.queue.loop import WorkerLoop
from worker.queue.outcomes import ClaimedJob, Outcome
from worker.results.write import write_results
from worker.settings import Settings

PROCESSES = (1, 2, 4, 8)
#: Above this share of its time the machine's processors are what ends the growth.
BUSY = 0.85
LIMIT_SECONDS = 120.0
BATCH = 16
#: Films that each process works through before the clock starts.
WARM = 6 * BATCH


class Passthrough:
    """Gives every film the same payload."""

    bundle_id = 1

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        """One outcome for each job."""
        outcomes = [Outcome(item, result=full_result(item.source.path)) for item in jobs]
        progress()
        return outcomes


def worker(options: dict[str, Any]) -> None:
    """Be a worker: say ``ready``, wait for a word, work until nothing is left."""
    settings = settings_for(Path(options["home"]), database_url=options["url"])
    database = Database(options["url"])
    identity = register_worker(database, settings, f"bench-{os.getpid()}")
    warm_up(database, settings, identity)
    loop = WorkerLoop(settings, database, identity, Passthrough(), solo_command=["false"])
    print("ready", flush=True)
    sys.stdin.readline()
    loop.run(threading.Event(), until_idle=True)


def warm_up(database: Database, settings: Settings, identity: WorkerIdentity) -> None:
    """A few batches: statements are compiled and prepared, caches are filled."""
    for _ in range(WARM // BATCH):
        claimed = claim(
            database, identity, bundle_id=1, revision=REVISION, limit=BATCH, lease_seconds=settings.lease_seconds
        )
        assert claimed is not None
        finish(database, claimed, Passthrough().process(claimed.jobs, lambda: None), settings=settings)


# The other way: a message and a transaction for each film.

app = Celery("bench", broker=os.environ.get("BENCH_BROKER_URL", "memory://"))
app.conf.update(task_ignore_result=True, task_serializer="json", broker_connection_retry_on_startup=True)
_opened: list[Database] = []


@app.task(name="one_film")
def one_film(job_id: int) -> None:
    """Process one film and write what came of it, all in one transaction."""
    if not _opened:
        _opened.append(Database(os.environ["BENCH_DATABASE_URL"]))
    with _opened[0].write() as connection:
        film = connection.execute(select(job).where(job.c.id == job_id).with_for_update()).one()
        if film.state != JobState.READY:
            return
        result = full_result(str(film.id))
        write_results(connection, [(job_id, result)])
        hashes = {"content_hash": result.content_hash, "file_hash": result.file_hash}
        connection.execute(update(instance).where(instance.c.id == film.instance_id).values(**hashes))
        connection.execute(update(arrival).where(arrival.c.id == film.arrival_id).values(**hashes))
        connection.execute(insert(attempt).values(job_id=job_id, number=1, outcome="done"))
        connection.execute(
            update(job)
            .where(job.c.id == job_id)
            .values(state=JobState.DONE.value, bundle_id=1, revision=1, finished_at=database_now())
        )


@dataclass(frozen=True)
class Run:
    """What one set of processes did."""

    films: int
    seconds: float
    busy: float
    used: float

    @property
    def rate(self) -> float:
        """Films a second."""
        return self.films / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of processor time a film, ours."""
        return 1000.0 * self.used / self.films

    @property
    def ours(self) -> float:
        """Share of the machine's processors that we took."""
        return self.used / self.seconds / (os.cpu_count() or 1)


@contextmanager
def processes(count: int, command: list[str], **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """``count`` processes of a command, ended on the way out."""
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                    cwd=Path(__file__).parent, env={**os.environ, **environment},
                )
            )  # fmt: skip
            stack.callback(process.kill)
            started.append(process)
        yield started


def prepared(films: int, server: PostgresqlServer | None, folder: Path) -> Database:
    """A fresh ledger with a bundle and so many ready films."""
    database = Database(server.fresh_database()) if server else fresh_database(folder)
    add_bundle(database)
    register_many(database, films)
    return database


def cpu_seconds() -> float:
    """Processor time of this process and of all that it started: workers, database, broker."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            # Sessions of the database that have ended are in the account of its main process.
            total += used.user + used.system + used.children_user + used.children_system
    return total


def until_done(database: Database, films: int, begin: Callable[[], None]) -> Run:
    """Say ``begin`` and wait until all ``films`` are done."""
    finished = select(func.count(), func.max(job.c.finished_at)).where(job.c.state == JobState.DONE.value)
    with database.read() as connection:
        started = connection.scalar(select(database_now()))
        before = connection.execute(finished).one()[0]
    psutil.cpu_percent()
    used = cpu_seconds()
    begin()
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        with database.read() as connection:
            count, last = connection.execute(finished).one()
        if count == films:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"only {count} of {films} films were done in {LIMIT_SECONDS:.0f} s")
        time.sleep(0.1)
    busy = psutil.cpu_percent() / 100.0
    return Run(films - before, (last - started).total_seconds(), busy, cpu_seconds() - used)


def ledger_run(count: int, films: int, server: PostgresqlServer | None) -> Run:
    """``count`` workers on the ledger."""
    with tempfile.TemporaryDirectory() as home:
        films += count * WARM
        database = prepared(films, server, Path(home) / "ledger")
        url = database.url.render_as_string(hide_password=False)
        command = [sys.executable, __file__, "--worker", json.dumps({"home": home, "url": url})]
        with processes(count, command) as started:
            for process in started:
                assert process.stdout is not None and process.stdout.readline() == "ready\n"

            def go() -> None:
                for process in started:
                    assert process.stdin is not None
                    process.stdin.write("go\n")
                    process.stdin.flush()

            run = until_done(database, films, go)
        _forget(database, server)
    return run


def celery_run(count: int, films: int, server: PostgresqlServer, messages: BrokerServer) -> Run:
    """``count`` Celery workers of one process each, and a message for every film."""
    warm = count * WARM // 4
    database = prepared(films + warm, server, Path())
    command = [
        sys.executable, "-m", "celery", "-A", "workers", "worker", "-P", "solo", "-l", "ERROR",
        "--without-gossip", "--without-mingle", "-n", "bench-%i@%h",
    ]  # fmt: skip
    url = database.url.render_as_string(hide_password=False)
    app.conf.broker_url = messages.url
    with ExitStack() as stack:
        for number in range(count):
            numbered = [part.replace("%i", str(number)) for part in command]
            stack.enter_context(processes(1, numbered, BENCH_BROKER_URL=messages.url, BENCH_DATABASE_URL=url))
        deadline = time.monotonic() + LIMIT_SECONDS
        while len(app.control.ping(timeout=0.5)) < count:
            if time.monotonic() > deadline:
                raise SystemExit("the Celery workers do not answer")
        with database.read() as connection:
            numbers = list(connection.scalars(select(job.c.id)))

        def publish(some: Sequence[int]) -> None:
            with app.producer_pool.acquire(block=True) as producer:
                for number in some:
                    one_film.apply_async((number,), producer=producer)

        until_done(database, warm, lambda: publish(numbers[:warm]))
        run = until_done(database, films + warm, lambda: publish(numbers[warm:]))
    _forget(database, server)
    return run


def own_broker() -> BrokerServer:
    """The broker of this process."""
    found = broker()
    assert isinstance(found, BrokerServer), "unset CARINA_TEST_BROKER_URL: the benchmark starts its own"
    return found


def _forget(database: Database, server: PostgresqlServer | None) -> None:
    database.close()
    if server:
        server.drop(database.url)


def limit(run: Run, before: Run | None, flush: float, batch: int, *, sqlite: bool) -> str:
    """What ends the growth, in words; empty while it grows."""
    if before is None or run.rate > 1.5 * before.rate:
        return ""
    if sqlite and run.ours < BUSY:
        return "one writer at a time: SQLite's write lock"
    if run.busy >= BUSY:
        return f"the machine's {os.cpu_count()} cores" + ("" if run.ours >= BUSY else ", which others use too")
    flushing = flush / 1000.0 * run.rate * 3 / batch
    return "flushing commits to the disk" if flushing > 0.5 else "waiting for each other's locks and answers"


def report(title: str, runs: Sequence[tuple[int, Run]], flush: float, batch: int, *, sqlite: bool = False) -> None:
    """A line for each number of processes."""
    print(f"\n{title}\n processes   films/s    x one   CPU ms/film   ours   busy   limit")
    before = None
    for count, run in runs:
        words = limit(run, before, flush, batch, sqlite=sqlite)
        print(
            f"{count:10d} {run.rate:9.0f} {run.rate / runs[0][1].rate:8.2f} {run.cpu_ms:13.2f} "
            f"{run.ours:6.0%} {run.busy:6.0%}   {words}",
            flush=True,
        )
        before = run


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES))
    parser.add_argument("--films", type=int, default=1600, help="films of a run of the ledger")
    parser.add_argument("--celery-films", type=int, default=320, help="films of a run with a message each")
    parser.add_argument("--postgresql-only", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(json.loads(options.worker))
        return 0
    flush = fsync_ms()
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, fsync {flush:.2f} ms")
    server, messages_server = own_server(), own_broker()
    counts = options.processes
    # In turns, so that other work on the machine falls on both.
    ledger, messages = [], []
    for count in counts:
        ledger.append((count, ledger_run(count, options.films, server)))
        messages.append((count, celery_run(count, options.celery_films, server, messages_server)))
    report("PostgreSQL: the ledger, 16 films in a batch", ledger, flush, BATCH)
    report("PostgreSQL: one Celery message and one transaction for each film", messages, flush, 1)
    ratios = [a.rate / b.rate for (_, a), (_, b) in zip(ledger, messages, strict=True)]
    work = [b.cpu_ms / a.cpu_ms for (_, a), (_, b) in zip(ledger, messages, strict=True)]
    print(
        f"\nthe ledger writes {min(ratios):.1f} to {max(ratios):.1f} times as many films a second, "
        f"each with 1/{max(work):.1f} to 1/{min(work):.1f} of the processor time"
    )
    if not options.postgresql_only:
        alone = [(count, ledger_run(count, options.films, None)) for count in counts]
        report("SQLite: the ledger, 16 films in a batch", alone, flush, BATCH, sqlite=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
