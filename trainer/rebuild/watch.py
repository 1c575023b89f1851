"""Rebuild by itself: a duty with a schedule, in a process of its own.

The schedule is a row of ``duty``, so it survives restarts. What the duty does takes a moment: it decides, and says
why not, or begins a rebuild; the rebuild itself is done afterwards and, whoever dies over it, gone on with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import or_, select
from sqlalchemy.exc import DBAPIError

from schema.bundle import BundleError
from schema.database import Database, is_busy
from schema.tables import duty
from schema.types import database_now
from trainer.rebuild.ledger import Rebuild, RebuildLedger, last_finished, unfinished
from trainer.rebuild.place import Place, PlaceTakenError, trainers_place
from trainer.rebuild.request import Request
from trainer.rebuild.run import begin, carry_out
from trainer.training.progress import TrainingProgress
from worker.errors import CarinaError, FilmError
from worker.monitor.labels import labels_after
from worker.queue.duties import Duty, do_due_duties, ensure_duties
from worker.service import open_database
from worker.settings import Settings

log = logging.getLogger(__name__)

#: A rebuild over which so many processes died in one stage is not gone on with: the next one begins anew.
MOST_STARTS = 10
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Schedule:
    """When to rebuild: every so many seconds, if at least ``labels`` labels are new since the last finished rebuild."""

    every_seconds: float
    labels: int


class Watcher:
    """Rebuilds on a schedule.

    Parameters
    ----------
    progress
        Is told what is done, and why nothing is.
    """

    def __init__(self, settings: Settings, request: Request, schedule: Schedule, progress: TrainingProgress) -> None:
        self._settings = settings
        self._request = request
        self._schedule = schedule
        self._progress = progress
        self._said = ""

    @property
    def duty_name(self) -> str:
        """The row of ``duty``."""
        return f"rebuild {self._request.recipe.name}"[:_LONGEST_NAME]

    def run(self, wait: Callable[[], bool]) -> None:
        """Look again and again until ``wait``, which waits a while, returns True."""
        self._say(
            f"Rebuilding {self._request.recipe.name} when it is due and {self._schedule.labels} labels are new; "
            "stop with Ctrl-C."
        )
        while True:
            try:
                self.look()
            except DBAPIError as error:
                if not is_busy(error):
                    raise
                self._say(f"The database does not answer ({type(error).__name__}): trying until it does.")
            if wait():
                return

    def look(self) -> None:
        """Do what is due: go on with a rebuild, or begin one, or say why not."""
        with open_database(self._settings) as database:
            if not self._is_due(database):
                return
            try:
                with trainers_place(database, self._settings) as place:
                    self._do(database, place)
            except PlaceTakenError as error:
                self._say(str(error))
            except (CarinaError, BundleError, FilmError) as error:
                # The row says so too; the next one comes when it is due.
                log.error("%s", error)

    def _is_due(self, database: Database) -> bool:
        with database.read() as connection:
            free = or_(duty.c.claimed_until.is_(None), duty.c.claimed_until <= database_now())
            row = connection.execute(
                select((duty.c.due_at <= database_now()).label("due"), free.label("free"), duty.c.every_seconds).where(
                    duty.c.name == self.duty_name
                )
            ).one_or_none()
        if row is None or row.every_seconds != self._schedule.every_seconds or (row.due and row.free):
            return True
        return unfinished(database, self._request) is not None

    def _do(self, database: Database, place: Place) -> None:
        ledger = RebuildLedger(database, place)
        row: Rebuild | None = None

        def decide(database: Database) -> str:
            nonlocal row
            row, why = self._decide(database, ledger)
            return why

        if unfinished(database, self._request) is None:
            task = Duty(self.duty_name, self._schedule.every_seconds, decide)
            ensure_duties(database, [task])
            do_due_duties(database, place.worker, [task])
        else:
            row = begin(database, self._settings, ledger, self._request, fresh=False)
        if row is None:
            return
        if row.starts > MOST_STARTS:
            why = f"{MOST_STARTS} processes died over stage {row.stage}, of too little memory perhaps: see their logs."
            ledger.fail(row, why)
            log.error("rebuild %d is given up: %s", row.id, why)
            return
        carry_out(database, self._settings, ledger, row, self._request, progress=self._progress)

    def _decide(self, database: Database, ledger: RebuildLedger) -> tuple[Rebuild | None, str]:
        """Begin a rebuild, or not; what was decided and why."""
        last = last_finished(database, self._request.recipe.name)
        with database.read() as connection:
            new = labels_after(connection, last.last_label_id if last else 0)
        since = f"since rebuild {last.id} of {last.started_at:%Y-%m-%d}" if last else "and no rebuild yet"
        if new < self._schedule.labels:
            why_not = f"no rebuild: {new} new labels {since}, {self._schedule.labels} are needed"
            self._say(f"{why_not[0].upper()}{why_not[1:]}.")
            return None, why_not
        # Fresh: if the last one failed, other films may be what it lacked.
        row = begin(database, self._settings, ledger, self._request, fresh=True)
        return row, f"rebuild {row.id} begun: {new} new labels {since}"

    def _say(self, sentence: str) -> None:
        """Once, until something else is to be said."""
        if sentence != self._said:
            self._said = sentence
            self._progress.say(sentence)
