"""What does a worker tell Prometheus? ``GET /metrics`` in the text format 0.0.4, from the standard library.

What this process did is counted here; what waits is asked of the database when somebody asks. Labels are lanes, states,
rules and the engine: never a film, a patient or a station.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from schema import queries
from schema.database import Database
from schema.tables import alert
from worker import __version__
from worker.monitor.status import free_bytes
from worker.queue.batches import BatchReport
from worker.settings import Settings

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Upper ends of the histogram's buckets, in seconds.
BUCKETS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_STATES = ("done", "failed", "ineligible", "delayed")
_TIMEOUT_SECONDS = 10.0

Labels = dict[str, str]
Sample = tuple[str, Labels, float]


class Metrics:
    """What a worker did, counted by its batches, and what it knows of the queue.

    Parameters
    ----------
    engine
        What computes now, as labels: bundle, backend, device, precision.
    """

    def __init__(self, settings: Settings, database: Database, worker: str, engine: Callable[[], Labels]) -> None:
        self._settings, self._database, self._worker, self._engine = settings, database, worker, engine
        self._lock = threading.Lock()
        self._films: Counter[str] = Counter()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0

    def observe(self, report: BatchReport, seconds: float) -> None:
        """Count a batch; called by several threads."""
        with self._lock:
            self._films.update(report.states)
            self._buckets[bisect_left(BUCKETS, seconds)] += 1
            self._seconds += seconds

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        return "".join(
            f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n" + "".join(map(_line, samples))
            for name, kind, meaning, samples in [*self._own(), *self._of_queue()]
        )

    def _own(self) -> Iterator[tuple[str, str, str, list[Sample]]]:
        with self._lock:
            films, buckets, seconds = Counter(self._films), list(self._buckets), self._seconds
        name = "carina_films_total"
        counted = [(name, {"state": state}, float(films[state])) for state in _STATES]
        yield name, "counter", "Films this worker ended or put off, since it started.", counted
        name, total, histogram = "carina_batch_seconds", 0, list[Sample]()
        for end, count in zip((*map(str, BUCKETS), "+Inf"), buckets, strict=True):
            total += count
            histogram.append((f"{name}_bucket", {"le": end}, float(total)))
        histogram += [(f"{name}_sum", {}, seconds), (f"{name}_count", {}, float(total))]
        yield name, "histogram", "Seconds from claiming a batch to its results in the database.", histogram
        name = "carina_engine_info"
        yield name, "gauge", "What computes: always 1.", [(name, self._engine(), 1.0)]
        name = "carina_worker_info"
        about = {"worker": self._worker, "version": __version__}
        yield name, "gauge", "Which worker this is: always 1.", [(name, about, 1.0)]
        name = "carina_home_free_bytes"
        free = float(free_bytes(self._settings.home))
        yield name, "gauge", "Free space on the disk of the home folder.", [(name, {}, free)]

    def _of_queue(self) -> Iterator[tuple[str, str, str, list[Sample]]]:
        found: dict[str, queries.LaneBacklog] | None = None
        alerts: dict[str, int] = {}
        with suppress(SQLAlchemyError), self._database.read() as connection:
            open_alerts = select(alert.c.rule, func.count()).where(alert.c.closed_at.is_(None)).group_by(alert.c.rule)
            alerts = {row[0]: row[1] for row in connection.execute(open_alerts)}
            found = queries.backlog(connection)
        name = "carina_database_up"
        yield name, "gauge", "Whether the database answers.", [(name, {}, float(found is not None))]
        if found is None:
            return
        name = "carina_queue_films"
        waiting = [
            (name, {"lane": lane, "state": state}, float(getattr(counts, state)))
            for lane, counts in found.items()
            for state in ("ready", "leased", "delayed")
        ]
        yield name, "gauge", "Films and files to verify that are open, of all workers.", waiting
        name = "carina_oldest_ready_seconds"
        oldest = [(name, {"lane": lane}, counts.oldest_ready_seconds or 0.0) for lane, counts in found.items()]
        yield name, "gauge", "How long the oldest ready film has waited; 0 where none is ready.", oldest
        name = "carina_alerts_open"
        counted = [(name, {"rule": rule}, float(count)) for rule, count in sorted(alerts.items())]
        yield name, "gauge", "Open alerts.", counted


@contextmanager
def serving_metrics(
    settings: Settings, database: Database, worker: str, engine: Callable[[], Labels]
) -> Iterator[Metrics]:
    """Count, and answer Prometheus where ``CARINA_METRICS_PORT`` is set.

    A port that cannot be had is said in the log and stops no work.
    """
    metrics = Metrics(settings, database, worker, engine)
    server = _listen(settings, metrics)
    if server is None:
        yield metrics
        return
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A scraper that hangs must not hold up the end of a night.
    block_on_close = False
    # The port is free again at once after a restart.
    allow_reuse_address = True


def _listen(settings: Settings, metrics: Metrics) -> ThreadingHTTPServer | None:
    if not settings.metrics_port:
        return None

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_SECONDS
        server_version = "carina"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = metrics.text().encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a scrape is no news."""

    try:
        server = _Server((settings.metrics_address, settings.metrics_port), Handler)
    except OSError as error:
        log.error(
            "No metrics: port %d cannot be had (%s). Give each worker of a machine a CARINA_METRICS_PORT of its own.",
            settings.metrics_port,
            error.strerror,
        )
        return None
    log.info("metrics at http://%s:%d/metrics", settings.metrics_address, server.server_address[1])
    return server


def _line(sample: Sample) -> str:
    name, labels, value = sample
    return f"{name}{_labels(labels.items())} {value:.10g}\n"


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
