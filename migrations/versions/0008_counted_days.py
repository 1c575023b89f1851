"""Counted days: what views over millions of films read instead of counting them anew.

All days are counted at the next occasion. A database that goes back loses nothing but the counts.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import schema.types

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
COUNTS = ("daily_region", "daily_finding", "daily_flag", "daily_film", "daily_lane")

#: Event on ``job`` → the rows whose day it opens.
EVENTS = {"INSERT": ("NEW",), "UPDATE": ("OLD", "NEW"), "DELETE": ("OLD",)}

SQLITE_OPEN = """INSERT OR IGNORE INTO daily_open (day, begins_at, ends_at)
    SELECT DISTINCT date(finished_at), date(finished_at) || ' 00:00:00.000000',
        date(finished_at, '+1 day') || ' 00:00:00.000000'
    FROM ({jobs}) WHERE finished_at IS NOT NULL"""
POSTGRESQL_OPEN = """INSERT INTO daily_open (day, begins_at, ends_at)
    SELECT DISTINCT date(timezone('UTC', finished_at)), timezone('UTC', date_trunc('day', timezone('UTC', finished_at))),
        timezone('UTC', date_trunc('day', timezone('UTC', finished_at)) + interval '1 day')
    FROM ({jobs}) AS jobs WHERE finished_at IS NOT NULL ON CONFLICT DO NOTHING"""


def _triggers(dialect: str) -> dict[str, str]:
    """Trigger → the statement that makes it."""
    found = {}
    for event, rows in EVENTS.items():
        name = f"job_opens_day_{event.lower()}"
        when = " OR ".join(f"{row}.finished_at IS NOT NULL" for row in rows)
        if dialect == "sqlite":
            jobs = " UNION ALL ".join(f"SELECT {row}.finished_at AS finished_at" for row in rows)
            act = f"BEGIN {SQLITE_OPEN.format(jobs=jobs)}; END"
        else:
            act = "EXECUTE FUNCTION job_opens_day()"
        found[name] = f"CREATE TRIGGER {name} AFTER {event} ON job FOR EACH ROW WHEN ({when}) {act}"
    return found


def _group() -> list[sa.Column]:
    return [
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("bundle_id", ID, nullable=False, autoincrement=False),
        sa.Column("station", sa.String(length=64), nullable=False),
        sa.Column("age_band", sa.String(length=32), nullable=False),
    ]


def _make(name: str, key: list[sa.Column], counts: dict[str, sa.types.TypeEngine]) -> None:
    columns = [sa.Column(column, kind, nullable=False) for column, kind in counts.items()]
    constraints: list[sa.Constraint] = [
        sa.PrimaryKeyConstraint(*(column.name for column in key), name=op.f(f"pk_{name}"))
    ]
    if any(column.name == "bundle_id" for column in key):
        constraints.append(
            sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f(f"fk_{name}_bundle_id_bundle"))
        )
    op.create_table(name, *key, *columns, *constraints)


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    op.create_table(
        "daily_open",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("begins_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("ends_at", schema.types.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_daily_open")),
    )
    op.create_table(
        "daily_lane",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("lane", sa.String(length=16), nullable=False),
        *(sa.Column(name, ID, nullable=False) for name in ("done", "flagged", "ineligible", "failed")),
        sa.Column("mean_wait_seconds", sa.Float(), nullable=True),
        sa.Column("mean_run_seconds", sa.Float(), nullable=True),
        sa.Column("timed", ID, nullable=False),
        sa.Column("timed_mean_wait_seconds", sa.Float(), nullable=True),
        sa.Column("timed_mean_run_seconds", sa.Float(), nullable=True),
        sa.Column("mean_seconds", sa.Float(), nullable=True),
        sa.Column("median_seconds", sa.Float(), nullable=True),
        sa.Column("percentile_95_seconds", sa.Float(), nullable=True),
        sa.Column("longest_seconds", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("day", "lane", name=op.f("pk_daily_lane")),
    )
    films = dict.fromkeys(("films", "flagged_films", "repaired_films", "repaired_pixels"), ID)
    _make("daily_film", _group(), films)
    rule = sa.Column("rule", sa.String(length=64), nullable=False)
    _make("daily_flag", [*_group(), rule], {"flagged_films": ID})
    finding = sa.Column("finding", sa.String(length=64), nullable=False)
    sums = dict.fromkeys(("probability_sum", "probability_squares", "spread_sum"), sa.Float())
    tenths = {f"tenth_{number}": ID for number in range(1, 11)}
    _make("daily_finding", [*_group(), finding], {"films": ID, "positive_films": ID, **sums, **tenths})
    region = sa.Column("region", sa.String(length=64), nullable=False)
    areas = dict.fromkeys(("area_fraction_sum", "area_fraction_squares"), sa.Float())
    _make("daily_region", [*_group(), region], {"films": ID, "missing_films": ID, **areas})
    op.create_index("ix_arrival_arrived_at", "arrival", ["arrived_at"])
    opening = SQLITE_OPEN if dialect == "sqlite" else POSTGRESQL_OPEN
    op.execute(opening.format(jobs="SELECT finished_at FROM job"))
    if dialect == "postgresql":
        # The table has one row or two. Without statistics the planner takes it for thousands and scans everything.
        op.execute("ALTER TABLE daily_open SET (autovacuum_analyze_threshold = 0, autovacuum_analyze_scale_factor = 0)")
        jobs = "VALUES (OLD.finished_at), (NEW.finished_at)"
        source = POSTGRESQL_OPEN.format(jobs=jobs).replace("AS jobs", "AS jobs (finished_at)")
        op.execute(
            f"CREATE FUNCTION job_opens_day() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {source}; RETURN NULL; END $$"
        )
    for statement in _triggers(dialect).values():
        op.execute(statement)


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    for name in _triggers(dialect):
        op.execute(f"DROP TRIGGER {name}" + (" ON job" if dialect == "postgresql" else ""))
    if dialect == "postgresql":
        op.execute("DROP FUNCTION job_opens_day()")
    op.drop_index("ix_arrival_arrived_at", "arrival")
    for name in COUNTS:
        op.drop_table(name)
    op.drop_table("daily_open")
