"""What readers say of films, and the rebuilds that learn from it.

A database that goes back loses both.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import schema.types

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "label",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("instance_id", ID, nullable=False),
        sa.Column("finding", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=16), nullable=False),
        sa.Column("reader", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("labelled_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("recorded_at", schema.types.UtcDateTime(), nullable=False),
        sa.CheckConstraint("value IN ('present', 'absent', 'uncertain')", name=op.f("ck_label_value")),
        sa.CheckConstraint(
            "source IN ('consecutive', 'random', 'disagreement', 'other')", name=op.f("ck_label_source")
        ),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name=op.f("fk_label_instance_id_instance")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label")),
    )
    op.create_index("ix_label_current", "label", ["instance_id", "finding", "reader", "labelled_at"])
    op.create_table(
        "rebuild",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("started_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("finished_at", schema.types.UtcDateTime(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("starts", sa.Integer(), nullable=False),
        sa.Column("worker_id", ID, nullable=True),
        sa.Column("recipe", sa.String(length=64), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("last_label_id", ID, nullable=False),
        sa.Column("champion_id", ID, nullable=True),
        sa.Column("bundle_id", ID, nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("results", sa.JSON(), nullable=False),
        sa.CheckConstraint("state IN ('running', 'finished', 'failed')", name=op.f("ck_rebuild_state")),
        sa.CheckConstraint("(state = 'running') = (finished_at IS NULL)", name=op.f("ck_rebuild_finished_at")),
        sa.CheckConstraint("state <> 'finished' OR bundle_id IS NOT NULL", name=op.f("ck_rebuild_bundle")),
        sa.ForeignKeyConstraint(["worker_id"], ["worker.id"], name=op.f("fk_rebuild_worker_id_worker")),
        sa.ForeignKeyConstraint(["champion_id"], ["bundle.id"], name=op.f("fk_rebuild_champion_id_bundle")),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f("fk_rebuild_bundle_id_bundle")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rebuild")),
    )
    op.create_index(
        "uq_rebuild_running",
        "rebuild",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )


def downgrade() -> None:
    op.drop_table("rebuild")
    op.drop_table("label")
