"""Column types and SQL clock expressions that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Float, Integer, literal
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

#: Row ids: 64 bits; on SQLite the INTEGER that aliases the rowid.
Id = BigInteger().with_variant(Integer, "sqlite")


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, always UTC and always aware in Python.

    SQLite keeps it as text ``YYYY-MM-DD HH:MM:SS.ffffff``, which sorts as time does.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Use ``timestamp with time zone`` where there is one."""
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times: they would silently be local ones."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Make what SQLite returns aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class database_now(FunctionElement[datetime]):  # noqa: N801 - reads as a SQL function
    """The database's clock, ``database_now(seconds)`` from now. Never this machine's clock.

    The time at which the statement began: one value for all its rows, so that an index on a
    time can serve a comparison with it.
    """

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(*([literal(float(seconds), Float)] if seconds else []))


@compiles(database_now, "sqlite")
def _sqlite_now(element: database_now, compiler: Any, **kwargs: Any) -> str:
    seconds = compiler.process(element.clauses, **kwargs)
    moved = f", ({seconds}) || ' seconds'" if seconds else ""
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now'{moved}) || '000')"


@compiles(database_now)
def _postgresql_now(element: database_now, compiler: Any, **kwargs: Any) -> str:
    seconds = compiler.process(element.clauses, **kwargs)
    return f"(statement_timestamp() + make_interval(secs => ({seconds})))" if seconds else "statement_timestamp()"


class seconds_since(FunctionElement[float]):  # noqa: N801 - reads as a SQL function
    """Seconds from a stored time until the database's now, as a float."""

    type = Float()
    inherit_cache = True


@compiles(seconds_since, "sqlite")
def _sqlite_since(element: seconds_since, compiler: Any, **kwargs: Any) -> str:
    return f"((julianday('now') - julianday({compiler.process(element.clauses, **kwargs)})) * 86400.0)"


@compiles(seconds_since)
def _postgresql_since(element: seconds_since, compiler: Any, **kwargs: Any) -> str:
    return f"CAST(extract(epoch FROM statement_timestamp() - {compiler.process(element.clauses, **kwargs)}) AS float)"
