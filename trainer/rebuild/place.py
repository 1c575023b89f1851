"""One rebuild at a time: who has the trainer's place?

The place is the worker name ``trainer``, which belongs to one live process (:mod:`worker.queue.workers`): a lock on a
file of the home folder, and a row whose bearer gives a sign of life four times a lease. On the bearer's own machine a
dead one is found out at once, elsewhere after a lease of silence. No transaction stays open meanwhile.
"""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from schema.database import Database, is_busy
from schema.tables import rebuild
from schema.tables import worker as worker_table
from schema.types import seconds_since
from trainer.errors import RunError
from worker.errors import CarinaError
from worker.queue.leases import seen
from worker.queue.workers import WorkerIdentity, deregister_worker, register_worker
from worker.settings import Settings

log = logging.getLogger(__name__)

TRAINER = "trainer"


class PlaceTakenError(RunError):
    """A rebuild is running already."""


@dataclass
class Place:
    """The trainer's place, held by this process until it is ``lost`` to another one."""

    worker: WorkerIdentity
    lost: threading.Event = field(default_factory=threading.Event)


@contextmanager
def trainers_place(
    database: Database, settings: Settings, *, on_lost: Callable[[], object] = _thread.interrupt_main
) -> Iterator[Place]:
    """Hold the trainer's place within the block.

    Parameters
    ----------
    on_lost
        Called from another thread when this process was silent for so long that another one took the place; by
        default the main thread gets a KeyboardInterrupt, which leaves the block as a RunError.

    Raises
    ------
    PlaceTakenError
        Another process has it: says what it does, and since when.
    RunError
        The place was lost.
    """
    try:
        worker = register_worker(database, settings, TRAINER)
    except CarinaError:
        raise PlaceTakenError(_who(database)) from None
    place = Place(worker)
    ended = threading.Event()
    sign = threading.Thread(
        target=_give_signs_of_life, args=(database, settings, place, ended, on_lost), name="trainer", daemon=True
    )
    sign.start()
    try:
        yield place
    except KeyboardInterrupt:
        if place.lost.is_set():
            raise RunError(
                "This rebuild was silent for so long that another process has taken it over: this one ends. "
                "carina rebuild --list shows how far it is."
            ) from None
        raise
    finally:
        ended.set()
        sign.join()
        _give_back(database, place)


def _give_signs_of_life(
    database: Database, settings: Settings, place: Place, ended: threading.Event, on_lost: Callable[[], object]
) -> None:
    while not ended.wait(settings.lease_seconds / 4):
        try:
            if seen(database, place.worker.id, place.worker.boot_id):
                continue
        except DBAPIError as error:
            # A database that is away is no reason to stop: the next sign may come through.
            if not is_busy(error):
                log.error("the trainer's sign of life was refused (%s)", type(error).__name__)
            continue
        place.lost.set()
        on_lost()
        return


def _give_back(database: Database, place: Place) -> None:
    try:
        deregister_worker(database, place.worker)
    except DBAPIError:
        # The file lock goes with the process, the row's bearer is silent from now on.
        place.worker.release_name()


def _who(database: Database) -> str:
    """Who has the place and what they do, as a sentence."""
    with database.read() as connection:
        bearer = connection.execute(
            select(
                worker_table.c.host, worker_table.c.process_id, seconds_since(worker_table.c.seen_at).label("silent")
            ).where(worker_table.c.name == TRAINER)
        ).one_or_none()
        running = connection.execute(
            select(rebuild.c.id, rebuild.c.recipe, rebuild.c.stage).where(rebuild.c.state == "running")
        ).one_or_none()
    what = f"Rebuild {running.id} ({running.recipe}, stage {running.stage})" if running else "A rebuild"
    where = f" on {bearer.host}, process {bearer.process_id}" if bearer else ""
    sign = f"; its last sign of life came {max(0, round(bearer.silent))} s ago" if bearer else ""
    return (
        f"{what} is running{where}{sign}. One runs at a time: wait for its end (carina rebuild --list), or stop that "
        "process and give the same command again to go on with what it began."
    )
