"""How do the databases that a cluster's machines filled by themselves become one?

Films are recognised by their keys, files by their places, bundles by their digests: row ids
mean nothing across databases. Each chunk of films is one transaction of the target, so an
interrupted merge is simply run again, and merging a file twice changes nothing. What is open
in the shard is ready in the target. Leases, workers and duties stay behind: they are about
machines that are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from schema.database import Database
from schema.tables import audit_event, bundle, bundle_alias, submission
from worker.errors import CarinaError
from worker.intake.lookups import slices
from worker.merge.films import MergeCounts, merge_files, merge_films
from worker.merge.shard_file import Row, ShardReader, champion_sha256, open_shard, under_key
from worker.merge.writing import Writing
from worker.queue.patience import Patience
from worker.settings import Settings, site_key

#: Films of one transaction: few enough that workers of the target hardly wait.
CHUNK = 200
#: A chunk that collides with what other processes write is decided anew so often.
COLLISIONS = 5
#: Keys of a target that are tried with our site key.
_KEYS_TRIED = 1000
_MERGED = "submission merged"

Item = TypeVar("Item")
#: Called with the films and other files looked at, and their number.
Progress = Callable[[int, int], object]


@dataclass
class MergeReport:
    """What one shard database brought; ``waiting`` counts the shard's films that are not through."""

    file: Path
    counts: MergeCounts = field(default_factory=MergeCounts)
    waiting: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"file": str(self.file), **self.counts.to_json(), "waiting": self.waiting}


def merge(
    database: Database,
    settings: Settings,
    file: Path,
    *,
    chunk: int = CHUNK,
    progress: Progress = lambda done, total: None,
) -> MergeReport:
    """Merge one shard database into ``database``; may be repeated and interrupted.

    Parameters
    ----------
    settings
        Of the target; the site key must be that of the shard.
    file
        The shard's SQLite file, as ``carina run --shard`` or any worker on SQLite leaves it.
    chunk
        Films of one transaction.
    progress
        Called after each chunk.

    Raises
    ------
    CarinaError
        The file is missing or no shard database, is of another version or site, is the target
        itself, or holds another bundle under a name that the target knows.
    """
    if database.url.database and database.dialect == "sqlite" and file.exists():
        target = Path(database.url.database)
        if target.exists() and target.samefile(file):
            raise CarinaError(f"{file.name} is the database to merge into: name the other ones.")
    key = site_key(settings)
    with database.read() as connection:
        if not under_key(connection, key, _KEYS_TRIED):
            raise CarinaError(
                "The database to merge into was written under another site key. Set CARINA_HOME to the home "
                "folder that belongs to it."
            )
    with open_shard(file, key) as reader:
        return _Merge(database, reader, file, progress).run(chunk)


class _Merge:
    """One merge of one shard."""

    def __init__(self, database: Database, reader: ShardReader, file: Path, progress: Progress) -> None:
        self._database = database
        self._reader = reader
        self._progress = progress
        self._report = MergeReport(file)
        self._patience = Patience()

    def run(self, chunk: int) -> MergeReport:
        reader = self._reader
        self._bundles = self._transaction(partial(_merge_bundles, reader=reader))
        self._submissions = self._transaction(partial(_merge_submissions, reader=reader))
        total, done = reader.count(), 0
        for films in reader.films(chunk):
            self._chunk(merge_films, films)
            done += len(films)
            self._progress(done, total)
        for files in reader.other_files(chunk):
            self._chunk(merge_files, files)
            done += len(files)
            self._progress(done, total)
        self._report.waiting = reader.count_open()
        return self._report

    def _chunk(self, step: Callable[[Connection, Writing, list[Item]], MergeCounts], items: list[Item]) -> None:
        def work(connection: Connection) -> MergeCounts:
            writing = Writing(connection, self._reader, self._bundles, self._submissions)
            return step(connection, writing, items)

        self._report.counts.add(self._transaction(work))

    def _transaction(self, work: Callable[[Connection], Item]) -> Item:
        """Do ``work`` in one transaction, anew where somebody else wrote the same in this moment."""

        def once() -> Item:
            with self._database.write() as connection:
                return work(connection)

        for _ in range(COLLISIONS):
            try:
                return self._patience.until_done(once)
            except IntegrityError:
                continue
        return self._patience.until_done(once)


