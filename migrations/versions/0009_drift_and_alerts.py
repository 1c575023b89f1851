"""What detectors deliver, counted by day, alerts, and flags that ask nothing of anybody.

All days are counted anew at the next occasion. Films read before have no grey values. A database that goes back loses
the alerts and the grey values.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import schema.types

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
GREY = ("grey_mean", "grey_spread")

#: Every day that has results is open again: its new counts are not there yet.
SQLITE_OPEN = """INSERT OR IGNORE INTO daily_open (day, begins_at, ends_at)
    SELECT DISTINCT day, day || ' 00:00:00.000000', date(day, '+1 day') || ' 00:00:00.000000' FROM daily_film"""
POSTGRESQL_OPEN = """INSERT INTO daily_open (day, begins_at, ends_at)
    SELECT DISTINCT day, timezone('UTC', day::timestamp), timezone('UTC', day + interval '1 day') FROM daily_film
    ON CONFLICT DO NOTHING"""


def _group() -> list[sa.Column]:
    return [
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("bundle_id", ID, nullable=False, autoincrement=False),
        sa.Column("station", sa.String(length=64), nullable=False),
        sa.Column("age_band", sa.String(length=32), nullable=False),
    ]


def _make(name: str, key: list[sa.Column], counts: dict[str, sa.types.TypeEngine]) -> None:
    op.create_table(
        name,
        *key,
        *(sa.Column(column, kind, nullable=False) for column, kind in counts.items()),
        sa.PrimaryKeyConstraint(*(column.name for column in key), name=op.f(f"pk_{name}")),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f(f"fk_{name}_bundle_id_bundle")),
    )


def _time(name: str, *, nullable: bool = True) -> sa.Column:
    return sa.Column(name, schema.types.UtcDateTime(), nullable=nullable)


def upgrade() -> None:
    op.add_column("failure_flag", sa.Column("notice", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE failure_flag SET notice = true WHERE rule IN ('border_masked', 'header_incomplete')")
    for name in GREY:
        op.add_column("segmentation", sa.Column(name, sa.Float(), nullable=True))
    grey = dict.fromkeys((f"{name}_{what}" for name in GREY for what in ("sum", "squares")), sa.Float())
    spacing = {"spacing_films": ID, "spacing_sum": sa.Float(), "spacing_squares": sa.Float()}
    _make("daily_input", _group(), {"films": ID, "grey_films": ID, **grey, **spacing})
    view = sa.Column("view_position", sa.String(length=16), nullable=False)
    _make("daily_view", [*_group(), view], {"films": ID})
    op.create_table(
        "alert",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("rule", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        _time("opened_at", nullable=False),
        _time("seen_at", nullable=False),
        _time("quiet_since"),
        _time("closed_at"),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("threshold", sa.Float(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        *(_time(name) for name in ("acknowledged_at", "accepted_at", "opening_sent_at", "closing_sent_at")),
        sa.CheckConstraint("closed_at IS NULL OR quiet_since IS NOT NULL", name=op.f("ck_alert_closed")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert")),
    )
    still_open = sa.text("closed_at IS NULL")
    op.create_index(
        "uq_alert_open",
        "alert",
        ["rule", "subject"],
        unique=True,
        sqlite_where=still_open,
        postgresql_where=still_open,
    )
    op.create_index("ix_alert_opened_at", "alert", ["opened_at"])
    op.execute(SQLITE_OPEN if op.get_bind().dialect.name == "sqlite" else POSTGRESQL_OPEN)


def downgrade() -> None:
    for name in ("alert", "daily_view", "daily_input"):
        op.drop_table(name)
    for name in reversed(GREY):
        op.drop_column("segmentation", name)
    op.drop_column("failure_flag", "notice")
