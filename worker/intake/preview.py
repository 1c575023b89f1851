"""What would be registered? The same questions as registration asks, and no answer written down."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from schema.database import Database
from schema.keys import uid_key
from schema.tables import Lane
from worker.film.reader import FilmHeader
from worker.intake.eligibility import Refusal, refusal
from worker.intake.lookups import known_arrivals, known_instances, slices
from worker.intake.register import NOT_DICOM, Counts, Examined
from worker.intake.resubmission import outdated_films
from worker.intake.rules import PROCESS_EVERYTHING, RULE_SKIPPED, Candidate, Rules


class Preview:
    """Counts what :class:`worker.intake.register.Registrar` would do.

    UIDs met on the way are kept in a temporary file that vanishes with this object, not in
    memory: an archive may have millions. Parameters as for the Registrar.
    """

    def __init__(
        self, database: Database, site_key: bytes, lane: str = Lane.ARCHIVE, rules: Rules = PROCESS_EVERYTHING
    ) -> None:
        self._database = database
        self._site_key = site_key
        self._lane = lane
        self._rules = rules
        self._met = sqlite3.connect("")
        self._met.execute("PRAGMA synchronous = OFF")
        self._met.execute("CREATE TABLE met (key TEXT PRIMARY KEY) WITHOUT ROWID")

    def register(self, files: Sequence[Examined]) -> Counts:
        """Count ``files``; nothing is written to the database."""
        counts = Counts()
        keys = {
            file.header.sop_instance_uid: uid_key(self._site_key, file.header.sop_instance_uid)
            for file in files
            if file.header is not None
        }
        with self._database.read() as connection:
            known = known_arrivals(connection, [file.source for file in files])
            instances = known_instances(connection, keys.values())
            films = {before.instance_id for before in known.values() if before.instance_id is not None}
            for piece in slices(films):
                outdated, failed = outdated_films(connection, piece)
                counts.reopened += len(outdated)
                counts.failed_before += len(failed)
        for file in files:
            counts.bytes += file.source.size
            before = known.get(file.source)
            if (before is not None and not before.worth_another_look) or self._again(repr(file.source)):
                counts.seen_before += 1
            elif file.header is None:
                _count_unread(counts, file)
            elif before is not None and before.skipped:
                counts.seen_before += 1
                counts.reopened += self._refusal(file, file.header) is None
            else:
                key = keys[file.header.sop_instance_uid]
                self._count_film(counts, file, known=self._again(key) or key in instances)
        return counts

    def _count_film(self, counts: Counts, file: Examined, *, known: bool) -> None:
        assert file.header is not None
        refused = self._refusal(file, file.header)
        if refused is not None:
            rejected = known and refused.code != RULE_SKIPPED
            (counts.rejected if rejected else counts.ineligible)[refused.code] += 1
        elif known:
            counts.unverified += 1
        else:
            counts.registered += 1

    def _refusal(self, file: Examined, header: FilmHeader) -> Refusal | None:
        return refusal(header) or self._rules.refusal(Candidate(header, self._lane, file.calling_ae))

    def _again(self, key: str) -> bool:
        """Whether ``key`` was met before; from now on it was."""
        return self._met.execute("INSERT OR IGNORE INTO met VALUES (?)", (key,)).rowcount == 0


def _count_unread(counts: Counts, file: Examined) -> None:
    assert file.code is not None
    if file.code == NOT_DICOM:
        counts.not_dicom += 1
    else:
        counts.rejected[file.code] += 1
