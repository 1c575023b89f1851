"""How do films come from an archive that one has to ask?

Studies are searched by accession number or by day (QIDO-RS), and their films fetched one by one
(WADO-RS) into the spool, safe on the disk before they are registered. What is registered already is
not fetched again, so an interrupted pull is simply run again. The archive is asked politely: only in
certain hours, and not more often than it is said to bear; when it is away, that is waited out.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from schema.database import Database
from schema.keys import uid_key
from schema.tables import Lane
from worker.errors import CarinaError
from worker.intake.folders import FoundFile
from worker.intake.headers import HeaderReader
from worker.intake.listener.spool import Spool
from worker.intake.lookups import known_instances
from worker.intake.pull_selection import Hours, Selection
from worker.intake.register import Counts, Registrar
from worker.intake.rules import load_rules
from worker.intake.scan import close_submission, open_submission
from worker.peers.configuration import WebPeer
from worker.peers.dicomweb import Attributes, DicomWeb, text_of
from worker.peers.trouble import PeerError, Whose
from worker.queue.outcomes import SourceReference
from worker.queue.patience import Patience, Value
from worker.queue.watermarks import Room
from worker.settings import Settings, site_key

log = logging.getLogger(__name__)

#: Which series are looked into unless told otherwise.
MODALITIES = ("CR", "DX")
#: Films registered in one transaction: few, so that workers need not wait for them.
CHUNK = 16
#: How often one film is asked for before it is left to the next pull.
ATTEMPTS = 3
_FIRST_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 600.0
_LONGEST_SLEEP_SECONDS = 60.0

_STUDY, _SERIES, _INSTANCE = "0020000D", "0020000E", "00080018"
_MODALITY = "00080060"


@dataclass
class PullReport:
    """What a pull did, so far or in the end.

    ``searched`` of ``searches`` searches are done. Every film found is in one of ``known`` (registered
    before), ``pulled`` and ``failed`` (by code). ``empty`` counts searches without a film. ``counts`` is
    what registration made of the pulled ones. ``waiting`` is what nothing happens for just now, or "".
    """

    searches: int
    searched: int = 0
    studies: int = 0
    empty: int = 0
    known: int = 0
    pulled: int = 0
    bytes: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    counts: Counts = field(default_factory=Counts)
    submission_id: int | None = None
    waiting: str = ""

    @property
    def complete(self) -> bool:
        """Whether every search was done."""
        return self.searched == self.searches

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "submission": self.submission_id,
            "complete": self.complete,
            "searches": self.searches,
            "searched": self.searched,
            "empty": self.empty,
            "studies": self.studies,
            "known": self.known,
            "pulled": self.pulled,
            "bytes": self.bytes,
            "failed": dict(self.failed),
            "registered": self.counts.registered,
            "ineligible": dict(self.counts.ineligible),
            "rejected": dict(self.counts.rejected),
        }


@dataclass(frozen=True)
class _Found:
    """One film in the archive."""

    study: str
    series: str
    instance: str


class _StoppedError(Exception):
    """``stop`` was set."""


class Pull:
    """Pulls films from one archive.

    Parameters
    ----------
    modalities
        Of the series that are looked into.
    hours
        Only then is the archive asked; None for always.
    per_minute
        So many films at most; None for no limit.
    progress
        Called when something has changed.
    announce
        Called after each commit with the number of films that became ready.
    now
        This machine's local time.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        peer: WebPeer,
        *,
        lane: str = Lane.ARCHIVE,
        modalities: Collection[str] = MODALITIES,
        hours: Hours | None = None,
        per_minute: float | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[PullReport], None] = lambda report: None,
        announce: Callable[[int], object] = lambda films: None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._database = database
        self._settings = settings
        self._peer = peer
        self._lane = lane
        self._modalities = modalities
        self._hours = hours
        self._pause = 0.0 if per_minute is None else 60.0 / per_minute
        self._stop = stop or threading.Event()
        self._progress = progress
        self._announce = announce
        self._now = now
        self._spool = Spool(settings)
        self._room = Room(database, settings)
        self._rules = load_rules(settings)
        self._site_key = site_key(settings)
        self._patience = Patience(wait=self._stop.wait)
        self._next_film = 0.0
        self._answered = False

    def run(self, selection: Selection) -> PullReport:
        """Pull what ``selection`` names and is not registered yet; returns early if ``stop`` is set.

        Raises
        ------
        worker.peers.trouble.PeerError
            The archive cannot be used: it never answered, or does not let us in.
        CarinaError
            Another pull is at work, or the spool cannot be used.
        """
        self.report = report = PullReport(len(selection))
        try:
            with self._scratch() as scratch, DicomWeb(self._peer) as web, HeaderReader() as reader:
                for attribute, tag, value in selection.searches():
                    self._search(web, reader, scratch, {attribute: value}, tag)
                    report.searched += 1
                    self._progress(report)
        except _StoppedError:
            pass
        if report.submission_id is not None and report.complete:
            close_submission(self._database, report.submission_id)
        return report

    def _search(self, web: DicomWeb, reader: HeaderReader, scratch: Path, matching: dict[str, str], tag: str) -> None:
        """Pull the films of one search."""
        (value,) = matching.values()
        films = 0
        try:
            for study in self._ask(lambda: list(web.search("studies", **matching))):
                # Who does not know the attribute answers with everything there is.
                if text_of(study, tag) not in ("", value) or not text_of(study, _STUDY):
                    continue
                self.report.studies += 1
                found = list(self._films_of(web, text_of(study, _STUDY)))
                films += len(found)
                for start in range(0, len(found), CHUNK):
                    self._pull(web, reader, scratch, found[start : start + CHUNK])
        except PeerError as trouble:
            self._count_failure(trouble)
        else:
            self.report.empty += films == 0

    def _films_of(self, web: DicomWeb, study: str) -> Iterator[_Found]:
        for series in self._ask(lambda: list(web.search("studies", study, "series"))):
            if text_of(series, _MODALITY) not in self._modalities:
                continue
            path = ("studies", study, "series", text_of(series, _SERIES), "instances")
            found = self._ask(partial(_all, web, path))
            yield from (_Found(study, path[3], uid) for item in found if (uid := text_of(item, _INSTANCE)))

    def _pull(self, web: DicomWeb, reader: HeaderReader, scratch: Path, found: Sequence[_Found]) -> None:
        """Pull those of ``found`` that are not registered, and register them."""
        keys = {film: uid_key(self._site_key, film.instance) for film in found}
        known = self._until_done(lambda: self._known(keys.values()))
        new = [film for film, key in keys.items() if key not in known]
        self.report.known += len(found) - len(new)
        kept: list[SourceReference] = []
        try:
            for film in new:
                self._wait_for_room()
                self._sleep(self._next_film - time.monotonic())
                self._next_film = time.monotonic() + self._pause
                source = self._fetch(web, scratch / "film.part", film)
                if source is not None:
                    kept.append(source)
        finally:
            # Also when told to stop: what is on the disk is registered.
            self._register(reader, kept)

    def _fetch(self, web: DicomWeb, file: Path, film: _Found) -> SourceReference | None:
        """Bring one film into the spool; None if it cannot be had."""
        try:
            with file.open("wb") as out:
                size = self._ask(lambda: _from_start(web, film, out))
            source = self._spool.keep(file)
        except PeerError as trouble:
            self._count_failure(trouble)
            return None
        except OSError as error:
            raise CarinaError(
                f"The spool cannot be written: {error.strerror}. Free space, then run the same command again."
            ) from None
        self.report.pulled += 1
        self.report.bytes += size
        self._progress(self.report)
        return source

    def _count_failure(self, trouble: PeerError) -> None:
        """Go on without a film, or without a search; what is wrong with the archive itself ends the pull."""
        if trouble.whose is Whose.PEER or not self._answered:
            raise trouble
        self.report.failed[trouble.code] += 1
        log.warning("something cannot be had from the archive: %s", trouble)

    def _register(self, reader: HeaderReader, kept: Sequence[SourceReference]) -> None:
        if not kept:
            return
        folder = self._settings.root_folders["spool"]
        examined = reader.read([FoundFile(str(folder / source.path), source, 0) for source in kept])
        counts = self._until_done(lambda: self._registrar().register(examined))
        self._announce(counts.work)
        self.report.counts.add(counts)
        self._progress(self.report)

    def _registrar(self) -> Registrar:
        if self.report.submission_id is None:
            self.report.submission_id = open_submission(self._database, self._lane)
        return Registrar(self._database, self._site_key, self.report.submission_id, self._lane, self._rules)

    def _known(self, keys: Collection[str]) -> set[str]:
        with self._database.read() as connection:
            return set(known_instances(connection, list(keys)))

    # -- waiting ----------------------------------------------------------------------

    def _ask(self, operation: Callable[[], Value]) -> Value:
        """Ask the archive, in its hours; one that is away is waited for, other passing trouble borne a few times.

        An archive that never answered is a mistake to be told at once.
        """
        seconds, attempts = _FIRST_WAIT_SECONDS, 0
        while True:
            self._wait_for_hours()
            try:
                value = operation()
            except PeerError as trouble:
                attempts += trouble.whose is Whose.PASSING
                away = trouble.code in ("UNREACHABLE", "OUT_OF_RESOURCES")
                borne = away or (trouble.whose is Whose.PASSING and attempts < ATTEMPTS)
                if not (self._answered and borne):
                    raise
                self._say(f"for the archive ({trouble.code})")
            else:
                self._answered = True
                self._say("")
                return value
            self._sleep(seconds)
            seconds = min(2 * seconds, _LONGEST_WAIT_SECONDS)

    def _wait_for_hours(self) -> None:
        while self._hours is not None and (seconds := self._hours.seconds_until_open(self._now())):
            self._say(f"for {self._hours.begin:%H:%M}, when its hours begin")
            # A clock may be set meanwhile.
            self._sleep(min(seconds, _LONGEST_SLEEP_SECONDS))

    def _wait_for_room(self) -> None:
        def wait() -> bool:
            return self._room.wait(self._stop, poll_seconds=self._settings.poll_seconds, say=self._say)

        if not self._until_done(wait):
            raise _StoppedError
        self._say("")

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(max(0.0, seconds)):
            raise _StoppedError

    def _until_done(self, operation: Callable[[], Value]) -> Value:
        return self._patience.until_done(operation, give_up=self._stop.is_set)

    def _say(self, reason: str) -> None:
        """Note why nothing happens just now, and say each new reason once."""
        if reason != self.report.waiting:
            self.report.waiting = reason
            if reason:
                log.warning("the pull waits: %s", reason)
            self._progress(self.report)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder for the film in hand, on the spool's file system; one pull at a time."""
        folder = self._settings.spool / "pulling"
        folder.mkdir(mode=0o700, exist_ok=True)
        with (self._settings.spool / "pull.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CarinaError("Another pull uses this home folder. Wait for it, or stop it.") from None
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _from_start(web: DicomWeb, film: _Found, out: Any) -> int:
    out.seek(0)
    out.truncate()
    return web.retrieve(film.study, film.series, film.instance, out)


def _all(web: DicomWeb, path: tuple[str, ...]) -> list[Attributes]:
    return list(web.search(*path))