def _merge_bundles(connection: Connection, reader: ShardReader) -> dict[int, int]:
    """The shard's bundle ids → the target's; what the target lacks is registered."""
    known = {row.sha256: row.id for row in connection.execute(select(bundle.c.sha256, bundle.c.id))}
    names = {(row.name, row.version): row.sha256 for row in connection.execute(select(bundle))}
    numbers = {}
    for row in reader.rows(bundle):
        if names.get((row["name"], row["version"]), row["sha256"]) != row["sha256"]:
            raise CarinaError(
                f"The shard was read with another bundle named {row['name']}:{row['version']} than the one "
                "registered here: their results must not be mixed. Read the shard's films again with the bundle "
                "of this database."
            )
        if row["sha256"] not in known:
            values = {name: value for name, value in row.items() if name != "id"}
            known[row["sha256"]] = connection.execute(
                insert(bundle).values(**values).returning(bundle.c.id)
            ).scalar_one()
        numbers[row["id"]] = known[row["sha256"]]
    _adopt_champion(connection, reader, known)
    return numbers


def _adopt_champion(connection: Connection, reader: ShardReader, known: dict[str, int]) -> None:
    sha256 = champion_sha256(reader)
    if sha256 is None or connection.scalar(select(bundle_alias.c.bundle_id).where(bundle_alias.c.alias == "champion")):
        return
    connection.execute(insert(bundle_alias).values(alias="champion", bundle_id=known[sha256]))
    name = connection.execute(select(bundle.c.name, bundle.c.version).where(bundle.c.id == known[sha256])).one()
    connection.execute(
        insert(audit_event).values(
            actor="carina",
            action="promote",
            subject=f"{name.name}:{name.version}",
            detail={"why": "first merged shard"},
        )
    )


def _merge_submissions(connection: Connection, reader: ShardReader) -> dict[int, int]:
    """The shard's submission ids → the target's. The audit trail remembers which became which.

    A shard without any file brings none: it could not be recognised when it comes again.
    """
    mark = reader.fingerprint()
    if mark is None:
        return {}
    _wait_for_others(connection, mark)
    rows = reader.rows(submission)
    before = _merged_before(connection, [_subject(mark, row) for row in rows])
    numbers = {}
    for row in rows:
        values = {name: value for name, value in row.items() if name != "id"}
        number = before.get(_subject(mark, row))
        if number is None:
            number = connection.execute(insert(submission).values(**values).returning(submission.c.id)).scalar_one()
            connection.execute(
                insert(audit_event).values(
                    actor="carina", action=_MERGED, subject=_subject(mark, row), detail={"submission": number}
                )
            )
        else:
            # Since the last merge the shard may have seen more of it.
            connection.execute(update(submission).where(submission.c.id == number).values(**values))
        numbers[row["id"]] = number
    return numbers


def _wait_for_others(connection: Connection, mark: str) -> None:
    """Let nobody else merge the submissions of this shard until the transaction ends; on SQLite nobody does."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(int(mark[:15], 16))))


def _subject(mark: str, row: Row) -> str:
    return f"submission {row['id']} of {mark}"


def _merged_before(connection: Connection, subjects: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for piece in slices(subjects):
        query = select(audit_event.c.subject, audit_event.c.detail).where(
            audit_event.c.action == _MERGED, audit_event.c.subject.in_(piece)
        )
        found.update((row.subject, row.detail["submission"]) for row in connection.execute(query))
    return found
