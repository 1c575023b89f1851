from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import func, insert, literal, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError

from schema import tables
from schema.database import Database, is_busy
from schema.types import UtcDateTime, database_now, seconds_since


def submissions(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(tables.submission)) or 0


def test_a_write_session_commits_at_its_end(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(tables.submission).values(lane="icu"))
    assert submissions(database) == 1


def test_a_write_session_rolls_back_on_an_exception(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as connection:
        connection.execute(insert(tables.submission).values(lane="icu"))
        raise RuntimeError
    assert submissions(database) == 0


def test_a_read_session_cannot_write(database: Database) -> None:
    for statement in (
        insert(tables.submission).values(lane="icu"),
        text("DELETE FROM submission"),
        text("DROP VIEW film_state"),
        text("CREATE TABLE x (id INTEGER)"),
    ):
        with pytest.raises(DBAPIError), database.read() as connection:
            connection.execute(statement)
    assert submissions(database) == 0


def test_a_read_session_sees_one_state_throughout(database: Database) -> None:
    with database.read() as connection:
        before = connection.scalar(select(func.count()).select_from(tables.submission))
        with database.write() as writer:
            writer.execute(insert(tables.submission).values(lane="icu"))
        assert connection.scalar(select(func.count()).select_from(tables.submission)) == before == 0
    assert submissions(database) == 1


def test_concurrent_writers_wait_for_each_other(database: Database) -> None:
    """Each reads a number and writes the next one: without waiting, numbers would be lost."""
    with database.write() as connection:
        key = connection.execute(insert(tables.submission).values(lane="icu").returning(tables.submission.c.id))
        key = key.scalar_one()
    errors: list[Exception] = []
    start = threading.Barrier(4)

    def count_up() -> None:
        start.wait()
        try:
            for _ in range(10):
                with database.write() as connection:
                    row = select(tables.submission.c.files_seen).where(tables.submission.c.id == key).with_for_update()
                    seen = connection.scalar(row)
                    connection.execute(
                        tables.submission.update().where(tables.submission.c.id == key).values(files_seen=seen + 1)
                    )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with database.read() as connection:
        assert connection.scalar(select(tables.submission.c.files_seen)) == 40


def test_foreign_keys_hold(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(insert(tables.bundle_alias).values(alias="champion", bundle_id=77))


def test_a_session_survives_a_savepoint_that_is_rolled_back(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(tables.submission).values(lane="icu"))
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(insert(tables.submission).values(lane="nonsense"))
        connection.execute(insert(tables.submission).values(lane="archive"))
    assert submissions(database) == 2


def test_sqlite_keeps_what_was_committed() -> None:
    """WAL and a full sync: a power cut loses nothing that was said to be written."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{Path(folder) / 'a.sqlite'}")
        with database.write() as connection:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        database.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_busy_and_broken_are_told_apart(database: Database) -> None:
    assert is_busy(OperationalError("SELECT 1", {}, Exception("database is locked")))
    assert not is_busy(IntegrityError("INSERT", {}, Exception("CHECK constraint failed")))


# The clock


def test_now_is_now_and_may_be_shifted(database: Database) -> None:
    with database.read() as connection:
        now, later, earlier = connection.execute(
            select(database_now(), database_now(3600.5), database_now(-86_400))
        ).one()
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=5)
    assert abs(later - now - timedelta(seconds=3600.5)) < timedelta(seconds=1)
    assert abs(now - earlier - timedelta(days=1)) < timedelta(seconds=1)
    assert now.tzinfo is not None


def test_seconds_since_counts_to_the_databases_now(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(tables.submission).values(lane="icu", scanned_at=database_now(-90)))
    with database.read() as connection:
        assert connection.scalar(select(seconds_since(tables.submission.c.scanned_at))) == pytest.approx(90, abs=5)
        assert connection.scalar(select(seconds_since(database_now(60)))) == pytest.approx(-60, abs=5)


def test_stored_times_and_the_databases_now_compare(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(tables.submission).values(lane="icu", scanned_at=datetime.now(UTC)))
    with database.read() as connection:
        scanned = tables.submission.c.scanned_at
        assert connection.scalar(select(func.count()).where(scanned > database_now(-300), scanned < database_now(300)))
        assert not connection.scalar(select(func.count()).where(scanned < database_now(-300)))


def test_times_are_utc_wherever_they_come_from(database: Database) -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    local = datetime(2026, 3, 4, 5, 6, 7, 891011, india)
    with database.write() as connection:
        connection.execute(insert(tables.submission).values(lane="icu", scanned_at=local))
    with database.read() as connection:
        stored = connection.scalar(select(tables.submission.c.scanned_at))
    assert stored == local
    assert stored.utcoffset() == timedelta(0)


def test_a_time_without_zone_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="time zone"), database.read() as connection:
        connection.scalar(select(literal(datetime(2026, 1, 1), UtcDateTime())))
