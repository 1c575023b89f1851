"""Regions that readers drew, and how well bundles do on labelled films as time goes by.

A database that goes back loses both; the numbers can be computed again, the readers' regions cannot.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import schema.types

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "label_map",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("instance_id", ID, nullable=False),
        sa.Column("reader", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("encoding", sa.String(length=16), nullable=False),
        sa.Column("mask", sa.LargeBinary(), nullable=False),
        sa.Column("labelled_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("recorded_at", schema.types.UtcDateTime(), nullable=False),
        sa.CheckConstraint(
            "source IN ('consecutive', 'random', 'disagreement', 'other')", name=op.f("ck_label_map_source")
        ),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name=op.f("fk_label_map_instance_id_instance")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label_map")),
    )
    op.create_index("ix_label_map_current", "label_map", ["instance_id", "reader", "labelled_at"])
    if op.get_bind().dialect.name == "postgresql":
        # Compressed by ourselves already, as migration 0002 says of results.
        op.execute("ALTER TABLE label_map ALTER COLUMN mask SET STORAGE EXTERNAL")
    op.create_table(
        "region_dice",
        sa.Column("label_map_id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("dice", sa.Float(), nullable=True),
        sa.CheckConstraint("dice BETWEEN 0 AND 1", name=op.f("ck_region_dice_dice")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_region_dice_job_id_job"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["label_map_id"], ["label_map.id"], name=op.f("fk_region_dice_label_map_id_label_map")),
        sa.PrimaryKeyConstraint("label_map_id", "job_id", "region", name=op.f("pk_region_dice")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_region_dice_job_id", "region_dice", ["job_id"])
    op.create_table(
        "auc_tracking",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("bundle_id", ID, nullable=False),
        sa.Column("finding", sa.String(length=64), nullable=False),
        sa.Column("cohort", sa.String(length=16), nullable=False),
        sa.Column("cohort_value", sa.String(length=64), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("starts_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("ends_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("computed_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("readers", sa.String(length=16), nullable=False),
        sa.Column("positives", sa.Integer(), nullable=False),
        sa.Column("negatives", sa.Integer(), nullable=False),
        sa.Column("patients", sa.Integer(), nullable=False),
        sa.Column("left_out_training", sa.Integer(), nullable=False),
        sa.Column("left_out_chosen", sa.Integer(), nullable=False),
        sa.Column("left_out_uncertain", sa.Integer(), nullable=False),
        sa.Column("too_few", sa.Boolean(), nullable=False),
        sa.Column("replicates", sa.Integer(), nullable=False),
        sa.Column("auroc", sa.Float(), nullable=True),
        sa.Column("auroc_low", sa.Float(), nullable=True),
        sa.Column("auroc_high", sa.Float(), nullable=True),
        sa.Column("delong_low", sa.Float(), nullable=True),
        sa.Column("delong_high", sa.Float(), nullable=True),
        sa.Column("average_precision", sa.Float(), nullable=True),
        sa.Column("average_precision_low", sa.Float(), nullable=True),
        sa.Column("average_precision_high", sa.Float(), nullable=True),
        sa.Column("threshold", sa.Float(), nullable=True),
        sa.Column("sensitivity", sa.Float(), nullable=True),
        sa.Column("sensitivity_low", sa.Float(), nullable=True),
        sa.Column("sensitivity_high", sa.Float(), nullable=True),
        sa.Column("specificity", sa.Float(), nullable=True),
        sa.Column("specificity_low", sa.Float(), nullable=True),
        sa.Column("specificity_high", sa.Float(), nullable=True),
        sa.Column("f1", sa.Float(), nullable=True),
        sa.Column("f1_low", sa.Float(), nullable=True),
        sa.Column("f1_high", sa.Float(), nullable=True),
        sa.Column("youden_threshold", sa.Float(), nullable=True),
        sa.Column("brier", sa.Float(), nullable=True),
        sa.Column("calibration_slope", sa.Float(), nullable=True),
        sa.Column("calibration_intercept", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "cohort IN ('all', 'age', 'sex', 'view_position', 'station', 'lane')", name=op.f("ck_auc_tracking_cohort")
        ),
        sa.CheckConstraint("period IN ('7d', '30d', '90d', 'since_promotion')", name=op.f("ck_auc_tracking_period")),
        sa.CheckConstraint("NOT too_few OR auroc IS NULL", name=op.f("ck_auc_tracking_too_few")),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f("fk_auc_tracking_bundle_id_bundle")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_auc_tracking")),
        sa.UniqueConstraint(
            "bundle_id",
            "finding",
            "cohort",
            "cohort_value",
            "period",
            "ends_at",
            name="uq_auc_tracking_window",
        ),
    )
    op.create_index("ix_auc_tracking_newest", "auc_tracking", ["bundle_id", "ends_at"])
    op.create_table(
        "dice_tracking",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("bundle_id", ID, nullable=False),
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("cohort", sa.String(length=16), nullable=False),
        sa.Column("cohort_value", sa.String(length=64), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("starts_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("ends_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("computed_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("readers", sa.String(length=16), nullable=False),
        sa.Column("films", sa.Integer(), nullable=False),
        sa.Column("patients", sa.Integer(), nullable=False),
        sa.Column("too_few", sa.Boolean(), nullable=False),
        sa.Column("replicates", sa.Integer(), nullable=False),
        sa.Column("dice", sa.Float(), nullable=True),
        sa.Column("dice_low", sa.Float(), nullable=True),
        sa.Column("dice_high", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "cohort IN ('all', 'age', 'sex', 'view_position', 'station', 'lane')", name=op.f("ck_dice_tracking_cohort")
        ),
        sa.CheckConstraint("period IN ('7d', '30d', '90d', 'since_promotion')", name=op.f("ck_dice_tracking_period")),
        sa.CheckConstraint("NOT too_few OR dice IS NULL", name=op.f("ck_dice_tracking_too_few")),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f("fk_dice_tracking_bundle_id_bundle")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dice_tracking")),
        sa.UniqueConstraint(
            "bundle_id",
            "region",
            "cohort",
            "cohort_value",
            "period",
            "ends_at",
            name="uq_dice_tracking_window",
        ),
    )
    op.create_index("ix_dice_tracking_newest", "dice_tracking", ["bundle_id", "ends_at"])
    op.create_table(
        "auc_comparison",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("bundle_id", ID, nullable=False),
        sa.Column("candidate_id", ID, nullable=False),
        sa.Column("finding", sa.String(length=64), nullable=False),
        sa.Column("cohort", sa.String(length=16), nullable=False),
        sa.Column("cohort_value", sa.String(length=64), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("starts_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("ends_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("computed_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("readers", sa.String(length=16), nullable=False),
        sa.Column("positives", sa.Integer(), nullable=False),
        sa.Column("negatives", sa.Integer(), nullable=False),
        sa.Column("patients", sa.Integer(), nullable=False),
        sa.Column("too_few", sa.Boolean(), nullable=False),
        sa.Column("auroc", sa.Float(), nullable=True),
        sa.Column("candidate_auroc", sa.Float(), nullable=True),
        sa.Column("difference", sa.Float(), nullable=True),
        sa.Column("difference_low", sa.Float(), nullable=True),
        sa.Column("difference_high", sa.Float(), nullable=True),
        sa.Column("p_value", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "cohort IN ('all', 'age', 'sex', 'view_position', 'station', 'lane')", name=op.f("ck_auc_comparison_cohort")
        ),
        sa.CheckConstraint("period IN ('7d', '30d', '90d', 'since_promotion')", name=op.f("ck_auc_comparison_period")),
        sa.CheckConstraint("NOT too_few OR auroc IS NULL", name=op.f("ck_auc_comparison_too_few")),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f("fk_auc_comparison_bundle_id_bundle")),
        sa.ForeignKeyConstraint(["candidate_id"], ["bundle.id"], name=op.f("fk_auc_comparison_candidate_id_bundle")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_auc_comparison")),
        sa.UniqueConstraint(
            "bundle_id",
            "candidate_id",
            "finding",
            "cohort",
            "cohort_value",
            "period",
            "ends_at",
            name="uq_auc_comparison_window",
        ),
    )
    op.create_table(
        "tracking_run",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("finished_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("ends_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("last_label_id", ID, nullable=False),
        sa.Column("last_label_map_id", ID, nullable=False),
        sa.Column("computed", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tracking_run")),
    )


def downgrade() -> None:
    for table in ("tracking_run", "auc_comparison", "dice_tracking", "auc_tracking", "region_dice", "label_map"):
        op.drop_table(table)
