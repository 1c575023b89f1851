"""A ledger of any size in seconds: films that only exist as rows, made by the database itself."""

from __future__ import annotations

from sqlalchemy import Connection, String, Table, bindparam, cast, func, insert, literal, literal_column, select, text

from schema import tables
from schema.database import Database
from schema.tables import PRIORITY, ArrivalState, Lane

#: Before a number, this makes a key of at most 64 characters.
_ZEROS = "0" * 50


def register_many(database: Database, count: int, *, lane: str = Lane.ARCHIVE) -> None:
    """``count`` films of one submission, each with an instance, a file, its place, and a ready job."""
    with database.write() as connection:
        submission = connection.execute(insert(tables.submission).values(lane=str(lane), scan_complete=True))
        first = 1 + max(_highest(connection, table) for table in (tables.instance, tables.arrival))
        numbers = select(literal(first).label("number")).cte("numbers", recursive=True)
        numbers = numbers.union_all(select(numbers.c.number + 1).where(numbers.c.number < first + count - 1))
        number = numbers.c.number
        key = literal(_ZEROS).concat(cast(number, String))
        given = {name: literal_column(f"'{name}'") for name in ("study", "series")}
        for table, columns in {
            tables.instance: {
                "id": number, "key": key, "patient_key": key, "study_key": given["study"],
                "series_key": given["series"], "held_out": bindparam("no", False),
                "sop_class_uid": literal_column("'1.2.840.10008.5.1.4.1.1.1.1'"),
            },
            tables.arrival: {
                "id": number, "submission_id": literal(submission.inserted_primary_key[0]), "instance_id": number,
                "state": literal(ArrivalState.INSTANCE.value), "current": bindparam("yes", True),
            },
            tables.identity: {
                "arrival_id": number, "root": literal_column("'local'"), "path": key, "size": literal_column("1"),
                "modified_ns": literal_column("1"), "location_hash": key,
            },
            tables.job: {"instance_id": number, "arrival_id": number, "priority": literal(PRIORITY[lane])},
        }.items():  # fmt: skip
            connection.execute(insert(table).from_select(list(columns), select(*columns.values())))
        for table in (tables.instance, tables.arrival):
            _go_on_after(connection, table)
    with database.write() as connection:
        connection.execute(text("ANALYZE"))


def _highest(connection: Connection, table: Table) -> int:
    return connection.scalar(select(func.max(table.c.id))) or 0


def _go_on_after(connection: Connection, table: Table) -> None:
    """A PostgreSQL sequence does not know of ids that it did not give."""
    if connection.dialect.name == "postgresql":
        statement = text("SELECT setval(pg_get_serial_sequence(:table, 'id'), :highest)")
        connection.execute(statement, {"table": table.name, "highest": _highest(connection, table)})
