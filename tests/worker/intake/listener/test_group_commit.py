from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest
from intake_rows import SITE_KEY, film, rows
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from schema import tables
from schema.database import Database, DatabaseVersionError
from worker.intake.listener.group_commit import GroupCommit
from worker.intake.rules import PROCESS_EVERYTHING


def test_films_of_many_senders_share_commits_and_none_returns_before(database: Database) -> None:
    announced: list[int] = []
    with GroupCommit(database, SITE_KEY, PROCESS_EVERYTHING, announced.append) as commit:
        gate = threading.Event()

        def send(number: int) -> int:
            gate.wait(20)
            commit.register(film(f"2.25.{number}", f"{number}.dcm"), "icu" if number % 2 else "archive")
            with database.read() as connection:
                return int(connection.scalar(text("SELECT count(*) FROM instance")) or 0)

        with ThreadPoolExecutor(20) as senders:
            seen = [senders.submit(send, number) for number in range(40)]
            gate.set()
            assert min(future.result() for future in seen) >= 1
    assert sum(announced) == 40
    assert len(rows(database, tables.job)) == 40
    assert {row.priority for row in rows(database, tables.job)} == {0, 10}
    found = rows(database, tables.submission)
    assert sorted((row.lane, row.files_seen, row.scan_complete) for row in found) == [
        ("archive", 20, True),
        ("icu", 20, True),
    ]


def test_a_new_day_is_a_new_submission(database: Database) -> None:
    days = [date(2026, 3, 1)]
    with GroupCommit(database, SITE_KEY, PROCESS_EVERYTHING, today=lambda: days[-1]) as commit:
        commit.register(film("2.25.1", "1.dcm"), "icu")
        commit.register(film("2.25.2", "2.dcm"), "icu")
        days.append(date(2026, 3, 2))
        commit.register(film("2.25.3", "3.dcm"), "icu")
        assert [(row.files_seen, row.scan_complete) for row in rows(database, tables.submission)] == [
            (2, True),
            (1, False),
        ]


def test_trouble_reaches_everyone_who_waits_and_later_films_are_taken(database: Database) -> None:
    with GroupCommit(database, SITE_KEY, PROCESS_EVERYTHING) as commit:
        commit.register(film("2.25.1", "1.dcm"), "icu")
        with database.write() as connection:
            connection.execute(text("ALTER TABLE submission_arrival RENAME TO elsewhere"))
        with pytest.raises(DBAPIError):
            commit.register(film("2.25.2", "2.dcm"), "icu")
        assert commit.outdated is None
        with database.write() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO submission_arrival"))
        commit.register(film("2.25.2", "2.dcm"), "icu")
    assert len(rows(database, tables.instance)) == 2


def test_an_upgraded_database_is_noticed(database: Database) -> None:
    with GroupCommit(database, SITE_KEY, PROCESS_EVERYTHING) as commit:
        with database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            connection.execute(text("ALTER TABLE submission_arrival RENAME TO elsewhere"))
        with pytest.raises(DBAPIError):
            commit.register(film("2.25.1", "1.dcm"), "icu")
        assert isinstance(commit.outdated, DatabaseVersionError)
