"""Where results go, and the outbox of what is on its way there.

A database that goes back forgets what was delivered: upgraded again, it would send only what is published later.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import schema.types

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

#: Index of ``delivery`` → columns, which rows.
INDEXES = {
    "ix_delivery_ready": (["destination_id", "priority", "job_id"], "state = 'ready'"),
    "ix_delivery_delayed": (["destination_id", "available_at"], "state = 'delayed'"),
    "ix_delivery_leased": (["destination_id", "leased_until"], "state = 'leased'"),
    "ix_delivery_failed": (["destination_id"], "state = 'failed'"),
    "ix_delivery_sent_at": (["destination_id", "sent_at"], None),
    "ix_delivery_job_id": (["job_id"], None),
}


def upgrade() -> None:
    op.create_table(
        "delivery_destination",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("configuration", sa.JSON(), nullable=False),
        sa.Column("added_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("removed_at", schema.types.UtcDateTime(), nullable=True),
        sa.Column("filled_until", schema.types.UtcDateTime(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("blocked_until", schema.types.UtcDateTime(), nullable=True),
        sa.Column("code", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('dicom', 'dicomweb')", name=op.f("ck_delivery_destination_kind")),
        sa.CheckConstraint("(failures = 0) = (code IS NULL)", name=op.f("ck_delivery_destination_code")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery_destination")),
        sa.UniqueConstraint("name", name=op.f("uq_delivery_destination_name")),
    )
    op.create_table(
        "delivery",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("destination_id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("output", sa.String(length=16), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("lease_id", sa.String(length=36), nullable=True),
        sa.Column("leased_until", schema.types.UtcDateTime(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("available_at", schema.types.UtcDateTime(), nullable=True),
        sa.Column("sent_at", schema.types.UtcDateTime(), nullable=True),
        sa.CheckConstraint(
            "state IN ('ready', 'leased', 'delayed', 'sent', 'failed', 'abandoned')", name=op.f("ck_delivery_state")
        ),
        sa.CheckConstraint(
            "output IN ('segmentation', 'report', 'overlay', 'heatmap')", name=op.f("ck_delivery_output")
        ),
        sa.CheckConstraint(
            "(state = 'leased') = (lease_id IS NOT NULL) AND (lease_id IS NULL) = (leased_until IS NULL)",
            name=op.f("ck_delivery_leased"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('delayed', 'failed', 'abandoned') OR code IS NOT NULL", name=op.f("ck_delivery_code")
        ),
        sa.CheckConstraint("state <> 'delayed' OR available_at IS NOT NULL", name=op.f("ck_delivery_delayed")),
        sa.CheckConstraint("state <> 'sent' OR sent_at IS NOT NULL", name=op.f("ck_delivery_sent")),
        sa.ForeignKeyConstraint(
            ["destination_id"],
            ["delivery_destination.id"],
            name=op.f("fk_delivery_destination_id_delivery_destination"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_delivery_job_id_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint(
            "destination_id",
            "job_id",
            "output",
            "revision",
            name=op.f("uq_delivery_destination_id_job_id_output_revision"),
        ),
    )
    for name, (columns, rows) in INDEXES.items():
        where = None if rows is None else sa.text(rows)
        op.create_index(name, "delivery", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    op.drop_table("delivery")
    op.drop_table("delivery_destination")
