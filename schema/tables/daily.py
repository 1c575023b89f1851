"""Counted days: what the views would otherwise count anew in millions of rows.

``schema/daily.py`` writes them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Date, Float, ForeignKey, String, Table

from schema.tables.base import metadata, moment
from schema.types import Id

#: Days (UTC) that are counted when somebody asks: all that have no rows below, and all whose jobs changed since.
#: Triggers on ``job`` put them here.
daily_open = Table(
    "daily_open",
    metadata,
    Column("day", Date, primary_key=True),
    moment("begins_at"),
    moment("ends_at"),
)

daily_lane = Table(
    "daily_lane",
    metadata,
    Column("day", Date, primary_key=True),
    Column("lane", String(16), primary_key=True),
    Column("done", Id, nullable=False),
    Column("flagged", Id, nullable=False),
    Column("ineligible", Id, nullable=False),
    Column("failed", Id, nullable=False),
    Column("mean_wait_seconds", Float),
    Column("mean_run_seconds", Float),
    # Of results that are done and whose times are known.
    Column("timed", Id, nullable=False),
    Column("timed_mean_wait_seconds", Float),
    Column("timed_mean_run_seconds", Float),
    Column("mean_seconds", Float),
    Column("median_seconds", Float),
    Column("percentile_95_seconds", Float),
    Column("longest_seconds", Float),
)


def _group() -> list[Column[Any]]:
    return [
        Column("day", Date, primary_key=True),
        Column("bundle_id", Id, ForeignKey("bundle.id"), primary_key=True, autoincrement=False),
        Column("station", String(64), primary_key=True),
        Column("age_band", String(32), primary_key=True),
    ]


daily_film = Table(
    "daily_film",
    metadata,
    *_group(),
    Column("films", Id, nullable=False),
    Column("flagged_films", Id, nullable=False),
    Column("repaired_films", Id, nullable=False),
    Column("repaired_pixels", Id, nullable=False),
)

daily_flag = Table(
    "daily_flag",
    metadata,
    *_group(),
    Column("rule", String(64), primary_key=True),
    Column("flagged_films", Id, nullable=False),
)

daily_finding = Table(
    "daily_finding",
    metadata,
    *_group(),
    Column("finding", String(64), primary_key=True),
    Column("films", Id, nullable=False),
    Column("positive_films", Id, nullable=False),
    Column("probability_sum", Float, nullable=False),
    Column("probability_squares", Float, nullable=False),
    Column("spread_sum", Float, nullable=False),
    *(Column(f"tenth_{number}", Id, nullable=False) for number in range(1, 11)),
)

daily_region = Table(
    "daily_region",
    metadata,
    *_group(),
    Column("region", String(64), primary_key=True),
    Column("films", Id, nullable=False),
    Column("missing_films", Id, nullable=False),
    Column("area_fraction_sum", Float, nullable=False),
    Column("area_fraction_squares", Float, nullable=False),
)

daily_input = Table(
    "daily_input",
    metadata,
    *_group(),
    Column("films", Id, nullable=False),
    Column("grey_films", Id, nullable=False),
    Column("grey_mean_sum", Float, nullable=False),
    Column("grey_mean_squares", Float, nullable=False),
    Column("grey_spread_sum", Float, nullable=False),
    Column("grey_spread_squares", Float, nullable=False),
    Column("spacing_films", Id, nullable=False),
    Column("spacing_sum", Float, nullable=False),
    Column("spacing_squares", Float, nullable=False),
)

daily_view = Table(
    "daily_view",
    metadata,
    *_group(),
    Column("view_position", String(16), primary_key=True),
    Column("films", Id, nullable=False),
)
