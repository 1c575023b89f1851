"""What stands in a database file that another machine filled?

It is read in chunks of whole films - the film, its files, its jobs - from one view of the
file, so that a machine that still writes into it does no harm.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, ColumnElement, Connection, Select, Table, func, select
from sqlalchemy.exc import DBAPIError

from schema.database import Database, head_revision
from schema.keys import uid_key
from schema.tables import (
    ArrivalState,
    JobKind,
    arrival,
    bundle,
    bundle_alias,
    failure_flag,
    finding_score,
    heatmap,
    identity,
    instance,
    instance_identity,
    job,
    region_measurement,
    segmentation,
    submission,
    submission_arrival,
)
from worker.errors import CarinaError
from worker.intake.lookups import OPEN, PROCESS, SLICE, slices
from worker.queue.outcomes import SourceReference

Row = dict[str, Any]

#: Tables whose rows are a job's result.
RESULTS: tuple[Table, ...] = (segmentation, region_measurement, failure_flag, finding_score, heatmap)

_SQLITE_START = b"SQLite format 3\0"
#: A UID as the header has it: what was cut or cleaned for storage has a key that cannot be computed again.
_WHOLE_UID = re.compile(r"[0-9.]{1,63}")


@dataclass
class ShardArrival:
    """A file that came: its row, its place (None once forgotten) and the submissions that saw it."""

    row: Row
    source: SourceReference | None
    seen_by: list[Row] = field(default_factory=list)
    verification: Row | None = None


@dataclass
class ShardFilm:
    """A film: its row, its identity (None once forgotten), its files and its ``process`` jobs by id."""

    row: Row
    identity: Row | None = None
    arrivals: list[ShardArrival] = field(default_factory=list)
    jobs: list[Row] = field(default_factory=list)

    @property
    def current(self) -> ShardArrival | None:
        """The file the film is read from."""
        return next((file for file in self.arrivals if file.row["current"]), None)

    @property
    def present_jobs(self) -> list[Row]:
        """The jobs that say how the film stands: of its present file, published."""
        return [job for job in self.jobs if job["generation"] == self.row["generation"] and job["published"]]


class ShardReader:
    """Reads an open shard database, of this version and under this site key."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    def fingerprint(self) -> str | None:
        """What tells this database from any other, as long as it grows: 32 hex digits; None before its first file."""
        # Two shards may well begin in the same millisecond, but hardly with the same file.
        files = (
            select(arrival.c.arrived_at, identity.c.location_hash)
            .outerjoin(identity, identity.c.arrival_id == arrival.c.id)
            .order_by(arrival.c.id)
        )
        submissions = select(submission.c.created_at).order_by(submission.c.id)
        first = [*self._rows(files.limit(1)), *self._rows(submissions.limit(1))]
        if len(first) < 2:
            return None
        told = "\0".join(str(value) for row in first for value in row.values())
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def rows(self, table: Table, *conditions: ColumnElement[bool]) -> list[Row]:
        """All rows of a small table."""
        return self._rows(select(table).where(*conditions).order_by(*table.primary_key.columns))

    def count(self) -> int:
        """Films, and files that are none: what :meth:`films` and :meth:`other_files` yield."""
        return self._count(instance) + self._count(arrival, arrival.c.instance_id.is_(None))

    def count_open(self) -> int:
        """Films that are not through."""
        return self._count(job, PROCESS, OPEN)

    def films(self, chunk: int) -> Iterator[list[ShardFilm]]:
        """All films in chunks; those that are no alias come first."""
        for which in (instance.c.alias_of.is_(None), instance.c.alias_of.is_not(None)):
            for rows in self._chunks(instance, which, chunk):
                yield self._films(rows)

    def other_files(self, chunk: int) -> Iterator[list[ShardArrival]]:
        """All files that belong to no film, in chunks."""
        for rows in self._chunks(arrival, arrival.c.instance_id.is_(None), chunk):
            yield self._arrivals(rows)

    def of_jobs(self, table: Table, job_ids: Sequence[int]) -> list[Row]:
        """The rows of ``attempt`` or of one of :data:`RESULTS` that belong to these jobs."""
        return self._where_in(table, table.c.job_id, job_ids)

    def _chunks(self, table: Table, which: ColumnElement[bool], chunk: int) -> Iterator[list[Row]]:
        last = 0
        query = select(table).where(which).order_by(table.c.id).limit(chunk)
        while rows := self._rows(query.where(table.c.id > last)):
            yield rows
            last = rows[-1]["id"]

    def _films(self, rows: Sequence[Row]) -> list[ShardFilm]:
        films = {row["id"]: ShardFilm(row) for row in rows}
        for row in self._where_in(instance_identity, instance_identity.c.instance_id, films):
            films[row["instance_id"]].identity = row
        arrivals = self._arrivals(self._where_in(arrival, arrival.c.instance_id, films))
        verified = {file.row["id"]: file for file in arrivals}
        for file in arrivals:
            films[file.row["instance_id"]].arrivals.append(file)
        for row in self._where_in(job, job.c.instance_id, films):
            if row["kind"] == JobKind.PROCESS:
                films[row["instance_id"]].jobs.append(row)
            elif row["kind"] == JobKind.VERIFY and row["arrival_id"] in verified:
                verified[row["arrival_id"]].verification = row
        return list(films.values())

    def _arrivals(self, rows: Sequence[Row]) -> list[ShardArrival]:
        ids = [row["id"] for row in rows]
        places = {
            row["arrival_id"]: SourceReference(row["root"], row["path"], row["member"], row["size"], row["modified_ns"])
            for row in self._where_in(identity, identity.c.arrival_id, ids)
        }
        seen: dict[int, list[Row]] = defaultdict(list)
        for row in self._where_in(submission_arrival, submission_arrival.c.arrival_id, ids):
            seen[row["arrival_id"]].append(row)
        return [ShardArrival(row, places.get(row["id"]), seen[row["id"]]) for row in rows]

    def _where_in(
        self, table: Table, column: ColumnElement[int], values: Sequence[int] | Mapping[int, Any]
    ) -> list[Row]:
        found: list[Row] = []
        for piece in slices(values, SLICE):
            query = select(table).where(column.in_(piece)).order_by(*table.primary_key.columns)
            found += self._rows(query)
        return found

    def _count(self, table: Table, *conditions: ColumnElement[bool]) -> int:
        (row,) = self._rows(select(func.count().label("rows")).select_from(table).where(*conditions))
        return int(row["rows"])

    def _rows(self, query: Select[Any]) -> list[Row]:
        with damage_told(self._name):
            return [dict(row) for row in self._connection.execute(query).mappings()]


