"""How does an archive of five million files get into the ledger?

Paths are walked as a stream, what is registered already is skipped without opening it, the
headers of the rest are read, and every chunk is committed by itself: memory stays flat, and
an interrupted submission is simply run again. When too many films wait, or the disk is full,
registration pauses and goes on by itself.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import insert, update

from schema.database import Database
from schema.tables import Lane, submission
from schema.types import database_now
from worker.errors import CODES, CarinaError
from worker.intake.estimate import seconds_per_film
from worker.intake.folders import FoundFile, Item, LeftOut, ScanProblem, scan
from worker.intake.headers import HeaderReader
from worker.intake.lookups import known_arrivals
from worker.intake.preview import Preview
from worker.intake.register import Counts, Examined, Registrar
from worker.intake.rules import load_rules
from worker.intake.sources import Roots
from worker.queue.watermarks import Room
from worker.settings import Settings, site_key

__all__ = ["FoundFile", "LeftOut", "ScanProblem", "SubmissionReport", "everything", "open_submission", "scan", "submit"]

#: Whether a file is ours to register.
Takes = Callable[[Examined], bool]

#: Chunks whose headers are read ahead while an earlier one is committed.
_READ_AHEAD = 1


@dataclass
class SubmissionReport:
    """What a submission registered, so far or in the end.

    ``submission_id`` is None for a dry run. ``counts`` has every file that was looked at in
    exactly one of its fields; ``left_out`` those that were not. ``complete`` says that the
    paths were walked to their end. ``paused`` is why registration waits just now, or "".
    ``seconds_each`` is the expected time for a film, ``estimate_basis`` where it comes from.
    """

    submission_id: int | None
    counts: Counts = field(default_factory=Counts)
    left_out: dict[LeftOut, int] = field(default_factory=dict)
    complete: bool = False
    paused: str = ""
    seconds_each: float = 0.0
    estimate_basis: str = ""

    @property
    def files_seen(self) -> int:
        """Files looked at."""
        return self.counts.files

    @property
    def estimated_hours(self) -> float:
        """Hours the work of this submission will take at the expected speed."""
        return self.counts.work * self.seconds_each / 3600.0

    def lines(self) -> Iterator[tuple[str, int, str]]:
        """What to show: name, number of files, remark."""
        counts = self.counts
        yield "to process", counts.registered, f"about {self.estimated_hours:.1f} h at {self.estimate_basis}"
        if counts.seen_before:
            yield "registered before", counts.seen_before, _remark_on_seen(counts)
        if counts.unverified:
            yield "to verify", counts.unverified, "a film of this UID is there already: their content decides"
        for code, number in sorted(counts.ineligible.items()):
            yield "ineligible", number, f"{code}: {CODES[code].meaning}"
        for code, number in sorted(counts.rejected.items()):
            yield "rejected", number, f"{code}: {CODES[code].meaning} {CODES[code].advice}"
        if counts.not_dicom:
            yield "not DICOM", counts.not_dicom, "ignored"
        for reason, number in self.left_out.items():
            yield "left out", number, reason.value
        if not self.complete:
            yield "interrupted", 0, "run the same command again to go on"

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        counts = self.counts
        return {
            "submission": self.submission_id,
            "complete": self.complete,
            "files_seen": counts.files,
            "registered": counts.registered,
            "seen_before": counts.seen_before,
            "reopened": counts.reopened,
            "failed_before": counts.failed_before,
            "unverified": counts.unverified,
            "ineligible": dict(counts.ineligible),
            "rejected": dict(counts.rejected),
            "not_dicom": counts.not_dicom,
            "left_out": {reason.name.lower(): number for reason, number in self.left_out.items()},
            "bytes": counts.bytes,
            "estimated_hours": round(self.estimated_hours, 2),
            "estimate_basis": self.estimate_basis,
        }


def _remark_on_seen(counts: Counts) -> str:
    remarks = []
    if counts.reopened:
        remarks.append(f"{counts.reopened} to be read anew: there is a new bundle or revision, or other rules")
    if counts.failed_before:
        remarks.append(f"{counts.failed_before} failed and are left alone: carina retry")
    return "; ".join(remarks) or "skipped"


def everything(file: Examined) -> bool:
    """Take every file."""
    return True


def open_submission(database: Database, lane: str) -> int:
    """Begin a submission and return its id."""
    with database.write() as connection:
        added = connection.execute(insert(submission).values(lane=lane))
        assert added.inserted_primary_key is not None
        return int(added.inserted_primary_key[0])


def close_submission(database: Database, submission_id: int) -> None:
    """Note that a submission's paths were walked to their end."""
    with database.write() as connection:
        connection.execute(
            update(submission)
            .where(submission.c.id == submission_id)
            .values(scan_complete=True, scanned_at=database_now())
        )


