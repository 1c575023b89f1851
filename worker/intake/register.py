"""How do files that came become films with work to do?

A chunk of files is one transaction: arrivals, films, jobs and the submission's counters come
together or not at all, so an interrupted scan is simply run again.

=============================  ============================================================
the file                       becomes
=============================  ============================================================
of a new SOP Instance UID      arrival ``instance``, a film, and a job: ready, or at once
                               ineligible if its header says so
of a known SOP Instance UID    arrival ``unverified`` and a job that reads its content;
                               ``rejected`` at once if its header says it is no radiograph
left out by a rule             as above, but its job is ineligible: ``RULE_SKIPPED``
unreadable                     arrival ``rejected`` with code and detail
not DICOM                      counted, nothing else
registered before              seen again: its open job gets the better priority. A film done
                               with another bundle or revision gets a new job. A failed film
                               is left alone: that is for ``carina retry``. A film that a
                               rule left out is asked about anew: the rules may have changed
=============================  ============================================================
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, insert, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from schema.database import Database
from schema.keys import uid_key
from schema.tables import (
    PRIORITY,
    ArrivalState,
    JobKind,
    JobState,
    arrival,
    identity,
    instance,
    instance_identity,
    job,
    submission,
    submission_arrival,
)
from schema.text import storable
from schema.types import database_now
from worker.errors import Stage
from worker.film.reader import FilmHeader
from worker.intake.eligibility import Refusal, refusal
from worker.intake.lookups import KnownArrival, allocate_ids, known_arrivals, known_instances
from worker.intake.resubmission import hurry, hurry_verification, reopen, reopen_skipped
from worker.intake.rows import identity_row, instance_row
from worker.intake.rules import PROCESS_EVERYTHING, RULE_SKIPPED, Candidate, Rules
from worker.queue.outcomes import SourceReference

log = logging.getLogger(__name__)

NOT_DICOM = "NOT_DICOM"


@dataclass(frozen=True, slots=True)
class Examined:
    """A file and what its header said: a ``header``, or the ``code`` of why there is none.

    Neither means that it was not looked into, because it is registered already. ``calling_ae`` is
    the AE title of who sent it, "" for a file that was found.
    """

    source: SourceReference
    header: FilmHeader | None = None
    code: str | None = None
    detail: str = ""
    calling_ae: str = ""


@dataclass
class Counts:
    """What became of files; every file is in exactly one of the first six.

    ``reopened`` and ``failed_before`` are part of ``seen_before``: films that got a new job
    for a new bundle or revision or because a rule no longer leaves them out, and films that
    failed earlier and were left alone.
    """

    registered: int = 0
    seen_before: int = 0
    unverified: int = 0
    not_dicom: int = 0
    ineligible: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    reopened: int = 0
    failed_before: int = 0
    bytes: int = 0

    @property
    def files(self) -> int:
        """All files."""
        known = self.registered + self.seen_before + self.unverified + self.not_dicom
        return known + self.ineligible.total() + self.rejected.total()

    @property
    def work(self) -> int:
        """Jobs that were opened."""
        return self.registered + self.unverified + self.reopened

    def add(self, other: Counts) -> None:
        """Add the counts of more files."""
        for name in ("registered", "seen_before", "unverified", "not_dicom", "reopened", "failed_before", "bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.ineligible.update(other.ineligible)
        self.rejected.update(other.rejected)


class Registrar:
    """Registers examined files for one submission.

    Parameters
    ----------
    database
        Where to.
    site_key
        Keys the pseudonyms: :func:`worker.settings.site_key`.
    submission_id, lane
        On whose behalf, and how urgent.
    rules
        Which films are processed: :func:`worker.intake.rules.load_rules`.
    """

    def __init__(
        self, database: Database, site_key: bytes, submission_id: int, lane: str, rules: Rules = PROCESS_EVERYTHING
    ) -> None:
        self._database = database
        self._site_key = site_key
        self._submission_id = submission_id
        self._lane = lane
        self._rules = rules

    def register(self, files: Sequence[Examined]) -> Counts:
        """Register ``files`` in one transaction and say what became of them.

        Where the database refuses the chunk - another process registered one of its files in
        the same moment, or a header holds what it cannot take - it is halved until the
        culprit stands alone and is rejected.

        Raises
        ------
        schema.database.DatabaseVersionError
            The tables were upgraded meanwhile: what they refuse now is no proof against a header.
        """
        try:
            return self._write(files)
        except (IntegrityError, DataError):
            if len(files) > 1:
                counts = self.register(files[: len(files) // 2])
                counts.add(self.register(files[len(files) // 2 :]))
                return counts
        self._database.require_current()
        try:
            return self._write(files)
        except (IntegrityError, DataError):
            log.warning("the database refused a header: its file is rejected")
            return self._write([Examined(files[0].source, None, "BAD_VALUE", "the database refused the header")])

    def _write(self, files: Sequence[Examined]) -> Counts:
        with self._database.write() as connection:
            chunk = _Chunk(connection, self._site_key, self._submission_id, self._lane, self._rules)
            return chunk.write(files)


@dataclass(frozen=True, slots=True)
class _Keyed:
    """A readable film: its instance key and why it is ineligible, if it is."""

    file: Examined
    header: FilmHeader
    key: str
    refusal: Refusal | None


@dataclass
class _Rows:
    """Rows to insert, a list for each table."""

    instance: list[dict[str, Any]] = field(default_factory=list)
    instance_identity: list[dict[str, Any]] = field(default_factory=list)
    arrival: list[dict[str, Any]] = field(default_factory=list)
    arrival_again: list[dict[str, Any]] = field(default_factory=list)
    identity: list[dict[str, Any]] = field(default_factory=list)
    submission_arrival: list[dict[str, Any]] = field(default_factory=list)
    open_job: list[dict[str, Any]] = field(default_factory=list)
    ended_job: list[dict[str, Any]] = field(default_factory=list)


class _Chunk:
    """One transaction's worth of files."""

    def __init__(self, connection: Connection, site_key: bytes, submission_id: int, lane: str, rules: Rules) -> None:
        self._connection = connection
        self._site_key = site_key
        self._submission_id = submission_id
        self._lane = lane
        self._rules = rules
        self._priority = PRIORITY[lane]
        self._counts = Counts()
        self._rows = _Rows()
        self._looked_at_again: dict[SourceReference, KnownArrival] = {}
        self._seen_again: list[int] = []
        self._wanted: list[int] = []

    def write(self, files: Sequence[Examined]) -> Counts:
        fresh, seen = self._divide(files)
        films = [self._keyed(file, file.header) for file in fresh if file.header is not None]
        self._number(fresh, films)
        for file in fresh:
            if file.header is None:
                self._add_rejected(file)
        for film in films:
            self._add_film(film)
        self._insert()
        self._see_again(seen)
        self._count_submission(len(files))
        return self._counts

    def _divide(self, files: Sequence[Examined]) -> tuple[list[Examined], list[KnownArrival]]:
        """What is to be registered, and what is registered already; NOT_DICOM is only counted."""
        counts = self._counts
        known = known_arrivals(self._connection, [file.source for file in files])
        fresh: dict[SourceReference, Examined] = {}
        seen: list[KnownArrival] = []
        for file in files:
            before = known.get(file.source)
            counts.bytes += file.source.size
            looked_into = file.header is not None or file.code is not None
            if before is not None and not (before.worth_another_look and looked_into):
                seen.append(before)
                counts.seen_before += 1
            elif file.source in fresh or not looked_into:
                counts.seen_before += 1
            else:
                if before is not None:
                    self._looked_at_again[file.source] = before
                if file.code != NOT_DICOM:
                    fresh[file.source] = file
                else:
                    counts.not_dicom += 1
                    if before is not None:
                        self._add_arrival(file.source, ArrivalState.NOT_DICOM, None, Refusal(NOT_DICOM, ""))
        return list(fresh.values()), seen

    def _keyed(self, file: Examined, header: FilmHeader) -> _Keyed:
        why = refusal(header) or self._rules.refusal(Candidate(header, self._lane, file.calling_ae))
        return _Keyed(file, header, uid_key(self._site_key, header.sop_instance_uid), why)

    def _number(self, fresh: Sequence[Examined], films: Sequence[_Keyed]) -> None:
        """Look the films up and give ids to what is new."""
        self._instances = known_instances(self._connection, {film.key for film in films})
        new = {film.key for film in films} - self._instances.keys()
        self._instance_ids = iter(allocate_ids(self._connection, instance, len(new)))
        new_files = len(fresh) - sum(file.source in self._looked_at_again for file in fresh)
        self._arrival_ids = iter(allocate_ids(self._connection, arrival, new_files))
        self._hurried: list[int] = []

    def _add_arrival(
        self, source: SourceReference, state: ArrivalState, instance_id: int | None, why: Refusal | None = None
    ) -> int:
        rows = self._rows
        row = {
            "instance_id": instance_id,
            "state": state.value,
            "current": state is ArrivalState.INSTANCE,
            "code": why.code if why else None,
            "detail": why.detail if why else "",
        }
        again = self._looked_at_again.get(source)
        if again is not None:
            # It was refused for trouble that is over, or is not: told anew in the one row it has.
            rows.arrival_again.append({"again": again.arrival_id, **row})
            self._seen_again.append(again.arrival_id)
            return again.arrival_id
        arrival_id = next(self._arrival_ids)
        rows.arrival.append({"id": arrival_id, "submission_id": self._submission_id, **row})
        rows.identity.append(
            {
                "arrival_id": arrival_id,
                "root": source.root,
                "path": source.path,
                "member": source.member,
                "size": source.size,
                "modified_ns": source.modified_ns,
            }
        )
        rows.submission_arrival.append(
            {"submission_id": self._submission_id, "arrival_id": arrival_id, "seen_before": False}
        )
        return arrival_id

    def _add_rejected(self, file: Examined) -> None:
        assert file.code is not None
        self._counts.rejected[file.code] += 1
        self._add_arrival(file.source, ArrivalState.REJECTED, None, Refusal(file.code, storable(file.detail)))

    def _add_film(self, film: _Keyed) -> None:
        instance_id = self._instances.get(film.key)
        before = self._looked_at_again.get(film.file.source)
        if instance_id is None:
            self._add_instance(film)
        elif before is not None and before.skipped:
            self._ask_again(film, before, instance_id)
        elif film.refusal is not None and film.refusal.code == RULE_SKIPPED:
            self._counts.ineligible[film.refusal.code] += 1
            arrival_id = self._add_arrival(film.file.source, ArrivalState.UNVERIFIED, instance_id, film.refusal)
            self._end(instance_id, arrival_id, JobKind.VERIFY, film.refusal)
        elif film.refusal is not None:
            # No radiograph, so there is nothing to compare: no worker's time for it.
            self._counts.rejected[film.refusal.code] += 1
            self._add_arrival(film.file.source, ArrivalState.REJECTED, instance_id, film.refusal)
        else:
            self._counts.unverified += 1
            arrival_id = self._add_arrival(film.file.source, ArrivalState.UNVERIFIED, instance_id)
            self._rows.open_job.append(self._open_job(instance_id, arrival_id, JobKind.VERIFY))
            self._hurried.append(instance_id)
            self._wanted.append(instance_id)

    def _ask_again(self, film: _Keyed, before: KnownArrival, instance_id: int) -> None:
        """A rule left the file out: does one still?"""
        self._counts.seen_before += 1
        self._seen_again.append(before.arrival_id)
        if film.refusal is None:
            self._wanted.append(instance_id)

    def _add_instance(self, film: _Keyed) -> None:
        instance_id = self._instances[film.key] = next(self._instance_ids)
        skipped = film.refusal if film.refusal is not None and film.refusal.code == RULE_SKIPPED else None
        arrival_id = self._add_arrival(film.file.source, ArrivalState.INSTANCE, instance_id, skipped)
        self._rows.instance.append(instance_row(self._site_key, film.header, film.key, instance_id))
        self._rows.instance_identity.append(identity_row(film.header, instance_id))
        if film.refusal is None:
            self._counts.registered += 1
            self._rows.open_job.append(self._open_job(instance_id, arrival_id, JobKind.PROCESS))
            return
        self._counts.ineligible[film.refusal.code] += 1
        self._end(instance_id, arrival_id, JobKind.PROCESS, film.refusal)

    def _end(self, instance_id: int, arrival_id: int, kind: JobKind, why: Refusal) -> None:
        """Add a job that is over before it began."""
        job_row = self._open_job(instance_id, arrival_id, kind)
        self._rows.ended_job.append({**job_row, "code": why.code, "detail": why.detail})

    def _open_job(self, instance_id: int, arrival_id: int, kind: JobKind) -> dict[str, Any]:
        return {"instance_id": instance_id, "arrival_id": arrival_id, "kind": kind.value, "priority": self._priority}

    def _insert(self) -> None:
        rows = self._rows
        for table, values in (
            (instance, rows.instance),
            (instance_identity, rows.instance_identity),
            (arrival, rows.arrival),
            (identity, rows.identity),
            (submission_arrival, rows.submission_arrival),
            (job, rows.open_job),
        ):
            if values:
                self._connection.execute(insert(table), values)
        if rows.arrival_again:
            self._connection.execute(_TELL_ANEW, rows.arrival_again)
        if rows.ended_job:
            self._connection.execute(_INELIGIBLE_JOB, rows.ended_job)

    def _see_again(self, seen: Sequence[KnownArrival]) -> None:
        self._counts.reopened += reopen_skipped(self._connection, self._wanted, self._priority)
        instances = {item.instance_id for item in seen if item.instance_id is not None}
        hurry(self._connection, instances.union(self._hurried), self._priority)
        arrivals = {item.arrival_id for item in seen}.union(self._seen_again)
        if not arrivals:
            return
        hurry_verification(self._connection, arrivals, self._priority)
        films = {item.instance_id for item in seen if item.state in _OF_A_FILM and item.instance_id is not None}
        reopened, self._counts.failed_before = reopen(self._connection, films, self._priority)
        self._counts.reopened += reopened
        statement = _insert_or_ignore(self._connection)
        self._connection.execute(
            statement,
            [
                {"submission_id": self._submission_id, "arrival_id": arrival_id, "seen_before": True}
                for arrival_id in arrivals
            ],
        )

    def _count_submission(self, files: int) -> None:
        self._connection.execute(
            _COUNT, {"submission": self._submission_id, "files": files, "others": self._counts.not_dicom}
        )


#: Arrivals that are their film's file, under its own name or another one.
_OF_A_FILM = frozenset({ArrivalState.INSTANCE.value, ArrivalState.ALIAS.value, ArrivalState.DUPLICATE.value})

_TELL_ANEW = (
    update(arrival)
    .where(arrival.c.id == bindparam("again"))
    .values({name: bindparam(name) for name in ("instance_id", "state", "current", "code", "detail")})
)
_INELIGIBLE_JOB = insert(job).values(
    state=JobState.INELIGIBLE.value, stage=Stage.REGISTER.value, finished_at=database_now()
)
_COUNT = (
    update(submission)
    .where(submission.c.id == bindparam("submission"))
    .values(
        files_seen=submission.c.files_seen + bindparam("files"), not_dicom=submission.c.not_dicom + bindparam("others")
    )
)


def _insert_or_ignore(connection: Connection) -> Any:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(submission_arrival).on_conflict_do_nothing()
