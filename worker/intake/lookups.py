"""What does the database already know about these files and films?

One query for a slice of files, answered from an index, so that a chunk of a million-file
folder costs as much as any other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, Table, bindparam, func, literal_column, select, text

from schema.keys import location_hash
from schema.tables import ArrivalState, arrival, bundle_alias, identity, instance, job
from worker.errors import CODES, Kind
from worker.intake.rules import RULE_SKIPPED
from worker.queue.outcomes import SourceReference

#: Values in one IN list: below the limit of every driver.
SLICE = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KnownArrival:
    """A file that is registered already."""

    arrival_id: int
    instance_id: int | None
    state: str
    code: str | None

    @property
    def worth_another_look(self) -> bool:
        """Whether it was refused for what may be over now: no permission, a share that was away, a rule."""
        if self.state == ArrivalState.REJECTED:
            return self.code is not None and CODES[self.code].kind is Kind.TRANSIENT
        return self.skipped

    @property
    def skipped(self) -> bool:
        """Whether a rule left it out when it came."""
        return self.code == RULE_SKIPPED and self.state != ArrivalState.REJECTED


def slices(items: Collection[T], size: int = SLICE) -> Iterator[list[T]]:
    """``items`` in lists of at most ``size``."""
    iterator = iter(items)
    while piece := list(islice(iterator, size)):
        yield piece


_KNOWN = (
    select(identity.c.location_hash, arrival.c.id, arrival.c.instance_id, arrival.c.state, arrival.c.code)
    .join(arrival, arrival.c.id == identity.c.arrival_id)
    .where(identity.c.location_hash.in_(bindparam("hashes", expanding=True)))
)


def location_of(source: SourceReference) -> str:
    """The ``location_hash`` of a file."""
    return location_hash(source.root, source.path, source.member, source.size, source.modified_ns)


def known_arrivals(connection: Connection, sources: Iterable[SourceReference]) -> dict[SourceReference, KnownArrival]:
    """The files of ``sources`` that are registered: same place, size and modification time."""
    wanted = {location_of(source): source for source in sources}
    return {
        wanted[place]: KnownArrival(*rest)
        for piece in slices(wanted)
        for place, *rest in connection.execute(_KNOWN, {"hashes": piece})
    }


_INSTANCES = select(instance.c.key, instance.c.id).where(instance.c.key.in_(bindparam("keys", expanding=True)))


def known_instances(connection: Connection, keys: Collection[str]) -> dict[str, int]:
    """Instance key → id, of those that exist."""
    known: dict[str, int] = {}
    for piece in slices(keys):
        known.update((key, number) for key, number in connection.execute(_INSTANCES, {"keys": piece}))
    return known


def champion_id(connection: Connection) -> int | None:
    """The bundle whose results are published, or None where none is registered yet."""
    return connection.scalar(select(bundle_alias.c.bundle_id).where(bundle_alias.c.alias == "champion"))


def allocate_ids(connection: Connection, table: Table, count: int) -> range | list[int]:
    """``count`` fresh ids of ``table``, known before the rows are inserted.

    On SQLite the caller holds the write lock, so the next ids are the caller's.
    """
    if count == 0:
        return []
    if connection.dialect.name == "sqlite":
        first = int(connection.scalar(select(func.coalesce(func.max(table.c.id), 0))) or 0) + 1
        return range(first, first + count)
    statement = text("SELECT nextval(pg_get_serial_sequence(:table, 'id')) FROM generate_series(1, :count)")
    return list(connection.scalars(statement, {"table": table.name, "count": count}))


#: Conditions with their values written out: with parameters SQLite could not tell that its
#: partial indexes serve them.
PROCESS: ColumnElement[bool] = job.c.kind == literal_column("'process'")
VERIFY: ColumnElement[bool] = job.c.kind == literal_column("'verify'")
OPEN: ColumnElement[bool] = job.c.state.in_([literal_column(f"'{state}'") for state in ("ready", "delayed", "leased")])
BOUND: ColumnElement[bool] = PROCESS & job.c.bundle_id.is_not(None)
