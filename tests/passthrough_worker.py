"""A worker without networks for tests that kill it: it writes the full payload for every file.

    python tests/passthrough_worker.py supervise|worker|solo OPTIONS-AS-JSON [LEASE]

What a file says decides what happens to it:

poison     the process that reads it dies of SIGSEGV, whoever it is
brittle    its decoder child is reported dead of SIGABRT
broken     it cannot be decoded
gate PATH  ``PATH.started`` is made, then it waits for ``PATH.go``

With a ``broker_url`` in the settings it takes tickets too. ``CARINA_TEST_CLOCK_SHIFT`` moves
its clock.
"""

# ruff: noqa: E402 - the clock must be moved before anybody looks at it
from __future__ import annotations

import os

from shifted_clock import VARIABLE, shift_clock

shift_clock(float(os.environ.get(VARIABLE, "0")))

import json
import logging
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from ledger_rows import full_result, settings_for

from schema.database import Database, DatabaseVersionError
from worker.errors import CarinaError, FilmError
from worker.queue.ledger import register_worker
from worker.queue.loop import WorkerLoop, run_solo
from worker.queue.outcomes import ClaimedJob, Outcome
from worker.queue.patience import Patience
from worker.queue.solo import die_with_parent
from worker.queue.tasks import consuming
from worker.queue.tickets import announcing
from worker.queue.watchdog import Watchdog


class PassthroughProcessor:
    """Reads the file's words and does what they say."""

    bundle_id = 1

    def __init__(self, seconds_per_film: float) -> None:
        self._seconds = seconds_per_film

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        outcomes = []
        for job in jobs:
            outcomes.append(self._one(job))
            progress()
        return outcomes

    def _one(self, job: ClaimedJob) -> Outcome:
        words = Path("/", job.source.path).read_text().split()
        time.sleep(self._seconds)
        if words[0] == "poison":
            os.kill(os.getpid(), signal.SIGSEGV)
        if words[0] == "brittle":
            return Outcome(job, crash=-signal.SIGABRT)
        if words[0] == "broken":
            return Outcome(job, error=FilmError("DECODE_FAILED"))
        if words[0] == "gate":
            wait_at(Path(words[1]))
        return Outcome(job, result=full_result(job.source.path))


def wait_at(gate: Path) -> None:
    """Say that we are here, and wait until told to go on."""
    gate.with_suffix(".started").touch()
    while not gate.with_suffix(".go").exists():
        time.sleep(0.02)


def command(mode: str, options: dict[str, Any]) -> list[str]:
    """How to start this script."""
    return [sys.executable, str(Path(__file__).resolve()), mode, json.dumps(options)]


def supervise(options: dict[str, Any]) -> None:
    """Start the worker again whenever it dies, until it says that nothing is left."""
    while True:
        # The pipe tells the worker when this process ends, even before it could ask the kernel.
        with subprocess.Popen(command("worker", options), stdin=subprocess.PIPE) as child:
            if child.wait() == 0:
                return


def work(options: dict[str, Any]) -> None:
    """Be a worker until nothing is left to do."""
    settings = settings_for(Path(options["home"]), **options["settings"])
    database = Database(settings.url)
    with Watchdog(settings.stall_seconds).over(database):
        Patience().until_done(database.require_current)
        worker = Patience().until_done(lambda: register_worker(database, settings, options["name"]))
    stop = threading.Event()
    with announcing(settings, database) as announce:
        loop = WorkerLoop(
            settings,
            database,
            worker,
            PassthroughProcessor(options["seconds_per_film"]),
            solo_command=command("solo", options),
            announce=announce,
        )
        with consuming(settings, loop.run_batch, name=worker.name, stop=stop) as end:
            signal.signal(signal.SIGTERM, lambda number, frame: end())
            loop.run(stop, until_idle=not options.get("stay", False))


def solo(options: dict[str, Any], lease_id: str) -> None:
    """Be the disposable child."""
    settings = settings_for(Path(options["home"]), **options["settings"])
    database = Database(settings.url)
    run_solo(settings, database, PassthroughProcessor(options["seconds_per_film"]), lease_id)


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(message)s")
    mode, options = sys.argv[1], json.loads(sys.argv[2])
    if mode == "supervise":
        supervise(options)
    elif mode == "solo":
        solo(options, sys.argv[3])
    else:
        die_with_parent()
        try:
            work(options)
        except (CarinaError, DatabaseVersionError) as error:
            # Its predecessor is dying, but not yet dead; or it is too old for its database.
            print(error, file=sys.stderr)
            time.sleep(0.1)
            return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
