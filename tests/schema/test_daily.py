from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from stored_films import Films, result

from schema import tables
from schema.daily import COUNTED, count_days
from schema.database import Database
from worker.findings.flag_rules import AGE_BANDS, AGE_UNKNOWN

NIGHT = datetime(2026, 3, 1, 23, 0, tzinfo=UTC)
VIEWS = ("overnight_summary", "turnaround", "film_drift", "flag_drift", "score_drift", "area_drift", "flag_rates",
         "finding_rates")  # fmt: skip


def answers(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """What people read, numbers as floats: whether a sum is exact or of which type it is does not matter."""
    with database.read() as connection:
        found = {}
        for view in VIEWS:
            rows = connection.execute(text(f"SELECT * FROM {view}"))
            found[view] = sorted(tuple(_plain(value) for value in row) for row in rows)
        return found


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else str(value) if isinstance(value, date) else round(
        float(value), 9
    )  # fmt: skip


def open_days(database: Database) -> list[date]:
    with database.read() as connection:
        return list(connection.scalars(select(tables.daily_open.c.day).order_by(tables.daily_open.c.day)))


def counted_rows(database: Database) -> dict[str, int]:
    with database.read() as connection:
        return {table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in COUNTED}


@pytest.fixture
def nights(films: Films) -> Films:
    """Two nights, with everything that is counted."""
    for day, station, age in ((0, "A", 100), (0, "A", 3000), (1, "B", None), (1, "A", 100)):
        ends = NIGHT + timedelta(days=day)
        job = films.film(
            "done", finished_at=ends, stored=result(flags=("low_confidence",) if age else (), pneumonia=0.2 + 0.3 * day)
        )
        instance = films.value(select(tables.job.c.instance_id).where(tables.job.c.id == job))
        films.update(tables.instance, instance, station=station, age_days=age)
    films.film("failed", finished_at=NIGHT, wait_seconds=None, run_seconds=None)
    films.film("ineligible", finished_at=NIGHT, priority=10)
    shadow = films.job(
        1, "done", kind="shadow", published=False, priority=20, bundle_id=films.add_bundle("2"), finished_at=NIGHT
    )
    with films.database.write() as connection:
        connection.execute(insert(tables.failure_flag).values(job_id=shadow, rule="x", rule_version=1, source="raw"))
    return films


def test_counting_changes_no_answer(nights: Films) -> None:
    database = nights.database
    before = answers(database)
    assert all(before.values())
    assert open_days(database) == [date(2026, 3, 1), date(2026, 3, 2)]
    assert set(counted_rows(database).values()) == {0}
    assert count_days(database, limit=1) == 1
    assert open_days(database) == [date(2026, 3, 2)]
    assert answers(database) == before
    assert (count_days(database), count_days(database)) == (1, 0)
    assert answers(database) == before
    assert min(counted_rows(database).values()) > 1


def test_a_day_that_has_not_ended_is_not_counted(films: Films) -> None:
    films.film("done", stored=result())
    assert count_days(films.database) == 0
    assert len(open_days(films.database)) == 1


@pytest.mark.parametrize("zone", [-12, 14])
def test_days_are_utc_whoever_asks(films: Films, zone: int) -> None:
    """A session of another time zone sees, and counts, the same days."""
    films.film("done", stored=result(), finished_at=NIGHT)
    films.film("done", stored=result(), finished_at=NIGHT.replace(hour=0, minute=0))
    with films.database.write() as connection:
        if films.database.dialect == "postgresql":
            connection.execute(text(f"SET LOCAL timezone = 'Etc/GMT{-zone:+d}'"))
        connection.execute(update(tables.job).values(attempts=7))
        found = connection.execute(text("SELECT day, done FROM overnight_summary")).all()
    assert [(str(row.day), int(row.done)) for row in found] == [("2026-03-01", 2)]
    assert open_days(films.database) == [date(2026, 3, 1)]


CHANGES = {
    "published": update(tables.job).where(tables.job.c.id == 1).values(published=False),
    "cancelled": update(tables.job).where(tables.job.c.state == "failed").values(state="cancelled"),
    "retried": update(tables.job)
    .where(tables.job.c.state == "failed")
    .values(state="ready", finished_at=None, bundle_id=None, code=None),
    "moved": update(tables.job).where(tables.job.c.id == 1).values(finished_at=NIGHT + timedelta(days=1)),
    "promoted": update(tables.job)
    .where(tables.job.c.kind == "shadow")
    .values(kind="process", priority=0, published=True),
    "deleted": delete(tables.job).where(tables.job.c.id == 1),
    "merged": insert(tables.job).values(
        instance_id=3, kind="process", state="failed", code="X", priority=0, finished_at=NIGHT
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_day_opens_again_whatever_changes_it(nights: Films, change: str) -> None:
    database = nights.database
    count_days(database)
    assert open_days(database) == []
    before = answers(database)
    with database.write() as connection:
        connection.execute(CHANGES[change])
    assert date(2026, 3, 1) in open_days(database)
    changed = answers(database)
    assert changed != before
    count_days(database)
    assert open_days(database) == []
    assert answers(database) == changed


def test_work_on_open_films_opens_no_day(nights: Films) -> None:
    count_days(nights.database)
    films = nights.film("ready")
    nights.update(tables.job, films, attempts=1)
    assert open_days(nights.database) == []


def test_a_film_that_ends_while_its_day_is_counted_is_not_lost(nights: Films) -> None:
    """PostgreSQL: who counts waits for it, or it opens the day again. SQLite: one of them is first."""
    if nights.database.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    database = nights.database
    counter = Thread(target=count_days, args=(database,))
    with database.write() as connection:
        connection.execute(update(tables.job).where(tables.job.c.id == 1).values(published=False))
        counter.start()
        # Nobody can tell when a thread waits for a lock but the database.
        while not connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
            assert counter.is_alive()
    counter.join()
    assert open_days(database) == []
    with database.read() as connection:
        done = connection.scalar(text("SELECT done FROM daily_lane WHERE day = '2026-03-01' AND lane = 'icu'"))
    assert done == 1


def test_age_bands_are_those_of_the_rules(films: Films) -> None:
    edges = [band.until_days for band in AGE_BANDS[:-1]]
    ages = [None, 0, *(int(edge) for edge in edges), *(int(edge) + 1 for edge in edges)]
    expected = [
        (AGE_UNKNOWN if age is None else next(band for band in AGE_BANDS if age < band.until_days)).name for age in ages
    ]
    jobs = []
    for age in ages:
        jobs.append(films.film("done", finished_at=NIGHT))
        films.update(tables.instance, len(jobs), age_days=age)
    with films.database.read() as connection:
        bands = dict(connection.execute(text("SELECT job_id, age_band FROM open_day_result")).all())
    assert [bands[job] for job in jobs] == expected


def test_counted_days_have_the_columns_of_their_views(database: Database) -> None:
    with database.read() as connection:
        for table, view in COUNTED.items():
            found = connection.execute(text(f"SELECT * FROM {view}")).keys()
            assert list(found) == list(table.columns.keys())
