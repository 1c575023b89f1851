"""How is a film read that may kill whoever reads it?

A suspect is run alone in a disposable child process, while its parent holds the lease. If
the child dies the parent knows which film it was; if the parent dies too nobody is blamed.
The child is started, not forked: a compiled engine does not survive a fork.
"""

from __future__ import annotations

import ctypes
import logging
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from sqlalchemy.exc import DBAPIError

from schema.database import Database, is_busy
from worker.queue.engines import Processor
from worker.queue.finish import finish
from worker.queue.ledger import load_claim
from worker.queue.outcomes import Claim
from worker.queue.patience import Patience, Value
from worker.queue.watchdog import STALLED_EXIT_CODE, Watchdog
from worker.settings import Settings

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.1
_TERMINATE_SECONDS = 10.0
#: Share of the time its parent gives a child that it may wait for the database.
_DATABASE_SHARE = 0.25


def run_solo(settings: Settings, database: Database, processor: Processor, lease_id: str) -> None:
    """Process the one job under ``lease_id`` and write what came of it: the child's side.

    Writes nothing if the lease is gone. Ends this process when its parent dies, and with
    :data:`~worker.queue.watchdog.STALLED_EXIT_CODE` while the parent still waits if the
    database is away or silent: that is no proof against the film.
    """
    die_with_parent()
    limit = settings.stall_seconds * _DATABASE_SHARE
    try:
        with Watchdog(limit).over(database):
            claim = _within(limit, lambda: _load(database, lease_id))
            if claim is not None:
                outcomes = processor.process(claim.jobs, lambda: None)
                _within(limit, lambda: finish(database, claim, outcomes, settings=settings))
    except DBAPIError as error:
        if not is_busy(error):
            raise
        raise SystemExit(STALLED_EXIT_CODE) from None


def _within(seconds: float, operation: Callable[[], Value]) -> Value:
    started = time.monotonic()
    return Patience().until_done(operation, give_up=lambda: time.monotonic() - started > seconds)


def _load(database: Database, lease_id: str) -> Claim | None:
    with database.write() as connection:
        return load_claim(connection, lease_id)


def watch_child(
    command: Sequence[str],
    *,
    alive: Callable[[], None],
    stop: Callable[[], bool],
    limit_seconds: float,
) -> int | None:
    """Start a child and wait for its end: the parent's side.

    Parameters
    ----------
    alive
        Called again and again while the child lives.
    stop
        Whether the child should be ended before its time.
    limit_seconds
        A child that takes longer hangs, and is killed.

    Returns
    -------
    int or None
        Exit code, negative for a signal; None if it was ended on request.

    Raises
    ------
    OSError
        The child could not be started.
    """
    # Its standard input is a pipe that closes when this process ends: see die_with_parent.
    # Its own session, because a terminal's Ctrl-C is meant for us: we end the child in good order.
    with subprocess.Popen(list(command), stdin=subprocess.PIPE, start_new_session=True) as child:
        started = time.monotonic()
        while True:
            try:
                return child.wait(timeout=_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                alive()
            if stop():
                _end(child)
                return None
            if time.monotonic() - started > limit_seconds:
                log.error("a film run alone took longer than %.0f s: its process is ended", limit_seconds)
                child.kill()


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends (Linux only).

    If the parent died before that took effect, its end of our standard input is closed.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    readable, _, _ = select.select([sys.stdin], [], [], 0)
    if readable and not sys.stdin.buffer.read(1):
        raise SystemExit(0)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=_TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