def submit(
    database: Database,
    settings: Settings,
    paths: Sequence[Path],
    *,
    lane: str = Lane.ARCHIVE,
    dry_run: bool = False,
    progress: Callable[[SubmissionReport], None] = lambda report: None,
    submission_id: int | None = None,
    stop: threading.Event | None = None,
    announce: Callable[[int], object] = lambda films: None,
    takes: Takes = everything,
) -> SubmissionReport:
    """Register the films below ``paths``: files, folders, zip archives; headers only.

    Parameters
    ----------
    lane
        ``"icu"`` films are processed before ``"archive"`` films.
    dry_run
        Look, count and estimate, but write nothing.
    progress
        Called after every chunk and whenever registration pauses or goes on.
    submission_id
        Of a submission begun with :func:`open_submission`; None begins one.
    stop
        Set it to end early, between two chunks.
    announce
        Called after each commit with the number of films that became ready.
    takes
        Whether a file is ours; the others are passed over: :class:`worker.intake.shards.Shard`.

    Raises
    ------
    CarinaError
        A path does not exist or lies under none of the roots, or the site's rules are wrong.
        Nothing is registered.
    """
    stop = stop or threading.Event()
    roots = Roots(settings)
    _require(roots, paths)
    rules = load_rules(settings)
    keys = site_key(settings)
    register: _Register
    if dry_run:
        submission_id, register = None, Preview(database, keys, lane, rules)
    else:
        submission_id = open_submission(database, lane) if submission_id is None else submission_id
        register = Registrar(database, keys, submission_id, lane, rules)
    seconds_each, basis = seconds_per_film(database)
    report = SubmissionReport(submission_id, seconds_each=seconds_each, estimate_basis=basis)
    room = None if dry_run else Room(database, settings)

    def say(reason: str) -> None:
        report.paused = reason
        progress(report)

    with HeaderReader() as reader:
        items = _without_left_out(scan(roots, paths), report)
        for examined in examine_ahead(database, reader, items, settings.scan_chunk):
            if room is not None and not room.wait(stop, poll_seconds=settings.poll_seconds, say=say):
                return report
            report.paused = ""
            counts = register.register([file for file in examined if takes(file)])
            if counts.work and not dry_run:
                announce(counts.work)
            report.counts.add(counts)
            progress(report)
            if stop.is_set():
                return report
    if submission_id is not None:
        close_submission(database, submission_id)
    report.complete = True
    return report


def examine_ahead(
    database: Database, reader: HeaderReader, items: Iterable[FoundFile | ScanProblem], chunk: int
) -> Iterator[list[Examined]]:
    """Chunks of examined files; the headers of the next chunk are read while one is in use.

    What is registered already is passed on unread.
    """
    started: deque[tuple[list[Examined], list[Future[list[Examined]]]]] = deque()
    iterator = iter(items)
    while piece := list(islice(iterator, chunk)):
        started.append(_start(database, reader, piece))
        if len(started) > _READ_AHEAD:
            yield _finished(*started.popleft())
    while started:
        yield _finished(*started.popleft())


class _Register(Protocol):
    def register(self, files: Sequence[Examined]) -> Counts: ...


def _start(
    database: Database, reader: HeaderReader, items: Sequence[FoundFile | ScanProblem]
) -> tuple[list[Examined], list[Future[list[Examined]]]]:
    problems = [Examined(item.source, None, item.code, item.detail) for item in items if isinstance(item, ScanProblem)]
    files = [item for item in items if isinstance(item, FoundFile)]
    with database.read() as connection:
        known = known_arrivals(connection, [file.source for file in files])
    skipped = {source for source, before in known.items() if not before.worth_another_look}
    ready = problems + [Examined(file.source) for file in files if file.source in skipped]
    return ready, reader.start([file for file in files if file.source not in skipped])


def _finished(ready: list[Examined], started: Sequence[Future[list[Examined]]]) -> list[Examined]:
    return ready + [examined for future in started for examined in future.result()]


def _without_left_out(items: Iterable[Item], report: SubmissionReport) -> Iterator[FoundFile | ScanProblem]:
    for item in items:
        if isinstance(item, LeftOut):
            report.left_out[item] = report.left_out.get(item, 0) + 1
        else:
            yield item


def _require(roots: Roots, paths: Sequence[Path]) -> None:
    for number, path in enumerate(paths, start=1):
        place = os.path.normpath(path.absolute())
        if not os.path.lexists(place):
            raise CarinaError(f"Path {number} of {len(paths)} does not exist, or may not be seen by this user.")
        roots.locate(place)
