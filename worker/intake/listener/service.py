"""A listener with everything around it: one process, or several that share a port."""

from __future__ import annotations

import logging
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy.exc import DBAPIError

from schema.database import Database
from worker.errors import CarinaError
from worker.intake.listener.gate import Gate
from worker.intake.listener.group_commit import GroupCommit
from worker.intake.listener.policy import read_policy
from worker.intake.listener.retention import delete_expired, register_unrecorded
from worker.intake.listener.server import Listener
from worker.intake.listener.spool import Spool
from worker.intake.listener.storage import Storage
from worker.intake.listener.tally import Tally
from worker.intake.rules import load_rules
from worker.settings import Settings, site_key

log = logging.getLogger(__name__)

_LINE_SECONDS = 60.0
_CARE_SECONDS = 3600.0
_LOOK_SECONDS = 0.2
#: A process that stops finishes what it is storing: see :mod:`worker.intake.listener.server`.
_STOP_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
#: A process that lived so long did not die of its start.
_SETTLED_SECONDS = 60.0

Say = Callable[[str], object]
Announce = Callable[[int], object]


def listen(
    settings: Settings,
    database: Database,
    *,
    stop: threading.Event,
    say: Say,
    announce: Announce,
    command: Sequence[str],
) -> None:
    """Listen until ``stop`` is set: ``CARINA_LISTEN_PROCESSES`` processes on one port.

    Parameters
    ----------
    say
        Told what is listened on, whom it admits, and each minute what came.
    announce
        Called after each commit with the number of films that became ready.
    command
        Starts a further process, which should call :func:`listen_here`.

    Raises
    ------
    CarinaError
        A setting is wrong, the address is taken, or another listener uses this home folder.
    """
    policy = read_policy(settings)
    if settings.listen_processes > 1 and not policy.port:
        raise CarinaError("Several processes need CARINA_LISTEN_PORT: they share it.")
    spool = Spool(settings)
    with spool.ours():
        swept = spool.sweep()
        if swept:
            say(f"{swept} unfinished films of an earlier listener were deleted; their senders send them again.")
        caring = threading.Thread(
            target=_care,
            args=(settings, database, spool, stop),
            kwargs={"say": say, "announce": announce},
            name="care",
            daemon=True,
        )
        caring.start()
        try:
            if settings.listen_processes == 1:
                listen_here(settings, database, stop=stop, say=say, announce=announce)
            else:
                for line in policy.lines():
                    say(line)
                _supervise(settings.listen_processes, command, spool, stop)
        finally:
            stop.set()
            caring.join()


def listen_here(
    settings: Settings,
    database: Database,
    *,
    stop: threading.Event,
    say: Say,
    announce: Announce,
    one_of_several: bool = False,
) -> None:
    """Listen in this process until ``stop`` is set; raises as :func:`listen`.

    Parameters
    ----------
    one_of_several
        Share the port, and leave it to the first process to say what is listened on.
    """
    policy, spool, tally = read_policy(settings), Spool(settings), Tally()
    _allow_many_files()
    gate = Gate(database, settings)
    with (
        spool.scratch() as scratch,
        GroupCommit(database, site_key(settings), load_rules(settings), announce) as commit,
        Listener(
            policy, Storage(spool, commit, gate, tally), gate, tally, scratch, shared_port=one_of_several
        ) as listener,
    ):
        if not one_of_several:
            for line in policy.lines(port=listener.port):
                say(line)
        said_at = time.monotonic()
        while not stop.wait(_LOOK_SECONDS) and commit.outdated is None:
            if time.monotonic() - said_at >= _LINE_SECONDS:
                said_at = time.monotonic()
                _say(tally.line(), say)
    _say(tally.line(), say)
    if commit.outdated is not None:
        raise commit.outdated


def _say(line: str, say: Say) -> None:
    if line:
        say(line)


def _care(
    settings: Settings, database: Database, spool: Spool, stop: threading.Event, *, say: Say, announce: Announce
) -> None:
    """Once: what an earlier listener left unrecorded. Every hour: what may be deleted."""
    recovered = False
    while not stop.is_set():
        try:
            if not recovered:
                found = register_unrecorded(database, settings, spool, stop=stop, announce=announce)
                _say(f"{found} films of an earlier listener were registered." if found else "", say)
                recovered = True
            deleted = delete_expired(database, settings, spool, stop=stop)
            _say(f"{deleted} films were deleted from the spool: see CARINA_LISTEN_KEEP_DAYS." if deleted else "", say)
        except (DBAPIError, OSError) as error:
            log.warning("the spool could not be looked after: %s; tried again later", type(error).__name__)
            stop.wait(_LONGEST_WAIT_SECONDS)
        else:
            stop.wait(_CARE_SECONDS)


def _supervise(count: int, command: Sequence[str], spool: Spool, stop: threading.Event) -> None:
    children = [_Child(command, spool) for _ in range(count)]
    try:
        while not stop.wait(_LOOK_SECONDS):
            for child in children:
                child.look()
    finally:
        for child in children:
            child.process.terminate()
        until = time.monotonic() + _STOP_SECONDS
        for child in children:
            child.end(until - time.monotonic())


class _Child:
    """One of several listener processes; started again when it dies, later and later if it dies at once."""

    def __init__(self, command: Sequence[str], spool: Spool) -> None:
        self._command = list(command)
        self._spool = spool
        self._wait = _FIRST_WAIT_SECONDS
        self._due = float("inf")
        self._start()

    def look(self) -> None:
        """Start it again if it died.

        Raises
        ------
        CarinaError
            It says that starting it again will not help.
        """
        code = self.process.poll()
        if code is None:
            return
        if code in (1, 2):
            raise CarinaError("A listener process could not go on; its own message stands above.")
        now = time.monotonic()
        if self._due == float("inf"):
            self._spool.sweep(self.process.pid)
            self._wait = _FIRST_WAIT_SECONDS if now - self._began > _SETTLED_SECONDS else self._wait * 2
            self._due = now + min(self._wait, _LONGEST_WAIT_SECONDS)
            log.error("a listener process ended with code %d; it is started again", code)
        elif now >= self._due:
            self._start()

    def end(self, seconds: float) -> None:
        """Wait for its end; whoever takes longer is killed."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _start(self) -> None:
        self._due = float("inf")
        self._began = time.monotonic()
        # A terminal's Ctrl-C is meant for us: we stop it in good order. Its input closes when we end.
        self.process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
