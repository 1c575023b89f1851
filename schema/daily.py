"""How do the views count a million films in the time of a few?

A day whose work has ended hardly changes any more, so it is counted once: the tables ``daily_*`` hold what the views
``open_day_*`` find. Days in ``daily_open`` are counted whenever somebody asks; a view for people reads both, so its
answer is exact at any moment. Triggers on ``job`` open a day again whatever changes one of its jobs: a retry, a
promotion, a merge, a patient who is forgotten.

A day's results are counted in the group that the film's station and age have at that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from sqlalchemy import Connection, Select, Table, delete, insert, literal_column, select, text

from schema.database import Database
from schema.tables import (
    daily_film,
    daily_finding,
    daily_flag,
    daily_input,
    daily_lane,
    daily_open,
    daily_region,
    daily_view,
)
from schema.types import database_now

#: Table of counted days → the view that counts the open ones; both have the same columns.
COUNTED: dict[Table, str] = {
    daily_lane: "open_day_lane",
    daily_film: "open_day_film",
    daily_flag: "open_day_flag",
    daily_finding: "open_day_finding",
    daily_region: "open_day_region",
    daily_input: "open_day_input",
    daily_view: "open_day_view",
}

#: Days to a transaction. SQLite cannot rank the times of one day without those of all open days, so it takes many at
#: once; on PostgreSQL workers would have to wait longer.
DAYS_TOGETHER = {"sqlite": 25, "postgresql": 1}


def count_days(database: Database, limit: int = 100) -> int:
    """Count the days (UTC) that have ended, the oldest first and at most ``limit``; returns how many.

    Films that end meanwhile wait for the transaction: on PostgreSQL a fraction of a second for a night of thousands.
    """
    ended = select(daily_open.c.day).where(daily_open.c.ends_at <= database_now()).order_by(daily_open.c.day)
    with database.read() as connection:
        days = list(connection.scalars(ended.limit(limit)))
    together = DAYS_TOGETHER[database.dialect]
    for first in range(0, len(days), together):
        with database.write() as connection:
            _count(connection, days[first : first + together])
    return len(days)


def _count(connection: Connection, days: Sequence[date]) -> None:
    if connection.dialect.name == "postgresql":
        # The triggers insert here: who changed a job of these days has committed, and is counted, or comes after us.
        connection.execute(text("LOCK TABLE daily_open IN SHARE ROW EXCLUSIVE MODE"))
    for table, view in COUNTED.items():
        connection.execute(delete(table).where(table.c.day.in_(days)))
        connection.execute(insert(table).from_select(table.columns.keys(), _of_view(table, view, days)))
    connection.execute(delete(daily_open).where(daily_open.c.day.in_(days)))


def _of_view(table: Table, view: str, days: Sequence[date]) -> Select[tuple[object, ...]]:
    columns = [literal_column(name, column.type).label(name) for name, column in table.columns.items()]
    return select(*columns).select_from(text(view)).where(literal_column("day", table.c.day.type).in_(days))
