"""The first tables: arrivals, instances, jobs, results, bundles, duties."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import schema.types

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


#: ``done`` and ``ineligible`` are final: no statement may take a film back out of them.
FINAL_STATE_TRIGGERS: dict[str, tuple[str, ...]] = {
    "sqlite": (
        """CREATE TRIGGER job_done_is_final BEFORE UPDATE OF state ON job
           WHEN OLD.state IN ('done', 'ineligible') AND NEW.state <> OLD.state
           BEGIN SELECT RAISE(ABORT, 'a finished job is final'); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION job_done_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN RAISE EXCEPTION 'a finished job is final' USING ERRCODE = 'check_violation'; END $$""",
        """CREATE TRIGGER job_done_is_final BEFORE UPDATE OF state ON job FOR EACH ROW
           WHEN (OLD.state IN ('done', 'ineligible') AND NEW.state <> OLD.state)
           EXECUTE FUNCTION job_done_is_final()""",
    ),
}
FINAL_STATE_TRIGGERS_DROP: dict[str, tuple[str, ...]] = {
    "sqlite": ("DROP TRIGGER IF EXISTS job_done_is_final",),
    "postgresql": (
        "DROP TRIGGER IF EXISTS job_done_is_final ON job",
        "DROP FUNCTION IF EXISTS job_done_is_final()",
    ),
}


def upgrade() -> None:
    op.create_table(
        "audit_event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("happened_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_event")),
    )
    with op.batch_alter_table("audit_event", schema=None) as batch_op:
        batch_op.create_index("ix_audit_event_happened_at", ["happened_at"], unique=False)

    op.create_table(
        "bundle",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("added_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bundle")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_bundle_name_version")),
        sa.UniqueConstraint("sha256", name=op.f("uq_bundle_sha256")),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("patient_key", sa.String(length=64), nullable=False),
        sa.Column("study_key", sa.String(length=64), nullable=False),
        sa.Column("series_key", sa.String(length=64), nullable=False),
        sa.Column("held_out", sa.Boolean(), nullable=False),
        sa.Column("created_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=True),
        sa.Column("file_hash", sa.String(length=64), nullable=True),
        sa.Column("alias_of", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.String(length=16), nullable=False),
        sa.Column("body_part", sa.String(length=64), nullable=False),
        sa.Column("view_position", sa.String(length=16), nullable=False),
        sa.Column("station", sa.String(length=64), nullable=False),
        sa.Column("manufacturer", sa.String(length=64), nullable=False),
        sa.Column("photometric_interpretation", sa.String(length=32), nullable=False),
        sa.Column("sex", sa.String(length=1), nullable=False),
        sa.Column("age_days", sa.Integer(), nullable=True),
        sa.Column("film_rows", sa.Integer(), nullable=True),
        sa.Column("film_columns", sa.Integer(), nullable=True),
        sa.Column("row_spacing", sa.Float(), nullable=True),
        sa.Column("column_spacing", sa.Float(), nullable=True),
        sa.Column("spacing_source", sa.String(length=16), nullable=True),
        sa.CheckConstraint("age_days IS NULL OR age_days BETWEEN 0 AND 47450", name=op.f("ck_instance_age")),
        sa.CheckConstraint("alias_of IS NULL OR alias_of <> id", name=op.f("ck_instance_alias_not_itself")),
        sa.ForeignKeyConstraint(["alias_of"], ["instance.id"], name=op.f("fk_instance_alias_of_instance")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("key", name=op.f("uq_instance_key")),
    )
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.create_index("ix_instance_created_at", ["created_at"], unique=False)
        batch_op.create_index("ix_instance_patient_key", ["patient_key"], unique=False)
        batch_op.create_index(
            "uq_instance_content_hash",
            ["content_hash"],
            unique=True,
            sqlite_where=sa.text("alias_of IS NULL AND content_hash IS NOT NULL"),
            postgresql_where=sa.text("alias_of IS NULL AND content_hash IS NOT NULL"),
        )

    op.create_table(
        "submission",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("created_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("scanned_at", schema.types.UtcDateTime(), nullable=True),
        sa.Column("lane", sa.String(length=16), nullable=False),
        sa.Column("scan_complete", sa.Boolean(), nullable=False),
        sa.Column("files_seen", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("not_dicom", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.CheckConstraint("lane IN ('icu', 'archive')", name=op.f("ck_submission_lane")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submission")),
    )
    op.create_table(
        "arrival",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("submission_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("instance_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("arrived_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("current", sa.Boolean(), nullable=False),
        sa.Column("code", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("file_hash", sa.String(length=64), nullable=True),
        sa.Column("content_hash", sa.String(length=64), nullable=True),
        sa.CheckConstraint("NOT current OR state IN ('instance', 'alias')", name=op.f("ck_arrival_current")),
        sa.CheckConstraint(
            "state IN ('instance', 'unverified', 'duplicate', 'conflict', 'alias', 'rejected', 'not_dicom')",
            name=op.f("ck_arrival_state"),
        ),
        sa.CheckConstraint(
            "state IN ('rejected', 'not_dicom') OR instance_id IS NOT NULL", name=op.f("ck_arrival_instance")
        ),
        sa.CheckConstraint("state NOT IN ('rejected', 'not_dicom') OR code IS NOT NULL", name=op.f("ck_arrival_code")),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name=op.f("fk_arrival_instance_id_instance")),
        sa.ForeignKeyConstraint(["submission_id"], ["submission.id"], name=op.f("fk_arrival_submission_id_submission")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrival")),
    )
    with op.batch_alter_table("arrival", schema=None) as batch_op:
        batch_op.create_index(
            "ix_arrival_conflict",
            ["id"],
            unique=False,
            sqlite_where=sa.text("state = 'conflict'"),
            postgresql_where=sa.text("state = 'conflict'"),
        )
        batch_op.create_index("ix_arrival_instance_id", ["instance_id"], unique=False)
        batch_op.create_index("ix_arrival_submission_id", ["submission_id"], unique=False)
        batch_op.create_index(
            "uq_arrival_current",
            ["instance_id"],
            unique=True,
            sqlite_where=sa.text("current"),
            postgresql_where=sa.text("current"),
        )

    op.create_table(
        "bundle_alias",
        sa.Column("alias", sa.String(length=16), nullable=False),
        sa.Column("bundle_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("since", schema.types.UtcDateTime(), nullable=False),
        sa.CheckConstraint("alias IN ('champion', 'candidate', 'previous')", name=op.f("ck_bundle_alias_alias")),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f("fk_bundle_alias_bundle_id_bundle")),
        sa.PrimaryKeyConstraint("alias", name=op.f("pk_bundle_alias")),
    )
    op.create_table(
        "engine",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("bundle_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("backend", sa.String(length=32), nullable=False),
        sa.Column("backend_version", sa.String(length=64), nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("precision", sa.String(length=16), nullable=False),
        sa.Column("verified_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("parity", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f("fk_engine_bundle_id_bundle")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_engine")),
        sa.UniqueConstraint(
            "bundle_id",
            "backend",
            "backend_version",
            "device",
            "precision",
            name=op.f("uq_engine_bundle_id_backend_backend_version_device_precision"),
        ),
    )
    op.create_table(
        "instance_identity",
        sa.Column("instance_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("patient_id", sa.String(length=64), nullable=False),
        sa.Column("issuer_of_patient_id", sa.String(length=64), nullable=False),
        sa.Column("accession_number", sa.String(length=64), nullable=False),
        sa.Column("study_date", sa.String(length=10), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_instance_identity_instance_id_instance"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_instance_identity")),
    )
    with op.batch_alter_table("instance_identity", schema=None) as batch_op:
        batch_op.create_index("ix_instance_identity_accession_number", ["accession_number"], unique=False)
        batch_op.create_index("ix_instance_identity_sop_instance_uid", ["sop_instance_uid"], unique=False)

    op.create_table(
        "worker",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("host", sa.String(length=128), nullable=False),
        sa.Column("process_id", sa.Integer(), nullable=False),
        sa.Column("boot_id", sa.String(length=36), nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("bundle_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("started_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("seen_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("stopped_at", schema.types.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f("fk_worker_bundle_id_bundle")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
        sa.UniqueConstraint("name", name=op.f("uq_worker_name")),
    )
    op.create_table(
        "duty",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("every_seconds", sa.Float(), nullable=False),
        sa.Column("due_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("claimed_by", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("claimed_until", schema.types.UtcDateTime(), nullable=True),
        sa.Column("finished_at", schema.types.UtcDateTime(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["claimed_by"], ["worker.id"], name=op.f("fk_duty_claimed_by_worker")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_duty")),
    )
    op.create_table(
        "identity",
        sa.Column("arrival_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("root", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("modified_ns", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["arrival_id"], ["arrival.id"], name=op.f("fk_identity_arrival_id_arrival"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("arrival_id", name=op.f("pk_identity")),
        sa.UniqueConstraint(
            "path", "member", "root", "size", "modified_ns", name=op.f("uq_identity_path_member_root_size_modified_ns")
        ),
    )
    op.create_table(
        "lease",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("worker_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("boot_id", sa.String(length=36), nullable=False),
        sa.Column("taken_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("expires_at", schema.types.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["worker_id"], ["worker.id"], name=op.f("fk_lease_worker_id_worker")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lease")),
    )
    with op.batch_alter_table("lease", schema=None) as batch_op:
        batch_op.create_index("ix_lease_expires_at", ["expires_at"], unique=False)
        batch_op.create_index("ix_lease_worker_id", ["worker_id"], unique=False)

    op.create_table(
        "submission_arrival",
        sa.Column("submission_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("arrival_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("seen_before", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["arrival_id"], ["arrival.id"], name=op.f("fk_submission_arrival_arrival_id_arrival"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["submission_id"], ["submission.id"], name=op.f("fk_submission_arrival_submission_id_submission")
        ),
        sa.PrimaryKeyConstraint("submission_id", "arrival_id", name=op.f("pk_submission_arrival")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("instance_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("arrival_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("bundle_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column("published", sa.Boolean(), nullable=False),
        sa.Column("lease_id", sa.String(length=36), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(length=32), nullable=True),
        sa.Column("stage", sa.String(length=16), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("available_at", schema.types.UtcDateTime(), nullable=True),
        sa.Column("started_at", schema.types.UtcDateTime(), nullable=True),
        sa.Column("finished_at", schema.types.UtcDateTime(), nullable=True),
        sa.Column("finished_lease", sa.String(length=36), nullable=True),
        sa.Column("wait_seconds", sa.Float(), nullable=True),
        sa.Column("run_seconds", sa.Float(), nullable=True),
        sa.CheckConstraint("(state = 'leased') = (lease_id IS NOT NULL)", name=op.f("ck_job_leased")),
        sa.CheckConstraint(
            "kind <> 'verify' OR arrival_id IS NOT NULL OR state <> 'ready'", name=op.f("ck_job_verify")
        ),
        sa.CheckConstraint("kind IN ('process', 'verify')", name=op.f("ck_job_kind")),
        sa.CheckConstraint("state <> 'delayed' OR available_at IS NOT NULL", name=op.f("ck_job_delayed")),
        sa.CheckConstraint(
            "state <> 'done' OR (finished_at IS NOT NULL AND (kind = 'verify' OR bundle_id IS NOT NULL))",
            name=op.f("ck_job_done"),
        ),
        sa.CheckConstraint(
            "state IN ('ready', 'leased', 'done', 'ineligible', 'delayed', 'failed', 'cancelled')",
            name=op.f("ck_job_state"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('failed', 'ineligible', 'delayed') OR code IS NOT NULL", name=op.f("ck_job_code")
        ),
        sa.CheckConstraint("state NOT IN ('ready', 'delayed') OR bundle_id IS NULL", name=op.f("ck_job_unbound")),
        sa.ForeignKeyConstraint(
            ["arrival_id"], ["arrival.id"], name=op.f("fk_job_arrival_id_arrival"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundle.id"], name=op.f("fk_job_bundle_id_bundle")),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"], name=op.f("fk_job_instance_id_instance")),
        sa.ForeignKeyConstraint(["lease_id"], ["lease.id"], name=op.f("fk_job_lease_id_lease")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(
            "ix_job_delayed",
            ["available_at"],
            unique=False,
            sqlite_where=sa.text("state = 'delayed'"),
            postgresql_where=sa.text("state = 'delayed'"),
        )
        batch_op.create_index(
            "ix_job_failed",
            ["finished_at"],
            unique=False,
            sqlite_where=sa.text("state = 'failed'"),
            postgresql_where=sa.text("state = 'failed'"),
        )
        batch_op.create_index("ix_job_finished_at", ["finished_at"], unique=False)
        batch_op.create_index("ix_job_instance_id", ["instance_id"], unique=False)
        batch_op.create_index(
            "ix_job_lease_id",
            ["lease_id"],
            unique=False,
            sqlite_where=sa.text("lease_id IS NOT NULL"),
            postgresql_where=sa.text("lease_id IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_job_ready",
            ["priority", "id"],
            unique=False,
            sqlite_where=sa.text("state = 'ready'"),
            postgresql_where=sa.text("state = 'ready'"),
        )
        batch_op.create_index(
            "ix_job_suspect",
            ["priority", "id"],
            unique=False,
            sqlite_where=sa.text("state = 'ready' AND crashes > 0"),
            postgresql_where=sa.text("state = 'ready' AND crashes > 0"),
        )
        batch_op.create_index(
            "uq_job_bundle",
            ["instance_id", "bundle_id", "revision", "generation"],
            unique=True,
            sqlite_where=sa.text("kind = 'process' AND bundle_id IS NOT NULL"),
            postgresql_where=sa.text("kind = 'process' AND bundle_id IS NOT NULL"),
        )
        batch_op.create_index(
            "uq_job_open",
            ["instance_id"],
            unique=True,
            sqlite_where=sa.text("kind = 'process' AND state IN ('ready', 'delayed', 'leased')"),
            postgresql_where=sa.text("kind = 'process' AND state IN ('ready', 'delayed', 'leased')"),
        )
        batch_op.create_index(
            "uq_job_verify",
            ["arrival_id"],
            unique=True,
            sqlite_where=sa.text("kind = 'verify'"),
            postgresql_where=sa.text("kind = 'verify'"),
        )

    op.create_table(
        "attempt",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("ended_at", schema.types.UtcDateTime(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("code", sa.String(length=32), nullable=True),
        sa.Column("stage", sa.String(length=16), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_attempt_job_id_job"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["worker_id"], ["worker.id"], name=op.f("fk_attempt_worker_id_worker")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempt")),
    )
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.create_index("ix_attempt_job_id", ["job_id"], unique=False)

    op.create_table(
        "failure_flag",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("rule", sa.String(length=64), nullable=False),
        sa.Column("rule_version", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=8), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=True),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("threshold", sa.Float(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.CheckConstraint("source IN ('raw', 'cleaned', 'input', 'result')", name=op.f("ck_failure_flag_source")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_failure_flag_job_id_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_failure_flag")),
    )
    with op.batch_alter_table("failure_flag", schema=None) as batch_op:
        batch_op.create_index("ix_failure_flag_job_id", ["job_id"], unique=False)
        batch_op.create_index("ix_failure_flag_rule", ["rule"], unique=False)

    op.create_table(
        "finding_score",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("finding", sa.String(length=64), nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.Column("spread", sa.Float(), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False),
        sa.Column("positive", sa.Boolean(), nullable=False),
        sa.Column("members", sa.JSON(), nullable=False),
        sa.CheckConstraint("probability BETWEEN 0 AND 1", name=op.f("ck_finding_score_probability")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_finding_score_job_id_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "finding", name=op.f("pk_finding_score")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("finding_score", schema=None) as batch_op:
        batch_op.create_index("ix_finding_score_finding", ["finding", "probability"], unique=False)

    op.create_table(
        "heatmap",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("encoding", sa.String(length=16), nullable=False),
        sa.Column("maps", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_heatmap_job_id_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_heatmap")),
    )
    op.create_table(
        "region_measurement",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("area_pixels", sa.Integer(), nullable=False),
        sa.Column("area_fraction", sa.Float(), nullable=False),
        sa.Column("area_mm2", sa.Float(), nullable=True),
        sa.Column("components", sa.Integer(), nullable=False),
        sa.Column("centroid_row", sa.Float(), nullable=True),
        sa.Column("centroid_column", sa.Float(), nullable=True),
        sa.Column("box_top", sa.Integer(), nullable=True),
        sa.Column("box_left", sa.Integer(), nullable=True),
        sa.Column("box_bottom", sa.Integer(), nullable=True),
        sa.Column("box_right", sa.Integer(), nullable=True),
        sa.Column("mean_probability", sa.Float(), nullable=True),
        sa.Column("repaired_pixels", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "area_pixels >= 0 AND area_fraction BETWEEN 0 AND 1", name=op.f("ck_region_measurement_area")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_region_measurement_job_id_job"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "region", name=op.f("pk_region_measurement")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "segmentation",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("encoding", sa.String(length=16), nullable=False),
        sa.Column("mask", sa.LargeBinary(), nullable=False),
        sa.Column("raw_mask", sa.LargeBinary(), nullable=True),
        sa.Column("resampler_version", sa.Integer(), nullable=False),
        sa.Column("film_rows", sa.Integer(), nullable=False),
        sa.Column("film_columns", sa.Integer(), nullable=False),
        sa.Column("flip_columns", sa.Boolean(), nullable=False),
        sa.Column("flip_rows", sa.Boolean(), nullable=False),
        sa.Column("carina_threshold", sa.Float(), nullable=True),
        sa.Column("repaired_pixels", sa.Integer(), nullable=False),
        sa.Column("voi_policy", sa.String(length=32), nullable=False),
        sa.Column("engine", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_segmentation_job_id_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_segmentation")),
    )
    for statement in FINAL_STATE_TRIGGERS[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in FINAL_STATE_TRIGGERS_DROP[op.get_bind().dialect.name]:
        op.execute(statement)
    op.drop_table("segmentation")
    op.drop_table("region_measurement")
    op.drop_table("heatmap")
    with op.batch_alter_table("finding_score", schema=None) as batch_op:
        batch_op.drop_index("ix_finding_score_finding")

    op.drop_table("finding_score")
    with op.batch_alter_table("failure_flag", schema=None) as batch_op:
        batch_op.drop_index("ix_failure_flag_rule")
        batch_op.drop_index("ix_failure_flag_job_id")

    op.drop_table("failure_flag")
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.drop_index("ix_attempt_job_id")

    op.drop_table("attempt")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_job_verify", sqlite_where=sa.text("kind = 'verify'"), postgresql_where=sa.text("kind = 'verify'")
        )
        batch_op.drop_index(
            "uq_job_open",
            sqlite_where=sa.text("kind = 'process' AND state IN ('ready', 'delayed', 'leased')"),
            postgresql_where=sa.text("kind = 'process' AND state IN ('ready', 'delayed', 'leased')"),
        )
        batch_op.drop_index(
            "uq_job_bundle",
            sqlite_where=sa.text("kind = 'process' AND bundle_id IS NOT NULL"),
            postgresql_where=sa.text("kind = 'process' AND bundle_id IS NOT NULL"),
        )
        batch_op.drop_index(
            "ix_job_suspect",
            sqlite_where=sa.text("state = 'ready' AND crashes > 0"),
            postgresql_where=sa.text("state = 'ready' AND crashes > 0"),
        )
        batch_op.drop_index(
            "ix_job_ready", sqlite_where=sa.text("state = 'ready'"), postgresql_where=sa.text("state = 'ready'")
        )
        batch_op.drop_index(
            "ix_job_lease_id",
            sqlite_where=sa.text("lease_id IS NOT NULL"),
            postgresql_where=sa.text("lease_id IS NOT NULL"),
        )
        batch_op.drop_index("ix_job_instance_id")
        batch_op.drop_index("ix_job_finished_at")
        batch_op.drop_index(
            "ix_job_failed", sqlite_where=sa.text("state = 'failed'"), postgresql_where=sa.text("state = 'failed'")
        )
        batch_op.drop_index(
            "ix_job_delayed", sqlite_where=sa.text("state = 'delayed'"), postgresql_where=sa.text("state = 'delayed'")
        )

    op.drop_table("job")
    op.drop_table("submission_arrival")
    with op.batch_alter_table("lease", schema=None) as batch_op:
        batch_op.drop_index("ix_lease_worker_id")
        batch_op.drop_index("ix_lease_expires_at")

    op.drop_table("lease")
    op.drop_table("identity")
    op.drop_table("duty")
    op.drop_table("worker")
    with op.batch_alter_table("instance_identity", schema=None) as batch_op:
        batch_op.drop_index("ix_instance_identity_sop_instance_uid")
        batch_op.drop_index("ix_instance_identity_accession_number")

    op.drop_table("instance_identity")
    op.drop_table("engine")
    op.drop_table("bundle_alias")
    with op.batch_alter_table("arrival", schema=None) as batch_op:
        batch_op.drop_index("uq_arrival_current", sqlite_where=sa.text("current"), postgresql_where=sa.text("current"))
        batch_op.drop_index("ix_arrival_submission_id")
        batch_op.drop_index("ix_arrival_instance_id")
        batch_op.drop_index(
            "ix_arrival_conflict",
            sqlite_where=sa.text("state = 'conflict'"),
            postgresql_where=sa.text("state = 'conflict'"),
        )

    op.drop_table("arrival")
    op.drop_table("submission")
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_instance_content_hash",
            sqlite_where=sa.text("alias_of IS NULL AND content_hash IS NOT NULL"),
            postgresql_where=sa.text("alias_of IS NULL AND content_hash IS NOT NULL"),
        )
        batch_op.drop_index("ix_instance_patient_key")
        batch_op.drop_index("ix_instance_created_at")

    op.drop_table("instance")
    op.drop_table("bundle")
    with op.batch_alter_table("audit_event", schema=None) as batch_op:
        batch_op.drop_index("ix_audit_event_happened_at")

    op.drop_table("audit_event")
