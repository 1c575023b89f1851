"""Where results go: destinations and the outbox."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from schema.outputs import OutputKind
from schema.tables.base import metadata, moment, one_of, row_id
from schema.tables.states import DeliveryState, DestinationKind
from schema.types import Id

#: Where results go, as the file of ``CARINA_DELIVERY`` said at the last start.
delivery_destination = Table(
    "delivery_destination",
    metadata,
    row_id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    # Without secrets: those stay in files.
    Column("configuration", JSON, nullable=False),
    moment("added_at", now=True),
    # Set while the file does not name it.
    moment("removed_at", nullable=True),
    # Results published before are in the outbox, as far as the rules want them.
    moment("filled_until", now=True),
    # The circuit: how often it failed since it last took something, what it said, and until when it is left alone.
    Column("failures", Integer, nullable=False, default=0),
    moment("blocked_until", nullable=True),
    Column("code", String(32)),
    Column("detail", Text, nullable=False, default=""),
    CheckConstraint(one_of("kind", DestinationKind), name="kind"),
    CheckConstraint("(failures = 0) = (code IS NULL)", name="code"),
)

#: The outbox: one output of one result for one destination.
delivery = Table(
    "delivery",
    metadata,
    row_id(),
    Column("destination_id", Id, ForeignKey("delivery_destination.id"), nullable=False),
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), nullable=False),
    Column("output", String(16), nullable=False),
    # The result's: job.revision.
    Column("revision", Integer, nullable=False),
    # The film's: job.priority.
    Column("priority", SmallInteger, nullable=False),
    Column("state", String(16), nullable=False, default=DeliveryState.READY.value),
    # The fencing token of who is sending it, and how long its silence is borne.
    Column("lease_id", String(36)),
    moment("leased_until", nullable=True),
    Column("attempts", Integer, nullable=False, default=0),
    Column("code", String(32)),
    Column("detail", Text, nullable=False, default=""),
    moment("created_at", now=True),
    moment("available_at", nullable=True),
    moment("sent_at", nullable=True),
    UniqueConstraint("destination_id", "job_id", "output", "revision"),
    CheckConstraint(one_of("state", DeliveryState), name="state"),
    CheckConstraint(one_of("output", OutputKind), name="output"),
    CheckConstraint(
        "(state = 'leased') = (lease_id IS NOT NULL) AND (lease_id IS NULL) = (leased_until IS NULL)", name="leased"
    ),
    CheckConstraint("state NOT IN ('delayed', 'failed', 'abandoned') OR code IS NOT NULL", name="code"),
    CheckConstraint("state <> 'delayed' OR available_at IS NOT NULL", name="delayed"),
    CheckConstraint("state <> 'sent' OR sent_at IS NOT NULL", name="sent"),
    Index(
        "ix_delivery_ready",
        "destination_id",
        "priority",
        "job_id",
        sqlite_where=text("state = 'ready'"),
        postgresql_where=text("state = 'ready'"),
    ),
    Index(
        "ix_delivery_delayed",
        "destination_id",
        "available_at",
        sqlite_where=text("state = 'delayed'"),
        postgresql_where=text("state = 'delayed'"),
    ),
    Index(
        "ix_delivery_leased",
        "destination_id",
        "leased_until",
        sqlite_where=text("state = 'leased'"),
        postgresql_where=text("state = 'leased'"),
    ),
    Index(
        "ix_delivery_failed",
        "destination_id",
        sqlite_where=text("state = 'failed'"),
        postgresql_where=text("state = 'failed'"),
    ),
    Index("ix_delivery_sent_at", "destination_id", "sent_at"),
    Index("ix_delivery_job_id", "job_id"),
)