@contextmanager
def open_shard(file: Path, site_key: bytes) -> Iterator[ShardReader]:
    """One view of a shard database.

    Raises
    ------
    CarinaError
        It is missing, damaged, no database, of another version, or was written under another site key.
    """
    _require_sqlite(file)
    database = Database(URL.create("sqlite", database=str(file.absolute())))
    try:
        with damage_told(file.name):
            found, wanted = database.version(), head_revision()
        if found != wanted:
            raise CarinaError(
                f"{file.name} is of version {found or 'none'}, this program needs {wanted}. Use the program that "
                f"wrote it, or bring it up to date: CARINA_DATABASE_URL=sqlite:///{file.absolute()} carina db upgrade"
            )
        with database.read() as connection:
            with damage_told(file.name):
                same_key = under_key(connection, site_key)
            if not same_key:
                raise CarinaError(
                    f"{file.name} was written under another site key, so its films cannot be recognised here. "
                    "Merge with the file site.key of the home folder that the shards ran with."
                )
            yield ShardReader(connection, file.name)
    finally:
        database.close()


@contextmanager
def damage_told(name: str) -> Iterator[None]:
    """Say which file cannot be read: not the database that it is merged into."""
    try:
        yield
    except DBAPIError as error:
        raise CarinaError(
            f"The shard database {name} cannot be read: {error.orig}. Copy it again from where it was made, "
            "or run that shard again."
        ) from None


def under_key(connection: Connection, site_key: bytes, limit: int | None = None) -> bool:
    """Whether the films of a database (at most ``limit`` are asked) have keys under this site key."""
    query = (
        select(instance.c.key, instance_identity.c.sop_instance_uid)
        .join(instance_identity, instance_identity.c.instance_id == instance.c.id)
        .limit(limit)
        .execution_options(yield_per=SLICE)
    )
    return all(uid_key(site_key, uid) == key for key, uid in connection.execute(query) if _WHOLE_UID.fullmatch(uid))


def champion_sha256(reader: ShardReader) -> str | None:
    """The SHA-256 of the bundle that the shard published with."""
    aliases = reader.rows(bundle_alias, bundle_alias.c.alias == "champion")
    return next((row["sha256"] for a in aliases for row in reader.rows(bundle, bundle.c.id == a["bundle_id"])), None)


def is_rejected(row: Row) -> bool:
    """Whether an arrival's row is one of a file that was refused."""
    return row["state"] in (ArrivalState.REJECTED, ArrivalState.NOT_DICOM)


def _require_sqlite(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_SQLITE_START))
    except OSError as error:
        raise CarinaError(f"The shard database {file.name} cannot be read: {error.strerror}.") from None
    if start != _SQLITE_START:
        raise CarinaError(f"{file.name} is not an SQLite database: name the files that carina run --shard made.")
