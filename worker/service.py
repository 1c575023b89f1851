"""Put the parts together: an open database, a loaded bundle, decoder children, the loop."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from schema.database import Database
from worker.devices import Device, choose_devices, find_gpus, run_devices
from worker.errors import CarinaError
from worker.film.pool import DecoderPool
from worker.inference.bundles import load_bundle
from worker.inference.engines.backends import BACKENDS
from worker.inference.registry import champion, record_engine
from worker.intake.sources import resolve
from worker.pipeline import Pipeline
from worker.queue.loop import WorkerLoop, run_solo
from worker.queue.tasks import consuming
from worker.queue.tickets import announcing
from worker.queue.watchdog import Watchdog
from worker.queue.workers import WorkerIdentity, register_worker
from worker.settings import Settings, site_key

log = logging.getLogger(__name__)

SOLO_COMMAND = (sys.executable, "-m", "worker.cli", "solo")


@contextmanager
def open_database(settings: Settings, *, any_version: bool = False) -> Iterator[Database]:
    """The database of these settings, at the right version unless told that it does not matter.

    A new SQLite file in the home folder is made at once, with the site key; any other
    database must have been prepared with ``carina db upgrade``.

    Raises
    ------
    schema.database.DatabaseVersionError
        The database is of another version.
    worker.errors.CarinaError
        The home folder cannot be made or the site key cannot be read.
    """
    try:
        site_key(settings)
    except OSError as error:
        raise CarinaError(
            f"The home folder {settings.home} cannot be used: {error.strerror}. Set CARINA_HOME to another folder."
        ) from None
    database = Database(settings.url)
    try:
        if not settings.database_url and database.version() is None:
            database.upgrade()
        if not any_version:
            database.require_current()
        yield database
    finally:
        database.close()


@contextmanager
def open_pipeline(settings: Settings, database: Database) -> Iterator[Pipeline]:
    """The champion bundle, loaded and warm, with its decoder children."""
    registered = champion(database, settings)
    bundle = load_bundle(
        registered.directory, home=settings.home, backend=settings.backend, precision=settings.precision
    )
    record_engine(database, registered.id, bundle.engine_description, bundle.parity)
    pool = DecoderPool(
        bundle.plan,
        size=settings.decoder_count,
        memory_bytes=settings.decode_memory,
        timeout_seconds=settings.decode_timeout,
    )
    pipeline = Pipeline(
        bundle,
        registered.id,
        pool,
        partial(resolve, settings),
        decoders=settings.decoder_count,
        engine_batch=settings.engine_batch,
    )
    try:
        yield pipeline
    finally:
        pipeline.close()
        pool.close()
        bundle.close()


def run_worker(settings: Settings, *, name: str | None, until_idle: bool) -> None:
    """Claim and process batches until stopped (SIGTERM, SIGINT) or, on request, until nothing is ready."""
    stop = threading.Event()
    with (
        open_database(settings) as database,
        # From the start: a database that falls silent must not hold up a worker for ever.
        Watchdog(settings.stall_seconds).over(database),
        announcing(settings, database) as announce,
        open_pipeline(settings, database) as pipeline,
    ):
        worker = _register(database, settings, name, pipeline)
        loop = WorkerLoop(settings, database, worker, pipeline, solo_command=SOLO_COMMAND, announce=announce)
        with consuming(settings, loop.run_batch, name=worker.name, stop=stop) as end, stop_on_signals(end):
            log.info("worker %s ready: bundle %s", worker.name, pipeline.bundle.manifest.key)
            loop.run(stop, until_idle=until_idle)


def run_device_workers(settings: Settings, wanted: str, *, name: str | None, arguments: Sequence[str]) -> None:
    """Run one worker process per device until stopped (SIGTERM, SIGINT): ``carina worker --devices``.

    The workers are called NAME-DEVICE, with the host's name for ``name`` if None;
    ``arguments`` are passed on to each.

    Raises
    ------
    CarinaError
        There is no such device, or a worker cannot start.
    """
    devices = choose_devices(wanted, gpus=find_gpus(), backends=BACKENDS, backend=settings.backend)
    if len(devices) > 1 and not settings.decoders:
        share = {"CARINA_DECODERS": str(max(1, settings.decoder_count // len(devices)))}
        devices = tuple(replace(device, environment={**device.environment, **share}) for device in devices)
    prefix = name or socket.gethostname()

    verbose = ["--verbose"] if log.isEnabledFor(logging.INFO) else []

    def command(device: Device) -> list[str]:
        worker = ["worker", "--with-parent", "--name", f"{prefix}-{device.name}", *arguments]
        return [sys.executable, "-m", "worker.cli", *verbose, *worker]

    stop = threading.Event()
    with stop_on_signals(stop.set):
        run_devices(devices, command, stop)


def run_suspect(settings: Settings, lease_id: str) -> None:
    """Process the one job of ``lease_id``: the disposable child of a worker."""
    # Its parent works with this database: an upgrade meanwhile must not count against the film.
    with (
        open_database(settings, any_version=True) as database,
        open_pipeline(settings, database) as pipeline,
    ):
        run_solo(settings, database, pipeline, lease_id)


@contextmanager
def stop_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` at the first SIGTERM or SIGINT; a second one ends the process at once."""

    def handle(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)


def default_worker_names() -> Iterator[str]:
    """``host-1``, ``host-2``, ...: the first one free on this machine is taken."""
    host = socket.gethostname()
    return (f"{host}-{number}" for number in range(1, 65))


def _register(database: Database, settings: Settings, name: str | None, pipeline: Pipeline) -> WorkerIdentity:
    device = str(pipeline.bundle.engine_description["device"])
    candidates = iter([name]) if name else default_worker_names()
    refused: CarinaError | None = None
    for candidate in candidates:
        try:
            return register_worker(database, settings, candidate, device, bundle_id=pipeline.bundle_id)
        except CarinaError as error:
            refused = error
    assert refused is not None
    raise refused
