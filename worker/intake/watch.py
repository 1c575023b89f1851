"""Which files of a folder are complete, and which may go?

The folder is looked at again and again; no notification service is needed, so shares work
too. A file is taken when its size and times have not changed between two looks at least
``settle_seconds`` apart and its name does not say that it is still being written.

Files stay where they are unless told otherwise. A file that is to be deleted or moved is
touched only once nothing more will be asked of it: its film is done or ineligible, or it
repeats another one. Files of failed films, conflicts, unreadable files, archives and whatever
is not DICOM always stay.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from schema.database import Database, is_busy
from schema.tables import Lane
from worker.errors import CarinaError
from worker.intake.departures import Departure, parse_after, through
from worker.intake.folders import FoundFile, Item, LeftOut, ScanProblem, walk, with_members
from worker.intake.headers import HeaderReader
from worker.intake.register import Registrar
from worker.intake.rules import load_rules
from worker.intake.scan import examine_ahead, open_submission
from worker.intake.sources import Roots
from worker.queue.watermarks import Room
from worker.settings import Settings, site_key

log = logging.getLogger(__name__)

#: Files that wait to settle; more wait for a later look, so that a huge folder needs little memory.
_MAX_UNSETTLED = 50_000
#: The looking itself may take this share of the time at most.
_LOOKING_SHARE = 0.2

#: Size, modification time, and time of the last change of its permissions (ns).
Stamp = tuple[int, int, int]


def _stamp(item: FoundFile | ScanProblem) -> Stamp:
    return item.source.size, item.source.modified_ns, item.changed_ns


@dataclass(frozen=True)
class _Candidate:
    stamp: Stamp
    since: float


class Settling:
    """Remembers what a folder looked like and says which files have settled.

    Parameters
    ----------
    settle_seconds
        A file must look the same for so long.
    now
        A clock in seconds that never goes back.
    """

    def __init__(self, settle_seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._settle_seconds = settle_seconds
        self._now = now
        self._unsettled: dict[str, _Candidate] = {}
        # Of what was taken only a number is kept: eight bytes of a file, not its path.
        self._taken: set[int] = set()

    def look(self, items: Iterable[Item]) -> Iterator[FoundFile | ScanProblem]:
        """Take one look at everything in the folder; yields what has settled since an earlier one.

        What is yielded is asked for again only if it changes: see :meth:`forget`.
        """
        unsettled: dict[str, _Candidate] = {}
        taken: set[int] = set()
        for item in items:
            if isinstance(item, LeftOut) or (isinstance(item, ScanProblem) and item.code == "SOURCE_MISSING"):
                continue
            stamp = _stamp(item)
            mark = hash((item.path, stamp))
            if mark in self._taken:
                taken.add(mark)
                continue
            before = self._unsettled.get(item.path)
            if before is None or before.stamp != stamp:
                if len(unsettled) < _MAX_UNSETTLED:
                    unsettled[item.path] = _Candidate(stamp, self._now())
            elif self._now() - before.since < self._settle_seconds:
                unsettled[item.path] = before
            else:
                taken.add(mark)
                yield item
        self._unsettled, self._taken = unsettled, taken

    def forget(self) -> None:
        """Look at everything afresh: what was taken last could not be registered."""
        self._taken = set()
        self._unsettled = {}


def watch(
    database: Database,
    settings: Settings,
    directory: Path,
    *,
    lane: str = Lane.ICU,
    stop: threading.Event,
    after: str = "leave",
    announce: Callable[[int], object] = lambda films: None,
) -> None:
    """Register files as they appear below ``directory`` until ``stop`` is set.

    What an earlier watch registered is recognised and left alone. Trouble with the database
    is waited out.

    Parameters
    ----------
    after
        What becomes of a file once its film is through: ``"leave"``, ``"delete"`` or
        ``"move:FOLDER"`` (on the same file system, outside the watched folder).
    announce
        Called after each commit with the number of films that became ready.

    Raises
    ------
    CarinaError
        The folder cannot be watched, ``after`` is not one of the three, or the site's rules are wrong.
    """
    folder = os.path.normpath(directory.absolute())
    if not Path(folder).is_dir():
        raise CarinaError("The folder to watch does not exist, or is not a folder.")
    roots = Roots(settings)
    roots.locate(folder)
    departure = parse_after(after, roots, folder)
    _Watch(database, settings, roots, folder, lane=lane, departure=departure, announce=announce).run(stop)


class _Watch:
    def __init__(
        self,
        database: Database,
        settings: Settings,
        roots: Roots,
        folder: str,
        *,
        lane: str,
        departure: Departure | None,
        announce: Callable[[int], object],
    ) -> None:
        self._database = database
        self._settings = settings
        self._roots = roots
        self._folder = folder
        self._departure = departure
        self._announce = announce
        self._settling = Settling(settings.settle_seconds)
        self._room = Room(database, settings)
        self._site_key = site_key(settings)
        self._rules = load_rules(settings)
        self._lane = lane
        self._submission_id: int | None = None

    def run(self, stop: threading.Event) -> None:
        pause = self._settings.poll_seconds
        while not stop.wait(0.0):
            started = time.monotonic()
            try:
                self._look(stop)
                if self._departure is not None:
                    self._let_go(self._departure)
            except DBAPIError as error:
                if not is_busy(error):
                    raise
                log.warning("the database does not answer: the watched folder is looked at again later")
                self._settling.forget()
            took = time.monotonic() - started
            stop.wait(max(pause, took * (1.0 - _LOOKING_SHARE) / _LOOKING_SHARE))

    def _look(self, stop: threading.Event) -> None:
        settled = self._settling.look(walk(self._roots, self._folder))
        with HeaderReader() as reader:
            for examined in examine_ahead(self._database, reader, with_members(settled), self._settings.scan_chunk):
                # What an earlier watch registered comes back unread: a new start does not submit it again.
                new = [file for file in examined if file.header is not None or file.code is not None]
                if not self._room.wait(stop, poll_seconds=self._settings.poll_seconds, say=_say):
                    return
                if new:
                    counts = self._registrar().register(new)
                    self._announce(counts.work)
                    log.info("%d files registered, %d of them to process", counts.files, counts.work)

    def _registrar(self) -> Registrar:
        if self._submission_id is None:
            self._submission_id = open_submission(self._database, self._lane)
        return Registrar(self._database, self._site_key, self._submission_id, self._lane, self._rules)

    def _let_go(self, departure: Departure) -> None:
        files = (item for item in walk(self._roots, self._folder) if isinstance(item, FoundFile))
        while piece := list(islice(files, self._settings.scan_chunk)):
            with self._database.read() as connection:
                may_go = through(connection, [file.source for file in piece])
            for file in piece:
                if file.source in may_go:
                    departure.let_go(self._database, self._folder, file, may_go[file.source])


def _say(reason: str) -> None:
    log.warning("registration pauses: %s", reason)
