"""Is there really nothing left of a patient?

Every table of the database is asked, those included that this program does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import JSON, Column, ColumnElement, Connection, MetaData, String, Table, Text, cast, func, or_, select

from schema.tables import instance, instance_identity
from worker.errors import CarinaError
from worker.intake.lookups import slices


@dataclass(frozen=True)
class Traces:
    """What may be found nowhere afterwards: patient keys, keys and UIDs of films, ids of rows by table."""

    patients: Sequence[str]
    films: Sequence[str]
    ids: Mapping[str, Sequence[int]]


def traces_of(connection: Connection, ids: Mapping[Table, Sequence[int]], keys: Collection[str]) -> Traces:
    """What to look for, read before it is deleted; ``ids`` are the rows that will go."""
    films: list[str] = []
    for piece in slices(ids[instance]):
        films += connection.scalars(select(instance.c.key).where(instance.c.id.in_(piece)))
        known_as = select(instance_identity.c.sop_instance_uid).where(instance_identity.c.instance_id.in_(piece))
        films += connection.scalars(known_as)
    return Traces(sorted(keys), films, {table.name: numbers for table, numbers in ids.items()})


def require_nothing_left(connection: Connection, traces: Traces) -> None:
    """Look through all tables.

    Raises
    ------
    CarinaError
        Something is left: says in which table.
    """
    database = MetaData()
    database.reflect(connection)
    for table in database.sorted_tables:
        for condition in _looks(table, traces):
            if connection.scalar(select(func.count()).select_from(table).where(condition)):
                raise CarinaError(f"Something of this patient is left in the table {table.name}. Please report this.")


def _looks(table: Table, traces: Traces) -> Iterator[ColumnElement[bool]]:
    words: list[Column[str]] = [column for column in table.columns if isinstance(column.type, String)]
    if words:
        for names in slices([*traces.patients, *traces.films]):
            yield or_(*(column.in_(names) for column in words))
    # A key may also stand inside a longer text.
    texts = [cast(column, Text) for column in table.columns if isinstance(column.type, Text | JSON)]
    if texts:
        for key in traces.patients:
            yield or_(*(text.contains(key) for text in texts))
    for reference in table.foreign_keys:
        for ids in slices(traces.ids.get(reference.column.table.name, [])):
            yield reference.parent.in_(ids)
