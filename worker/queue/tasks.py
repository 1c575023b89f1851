"""What does a worker do with a ticket?

It runs one batch of its own loop, in one of Celery's threads: claim, process, finish, the
same code that runs when nobody sends tickets. What came of the batch is the task's return
value, so Celery's monitoring shows its runtime and outcome.

The consumer of tickets is an addition to the loop, never a condition of it: while there is no
broker it tries to reconnect, and the loop finds its films by looking into the ledger.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from worker.queue.app import SOFT_SHUTDOWN_SECONDS, make_app
from worker.queue.batches import BatchReport
from worker.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)

#: Name of the one task.
BATCH = "carina.batch"
#: Exit code with which Celery's worker says that it failed.
_FAILED = 1
_RESTART_SECONDS = 10.0


class BatchFailedError(Exception):
    """A batch failed as a whole; its films are tried again. What Celery shows of it."""


def register(app: Celery, run_batch: Callable[[], BatchReport] | None = None) -> Any:
    """Define the task on ``app``; without ``run_batch`` it can be sent and watched, but not run."""

    def batch() -> dict[str, Any]:
        if run_batch is None:
            raise BatchFailedError("Tickets are for Carina's own workers. Start them with: carina worker")
        try:
            report = run_batch()
        except Exception as error:
            # The exception's own words may quote values from the database, and Celery sends them round.
            raise BatchFailedError(f"the worker ends: {type(error).__name__}; see its log") from None
        if report.failure:
            raise BatchFailedError(f"{report.claimed} films, tried again later: {report.failure}")
        return report.to_json()

    return app.task(batch, name=BATCH, shared=False)


class TicketConsumer:
    """Takes tickets from the broker in a thread, for as long as the worker runs.

    Parameters
    ----------
    run_batch
        Claims and processes one batch: :meth:`worker.queue.loop.WorkerLoop.run_batch`.
    name
        The worker's name, as the ledger knows it; Celery shows ``carina@NAME``.
    on_shutdown
        Called when somebody stops the worker through Celery (``celery control shutdown``).
    """

    def __init__(
        self,
        settings: Settings,
        run_batch: Callable[[], BatchReport],
        *,
        name: str,
        on_shutdown: Callable[[], object],
    ) -> None:
        self._app = make_app(settings)
        register(self._app, run_batch)
        self._nodename = f"carina@{name}"
        self._on_shutdown = on_shutdown
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tickets", daemon=True)

    def start(self) -> None:
        """Begin to take tickets; returns at once, whether there is a broker or not."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more tickets; batches that are running go on. May be called from a signal handler."""
        from celery.worker import state

        self._stopping.set()
        state.should_stop = 0

    def join(self) -> None:
        """Wait for the end of what :meth:`stop` began, but not for a broker that does not answer."""
        self._thread.join(SOFT_SHUTDOWN_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                exit_code = self._serve()
            except Exception as error:
                log.error("Celery's worker could not start: %s", type(error).__name__)
                exit_code = _FAILED
            if self._stopping.is_set():
                return
            if exit_code != _FAILED:
                self._on_shutdown()
                return
            # Seen with kombu 5.7.0 under a broker that breaks off again and again: a channel that could not
            # be closed is closed once more after its connection forgot the broker's address, and with a
            # ticket not yet acknowledged that is an AttributeError ('NoneType' ... 'hostname', as in kombu
            # issue 582), which Celery takes for unrecoverable. No setting avoids it.
            log.error("Celery's worker ended; it is started again. Meanwhile work is found in the database.")
            self._stopping.wait(_RESTART_SECONDS)

    def _serve(self) -> Any:
        from celery.app import trace
        from celery.worker import state
        from kombu.asynchronous import set_event_loop

        # Left behind by a worker that this process ran before.
        set_event_loop(None)
        state.should_stop = None
        if self._stopping.is_set():
            return 0
        trace.setup_worker_optimizations(self._app, self._nodename)
        # Gossip and mingle only serve workers that need to know of each other.
        worker = self._app.WorkController(hostname=self._nodename, without_gossip=True, without_mingle=True)
        worker.start()
        return worker.exitcode


@contextmanager
def consuming(
    settings: Settings, run_batch: Callable[[], BatchReport], *, name: str, stop: threading.Event
) -> Iterator[Callable[[], None]]:
    """Take tickets during the block, if there is a broker.

    Yields what a signal handler should call: it sets ``stop``, and no more tickets are taken.

    Raises
    ------
    CarinaError
        There is a broker, but Celery is not installed.
    """
    if not settings.broker_url:
        yield stop.set
        return
    consumer = TicketConsumer(settings, run_batch, name=name, on_shutdown=stop.set)

    def end() -> None:
        stop.set()
        consumer.stop()

    consumer.start()
    try:
        yield end
    finally:
        consumer.stop()
        consumer.join()
