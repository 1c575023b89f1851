"""What must be done, by whom and with what: jobs, attempts, workers, duties, bundles and engines."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
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

from schema.tables.base import metadata, moment, one_of, row_id
from schema.tables.states import SHADOW_PRIORITY, JobKind, JobState
from schema.types import Id

bundle = Table(
    "bundle",
    metadata,
    row_id(),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    moment("added_at", now=True),
    Column("manifest", JSON, nullable=False),
    UniqueConstraint("name", "version"),
)

bundle_alias = Table(
    "bundle_alias",
    metadata,
    Column("alias", String(16), primary_key=True),
    Column("bundle_id", Id, ForeignKey("bundle.id"), nullable=False),
    moment("since", now=True),
    CheckConstraint("alias IN ('champion', 'candidate', 'previous')", name="alias"),
)

engine = Table(
    "engine",
    metadata,
    row_id(),
    Column("bundle_id", Id, ForeignKey("bundle.id"), nullable=False),
    Column("backend", String(32), nullable=False),
    Column("backend_version", String(64), nullable=False),
    Column("device", String(128), nullable=False),
    Column("precision", String(16), nullable=False),
    moment("verified_at", now=True),
    Column("parity", JSON, nullable=False),
    UniqueConstraint("bundle_id", "backend", "backend_version", "device", "precision"),
)

worker = Table(
    "worker",
    metadata,
    row_id(),
    Column("name", String(128), nullable=False, unique=True),
    Column("host", String(128), nullable=False),
    Column("process_id", Integer, nullable=False),
    Column("boot_id", String(36), nullable=False),
    Column("device", String(128), nullable=False, default=""),
    Column("version", String(32), nullable=False),
    Column("bundle_id", Id, ForeignKey("bundle.id")),
    Column("home_free_bytes", BigInteger),
    moment("started_at", now=True),
    moment("seen_at", now=True),
    moment("stopped_at", nullable=True),
)

lease = Table(
    "lease",
    metadata,
    # A UUID: the fencing token. Who no longer holds it writes nothing.
    Column("id", String(36), primary_key=True),
    Column("worker_id", Id, ForeignKey("worker.id"), nullable=False),
    Column("boot_id", String(36), nullable=False),
    moment("taken_at", now=True),
    moment("expires_at"),
    Index("ix_lease_expires_at", "expires_at"),
    Index("ix_lease_worker_id", "worker_id"),
)

job = Table(
    "job",
    metadata,
    row_id(),
    Column("instance_id", Id, ForeignKey("instance.id"), nullable=False),
    Column("arrival_id", Id, ForeignKey("arrival.id", ondelete="SET NULL")),
    Column("kind", String(16), nullable=False, default=JobKind.PROCESS.value),
    Column("state", String(16), nullable=False, default=JobState.READY.value),
    Column("priority", SmallInteger, nullable=False),
    Column("generation", Integer, nullable=False, default=1),
    Column("bundle_id", Id, ForeignKey("bundle.id")),
    Column("revision", Integer),
    Column("published", Boolean, nullable=False, default=True),
    Column("lease_id", String(36), ForeignKey("lease.id")),
    Column("attempts", Integer, nullable=False, default=0),
    Column("crashes", Integer, nullable=False, default=0),
    Column("code", String(32)),
    Column("stage", String(16)),
    Column("detail", Text, nullable=False, default=""),
    moment("created_at", now=True),
    moment("available_at", nullable=True),
    moment("started_at", nullable=True),
    moment("finished_at", nullable=True),
    # The lease under which the result was written: answers "was it me?" after a lost COMMIT.
    Column("finished_lease", String(36)),
    Column("wait_seconds", Float),
    Column("run_seconds", Float),
    CheckConstraint(one_of("state", JobState), name="state"),
    CheckConstraint(one_of("kind", JobKind), name="kind"),
    CheckConstraint("(state = 'leased') = (lease_id IS NOT NULL)", name="leased"),
    CheckConstraint("state NOT IN ('failed', 'ineligible', 'delayed') OR code IS NOT NULL", name="code"),
    CheckConstraint("state <> 'delayed' OR available_at IS NOT NULL", name="delayed"),
    CheckConstraint(
        "state <> 'done' OR (finished_at IS NOT NULL AND (kind = 'verify' OR bundle_id IS NOT NULL))", name="done"
    ),
    # What waits has no bundle yet; what waits for a certain bundle is a shadow job.
    CheckConstraint("state NOT IN ('ready', 'delayed') OR (bundle_id IS NULL) = (kind <> 'shadow')", name="unbound"),
    CheckConstraint(
        f"kind <> 'shadow' OR (NOT published AND priority = {SHADOW_PRIORITY} AND bundle_id IS NOT NULL)",
        name="shadow",
    ),
    CheckConstraint("kind <> 'verify' OR arrival_id IS NOT NULL OR state <> 'ready'", name="verify"),
    Index(
        "uq_job_open",
        "instance_id",
        unique=True,
        sqlite_where=text("kind = 'process' AND state IN ('ready', 'delayed', 'leased')"),
        postgresql_where=text("kind = 'process' AND state IN ('ready', 'delayed', 'leased')"),
    ),
    Index(
        "uq_job_bundle",
        "instance_id",
        "bundle_id",
        "revision",
        "generation",
        unique=True,
        sqlite_where=text("kind = 'process' AND bundle_id IS NOT NULL"),
        postgresql_where=text("kind = 'process' AND bundle_id IS NOT NULL"),
    ),
    Index(
        "uq_job_verify",
        "arrival_id",
        unique=True,
        sqlite_where=text("kind = 'verify'"),
        postgresql_where=text("kind = 'verify'"),
    ),
    Index(
        "uq_job_shadow",
        "instance_id",
        "bundle_id",
        unique=True,
        sqlite_where=text("kind = 'shadow' AND state IN ('ready', 'delayed', 'leased')"),
        postgresql_where=text("kind = 'shadow' AND state IN ('ready', 'delayed', 'leased')"),
    ),
    Index(
        "ix_job_shadow",
        "bundle_id",
        "state",
        sqlite_where=text("kind = 'shadow'"),
        postgresql_where=text("kind = 'shadow'"),
    ),
    Index(
        "ix_job_ready",
        "priority",
        "id",
        sqlite_where=text("state = 'ready'"),
        postgresql_where=text("state = 'ready'"),
    ),
    Index(
        "ix_job_delayed",
        "available_at",
        sqlite_where=text("state = 'delayed'"),
        postgresql_where=text("state = 'delayed'"),
    ),
    Index(
        "ix_job_lease_id",
        "lease_id",
        sqlite_where=text("lease_id IS NOT NULL"),
        postgresql_where=text("lease_id IS NOT NULL"),
    ),
    Index(
        "ix_job_suspect",
        "priority",
        "id",
        sqlite_where=text("state = 'ready' AND crashes > 0"),
        postgresql_where=text("state = 'ready' AND crashes > 0"),
    ),
    Index(
        "ix_job_failed",
        "finished_at",
        sqlite_where=text("state = 'failed'"),
        postgresql_where=text("state = 'failed'"),
    ),
    Index("ix_job_finished_at", "finished_at"),
    Index("ix_job_instance_id", "instance_id"),
)

attempt = Table(
    "attempt",
    metadata,
    row_id(),
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("worker_id", Id, ForeignKey("worker.id")),
    moment("ended_at", now=True),
    Column("outcome", String(16), nullable=False),
    Column("code", String(32)),
    Column("stage", String(16)),
    Column("detail", Text, nullable=False, default=""),
    Index("ix_attempt_job_id", "job_id"),
)

duty = Table(
    "duty",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("every_seconds", Float, nullable=False),
    moment("due_at"),
    Column("claimed_by", Id, ForeignKey("worker.id")),
    moment("claimed_until", nullable=True),
    moment("finished_at", nullable=True),
    Column("outcome", Text, nullable=False, default=""),
)
