"""One night on one machine: register, keep a worker alive, wait for our own films."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from schema import queries
from schema.database import Database
from worker.errors import CarinaError
from worker.intake.scan import SubmissionReport, Takes, everything, open_submission, submit
from worker.settings import Settings

#: Deaths of the worker process without a single film finished in between before we give up.
DEATHS_WITHOUT_PROGRESS = 5
#: Exit codes with which a worker says that starting it again will not help.
HOPELESS_EXIT_CODES = (1, 2)

#: Looking costs the database time that grows with the submission: at most a tenth of ours.
_LOOK_SECONDS = 0.25
_LOOK_SHARE = 10.0


class Display(Protocol):
    """Shows how far a run is; called a few times a second."""

    def update(self, counts: queries.SubmissionCounts, *, scanning: bool) -> None:
        """Show ``counts`` of this submission."""


@dataclass(frozen=True)
class Night:
    """What a run did: its submission, what was registered and where its films stand now."""

    submission_id: int
    registered: SubmissionReport
    counts: queries.SubmissionCounts
    seconds: float
    interrupted: bool


class WorkerProcess:
    """A worker in its own process; started again when it dies."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._deaths = 0
        self._finished_at_death = -1
        self._process = self._start()

    def keep_alive(self, finished: int) -> None:
        """Start the worker again if it died; ``finished`` counts the films that are through.

        Raises
        ------
        CarinaError
            The worker cannot start, or dies again and again without finishing a film.
        """
        code = self._process.poll()
        if code is None:
            return
        if code in HOPELESS_EXIT_CODES:
            raise CarinaError("The worker could not start; its own message stands above. Run: carina doctor")
        self._deaths = self._deaths + 1 if finished == self._finished_at_death else 1
        self._finished_at_death = finished
        if self._deaths > DEATHS_WITHOUT_PROGRESS:
            raise CarinaError(
                f"The worker died {self._deaths} times without finishing a film. Nothing is lost. Run: carina doctor"
            )
        self._process = self._start()

    def stop(self) -> None:
        """Let the worker finish or give back its batch, then end it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: a terminal's Ctrl-C reaches only us, and we stop it in good order.
        # Its standard input is a pipe that closes when this process ends: see die_with_parent.
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)


def run_night(
    settings: Settings,
    database: Database,
    paths: Sequence[Path],
    *,
    lane: str,
    display: Display,
    stop: threading.Event,
    command: Sequence[str] = (sys.executable, "-m", "worker.cli", "worker", "--with-parent"),
    announce: Callable[[int], object] = lambda films: None,
    takes: Takes = everything,
) -> Night:
    """Register ``paths`` and process them with a separate worker until none of them waits.

    Setting ``stop`` ends it early: what was not started stays ready, and running the same
    command again goes on from there. ``announce`` is called after each commit with the number
    of films that became ready. Only files that ``takes`` says are ours are registered.
    """
    started = time.monotonic()
    submission_id = open_submission(database, lane)
    scan = _Scan(
        settings,
        database,
        paths,
        submission_id=submission_id,
        lane=lane,
        stop=stop,
        announce=announce,
        takes=takes,
    )
    worker = WorkerProcess(command)
    try:
        while True:
            scanning = scan.running
            looked_at = time.monotonic()
            with database.read() as connection:
                counts = queries.submission_counts(connection, submission_id)
            display.update(counts, scanning=scanning)
            if stop.is_set() or (not scanning and counts.open == 0):
                break
            worker.keep_alive(counts.finished)
            stop.wait(max(_LOOK_SECONDS, _LOOK_SHARE * (time.monotonic() - looked_at)))
    except BaseException:
        stop.set()
        raise
    finally:
        worker.stop()
        report = scan.result()
    with database.read() as connection:
        counts = queries.submission_counts(connection, submission_id)
    return Night(submission_id, report, counts, time.monotonic() - started, stop.is_set())


class _Scan:
    """Registration in a thread of its own; its exception comes out of ``result()``."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        paths: Sequence[Path],
        *,
        submission_id: int,
        lane: str,
        stop: threading.Event,
        announce: Callable[[int], object],
        takes: Takes,
    ) -> None:
        self._report: SubmissionReport | None = None
        self._error: BaseException | None = None

        def work() -> None:
            try:
                self._report = submit(
                    database,
                    settings,
                    paths,
                    lane=lane,
                    submission_id=submission_id,
                    stop=stop,
                    announce=announce,
                    takes=takes,
                )
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="scan")
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether files are still being registered."""
        return self._thread.is_alive()

    def result(self) -> SubmissionReport:
        """Wait for the end of registration; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report
