from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import JSON, Column, Float, Integer, LargeBinary, MetaData, String, Table, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from schema.bulk import insert_rows, update_rows
from schema.database import Database, is_busy

things = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("words", String(20)),
    Column("number", Float),
    Column("document", JSON),
    Column("picture", LargeBinary),
)
ODD = "tab\t new\nline \\N \\. ü☃ '\" %s :x"
ROWS: list[dict[str, Any]] = [
    {"id": 1, "words": None, "number": 0.1, "document": {"a": [1, None, ODD]}, "picture": bytes(range(256))},
    {"id": 2, "words": ODD[:20], "number": None, "document": [], "picture": None},
    {"id": 3, "words": "", "number": -1e-300, "document": "", "picture": b""},
]


@pytest.fixture(autouse=True)
def table(database: Database) -> None:
    with database.write() as connection:
        things.create(connection)


def stored(database: Database) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(select(things).order_by(things.c.id)).mappings()]


def test_rows_come_back_as_they_were_inserted(database: Database) -> None:
    with database.write() as connection:
        insert_rows(connection, things, ROWS)
        insert_rows(connection, things, [])
        insert_rows(connection, things, [{"id": 4}, {"id": 10}])
    assert stored(database)[:3] == ROWS
    assert [row["id"] for row in stored(database)] == [1, 2, 3, 4, 10]


def test_an_update_changes_the_named_columns_of_the_named_rows(database: Database) -> None:
    with database.write() as connection:
        insert_rows(connection, things, ROWS)
        update_rows(connection, things, [{"id": 3, "words": ODD[:20], "number": None}, {"id": 1, "words": None,
                                                                                       "number": 2.5}])  # fmt: skip
        update_rows(connection, things, [])
    assert stored(database) == [
        {**ROWS[0], "words": None, "number": 2.5},
        ROWS[1],
        {**ROWS[2], "words": ODD[:20], "number": None},
    ]


def test_what_the_database_refuses_is_an_error_of_sqlalchemy_and_leaves_nothing(database: Database) -> None:
    with database.write() as connection, pytest.raises(IntegrityError) as refusal, connection.begin_nested():
        insert_rows(connection, things, [*ROWS, ROWS[0]])
    assert not is_busy(refusal.value)
    assert stored(database) == []
    with database.write() as connection:
        insert_rows(connection, things, ROWS)
    assert stored(database) == ROWS


def test_a_session_that_is_gone_is_an_outage(database: Database) -> None:
    if database.dialect != "postgresql":
        pytest.skip("SQLite has no session to lose")
    with pytest.raises(DBAPIError) as outage, database.write() as connection:
        session = connection.scalar(text("SELECT pg_backend_pid()"))
        with database.write() as other:
            other.execute(text("SELECT pg_terminate_backend(:session)"), {"session": session})
        insert_rows(connection, things, ROWS)
    assert is_busy(outage.value)
    with database.write() as connection:
        insert_rows(connection, things, ROWS)
    assert stored(database) == ROWS
