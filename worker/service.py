"""Put the parts together: an open database, a loaded bundle, decoder children, the loop."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from schema.bundle import BundleError
from schema.database import Database, is_busy
from schema.tables import job
from worker.devices import Device, choose_devices, find_gpus, run_devices
from worker.errors import CarinaError
from worker.film.pool import DecoderPool
from worker.inference import registry
from worker.inference.bundle_files import check_settings
from worker.inference.bundles import load_bundle
from worker.inference.engines.backends import BACKENDS
from worker.inference.swap import Opened, SwappingEngines, reason_of
from worker.intake.sources import resolve
from worker.monitor.prometheus import serving_metrics
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
        The database is of another version, or was upgraded meanwhile and refused what was asked.
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
    except DBAPIError as error:
        # Upgraded under a running command, a database says so by refusing what it took before.
        if not any_version and not is_busy(error):
            database.require_current()
        raise
    finally:
        database.close()


def open_bundle(settings: Settings, database: Database, registered: registry.RegisteredBundle) -> Opened:
    """A bundle, loaded and warm, with decoder children of its own.

    Raises
    ------
    schema.bundle.BundleError
        It cannot be loaded on this machine.
    """
    with ExitStack() as opened:
        bundle = load_bundle(
            registered.directory,
            home=settings.home,
            backend=settings.backend,
            precision=settings.precision,
            build=settings.engine_build,
        )
        opened.callback(bundle.close)
        check_settings(bundle.manifest)
        registry.record_engine(database, registered.id, bundle.engine_description, bundle.parity)
        pool = DecoderPool(
            bundle.plan,
            size=settings.decoder_count,
            memory_bytes=settings.decode_memory,
            timeout_seconds=settings.decode_timeout,
        )
        opened.callback(pool.close)
        pipeline = Pipeline(
            bundle,
            registered.id,
            pool,
            partial(resolve, settings),
            decoders=settings.decoder_count,
            engine_batch=settings.engine_batch,
        )
        opened.callback(pipeline.close)
        return Opened(registered.key, str(bundle.engine_description["device"]), pipeline, opened.pop_all().close)


def open_first(settings: Settings, database: Database) -> Opened:
    """The bundle in service; the one before it where that cannot be loaded, as a running worker would go on with it.

    Raises
    ------
    schema.bundle.BundleError, worker.errors.FilmError, MemoryError
        Neither can be loaded on this machine: what is wrong with the one in service.
    """
    try:
        return open_bundle(settings, database, registry.champion(database, settings))
    except DBAPIError:
        raise
    except Exception as error:
        before = registry.previous(database, settings)
        if before is None:
            raise
        log.error("The bundle in service cannot be loaded here, %s serves instead. %s", before.key, reason_of(error))
        try:
            return open_bundle(settings, database, before)
        except BundleError:
            raise error from None


def open_by_id(settings: Settings, database: Database, bundle_id: int) -> Opened:
    """A known bundle by its row, loaded and warm; raises as :func:`open_bundle` does."""
    return open_bundle(settings, database, registry.registered_bundle(database, settings, bundle_id))


def run_worker(settings: Settings, *, name: str | None, until_idle: bool) -> None:
    """Claim and process batches until stopped (SIGTERM, SIGINT) or, on request, until nothing is ready."""
    stop = threading.Event()
    with (
        open_database(settings) as database,
        # From the start: a database that falls silent must not hold up a worker for ever.
        Watchdog(settings.stall_seconds).over(database),
        announcing(settings, database) as announce,
        ExitStack() as opened,
    ):
        first = open_first(settings, database)
        opened.callback(first.close)
        worker = _register(database, settings, name, first)
        engines = SwappingEngines(
            database,
            first,
            partial(open_by_id, settings, database),
            worker=worker,
            shadow=_does_shadow_jobs(settings),
        )
        opened.pop_all()
        opened.callback(engines.close)
        metrics = opened.enter_context(
            serving_metrics(settings, database, worker.name, partial(_what_computes, engines))
        )
        loop = WorkerLoop(
            settings,
            database,
            worker,
            engines,
            solo_command=SOLO_COMMAND,
            announce=announce,
            observe=metrics.observe,
        )
        with consuming(settings, loop.run_batch, name=worker.name, stop=stop) as end, stop_on_signals(end):
            log.info("worker %s ready: bundle %s", worker.name, engines.serving)
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
    if settings.metrics_port:
        devices = tuple(
            replace(
                device, environment={**device.environment, "CARINA_METRICS_PORT": str(settings.metrics_port + place)}
            )
            for place, device in enumerate(devices)
        )
    prefix = name or socket.gethostname()

    verbose = ["--verbose"] if log.isEnabledFor(logging.INFO) else []

    def command(device: Device) -> list[str]:
        worker = ["worker", "--with-parent", "--name", f"{prefix}-{device.name}", *arguments]
        return [sys.executable, "-m", "worker.cli", *verbose, *worker]

    stop = threading.Event()
    with stop_on_signals(stop.set):
        run_devices(devices, command, stop)


def run_suspect(settings: Settings, lease_id: str) -> None:
    """Process the one job of ``lease_id``, with the bundle it is bound to: the disposable child of a worker."""
    # Its parent works with this database: an upgrade meanwhile must not count against the film.
    with open_database(settings, any_version=True) as database, ExitStack() as closing:
        with database.read() as connection:
            bound = connection.execute(select(job.c.bundle_id).where(job.c.lease_id == lease_id)).first()
        if bound is None:
            return
        # A file that is only compared with others is bound to no bundle.
        to = bound.bundle_id
        opened = open_first(settings, database) if to is None else open_by_id(settings, database, to)
        closing.callback(opened.close)
        run_solo(settings, database, opened.processor, lease_id)


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


def _what_computes(engines: SwappingEngines) -> dict[str, str]:
    """Bundle and engine in service, as labels of a metric."""
    with engines.hold() as processor:
        found = processor.bundle.engine_description if isinstance(processor, Pipeline) else {}
        about = {name: str(found.get(name, "")) for name in ("backend", "backend_version", "device", "precision")}
        return {"bundle": engines.serving, **about}


def _does_shadow_jobs(settings: Settings) -> bool:
    if settings.shadow not in ("auto", "never"):
        raise CarinaError(f"CARINA_SHADOW must be auto or never, not {settings.shadow!r}.")
    return settings.shadow == "auto"


def _register(database: Database, settings: Settings, name: str | None, first: Opened) -> WorkerIdentity:
    candidates = iter([name]) if name else default_worker_names()
    refused: CarinaError | None = None
    for candidate in candidates:
        try:
            return register_worker(database, settings, candidate, first.device, bundle_id=first.bundle_id)
        except CarinaError as error:
            refused = error
    assert refused is not None
    raise refused
