"""What the tables share: their metadata with the names of constraints, and columns that many have."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import Column, MetaData

from schema.types import Id, UtcDateTime, database_now

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)


def one_of(column: str, values: type[StrEnum]) -> str:
    """The condition that a column holds one of the values."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def row_id() -> Column[int]:
    """A number that the database gives."""
    return Column("id", Id, primary_key=True, autoincrement=True)


def moment(name: str, *, now: bool = False, nullable: bool = False) -> Column[Any]:
    """A time in UTC; with ``now`` that of the database's clock where none is given."""
    return Column(name, UtcDateTime, nullable=nullable, default=database_now() if now else None)
