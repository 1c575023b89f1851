"""What people see to: alerts, rebuilds and the record of what was done."""

from __future__ import annotations

from sqlalchemy import JSON, CheckConstraint, Column, Float, ForeignKey, Index, Integer, String, Table, Text, text

from schema.tables.base import metadata, moment, one_of, row_id
from schema.tables.states import RebuildState
from schema.types import Id

#: What needs a person. While it does, there is one row for it; it is closed when the trouble has been gone for a while.
alert = Table(
    "alert",
    metadata,
    row_id(),
    # What kind of trouble, of worker.monitor.alert_rules.RULES, and whose: a lane, a finding, a station.
    Column("rule", String(32), nullable=False),
    Column("subject", String(255), nullable=False),
    moment("opened_at", now=True),
    # When it was last seen, and since when it has not been.
    moment("seen_at", now=True),
    moment("quiet_since", nullable=True),
    moment("closed_at", nullable=True),
    Column("value", Float),
    Column("threshold", Float),
    Column("detail", Text, nullable=False, default=""),
    moment("acknowledged_at", nullable=True),
    # Somebody said that this is how it is from now on: drift is measured from here.
    moment("accepted_at", nullable=True),
    # When the webhook took the news.
    moment("opening_sent_at", nullable=True),
    moment("closing_sent_at", nullable=True),
    CheckConstraint("closed_at IS NULL OR quiet_since IS NOT NULL", name="closed"),
    # Never doubled.
    Index(
        "uq_alert_open",
        "rule",
        "subject",
        unique=True,
        sqlite_where=text("closed_at IS NULL"),
        postgresql_where=text("closed_at IS NULL"),
    ),
    Index("ix_alert_opened_at", "opened_at"),
)

#: A row for each time a bundle was built from films and their truth.
rebuild = Table(
    "rebuild",
    metadata,
    row_id(),
    moment("started_at", now=True),
    moment("finished_at", nullable=True),
    Column("state", String(16), nullable=False, default=RebuildState.RUNNING.value),
    # What is being done, or was when it ended; everything before it is done.
    Column("stage", String(16), nullable=False),
    # How many processes have begun with this stage: more than one where some of them died.
    Column("starts", Integer, nullable=False, default=1),
    Column("worker_id", Id, ForeignKey("worker.id")),
    Column("recipe", String(64), nullable=False),
    Column("request", JSON, nullable=False),
    Column("folder", Text, nullable=False),
    # The newest label it may learn from; 0 where there was none.
    Column("last_label_id", Id, nullable=False, default=0),
    Column("champion_id", Id, ForeignKey("bundle.id")),
    # What came of it.
    Column("bundle_id", Id, ForeignKey("bundle.id")),
    Column("outcome", Text, nullable=False, default=""),
    Column("results", JSON, nullable=False),
    CheckConstraint(one_of("state", RebuildState), name="state"),
    CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished_at"),
    CheckConstraint("state <> 'finished' OR bundle_id IS NOT NULL", name="bundle"),
    # One at a time.
    Index(
        "uq_rebuild_running",
        "state",
        unique=True,
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
)

audit_event = Table(
    "audit_event",
    metadata,
    row_id(),
    moment("happened_at", now=True),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(128), nullable=False, default=""),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_event_happened_at", "happened_at"),
)
