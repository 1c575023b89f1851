"""The tables: what came, what it is, what must be done, what came out.

``arrival`` is a file that came; ``instance`` is a film, named by its SOP Instance UID;
``job`` is the work on a film. A film has one open job at most, and one job for each
bundle and revision, apart from what bundles on trial do with it (``shadow``). Identity (UIDs,
record numbers, paths) stands apart in ``identity`` and ``instance_identity`` so that it can be
granted, exported or dropped alone.

Invariants live here, as constraints, so that no code path can break them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.engine.default import DefaultExecutionContext

from schema.keys import location_hash
from schema.outputs import OutputKind
from schema.types import Id, UtcDateTime, database_now

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)


class ArrivalState(StrEnum):
    """What became of a file that came."""

    INSTANCE = "instance"
    UNVERIFIED = "unverified"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    ALIAS = "alias"
    REJECTED = "rejected"
    NOT_DICOM = "not_dicom"


class JobState(StrEnum):
    """Where a film stands. ``done`` and ``ineligible`` are final.

    ::

        register → ready → leased → done
                     ▲       ├──→ ineligible
                     │       ├──→ delayed → ready
                     │       ├──→ failed → (retry) ready
                     │       ├──→ cancelled
                     └───────┘ lease expired
    """

    READY = "ready"
    LEASED = "leased"
    DONE = "done"
    INELIGIBLE = "ineligible"
    DELAYED = "delayed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobKind(StrEnum):
    """``process`` makes results; ``verify`` finds out what an unverified arrival is.

    ``shadow`` makes results with a bundle that is not in service. Nobody is shown them unless
    that bundle is promoted: then the job is an ordinary one.
    """

    PROCESS = "process"
    VERIFY = "verify"
    SHADOW = "shadow"


class LabelValue(StrEnum):
    """What a reader says of a finding on a film."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"


class LabelSource(StrEnum):
    """Why this film was given to a reader.

    Only ``consecutive`` and ``random`` films are like those of the night: what is measured on films that were
    chosen because a network and a reader disagreed (``disagreement``), or for another reason, flatters or slanders.
    """

    CONSECUTIVE = "consecutive"
    RANDOM = "random"
    DISAGREEMENT = "disagreement"
    OTHER = "other"


class RebuildState(StrEnum):
    """How far a rebuild is: ``failed`` needs a person, ``running`` goes on whoever died over it."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


class Cohort(StrEnum):
    """By what films are parted where performance is tracked; ``all`` are not parted."""

    ALL = "all"
    AGE = "age"
    SEX = "sex"
    VIEW_POSITION = "view_position"
    STATION = "station"
    LANE = "lane"


class Period(StrEnum):
    """Which films a tracked number is about: those that came in so many days before its end, or since promotion."""

    WEEK = "7d"
    MONTH = "30d"
    QUARTER = "90d"
    SINCE_PROMOTION = "since_promotion"


class DeliveryState(StrEnum):
    """Where an output stands on its way to a destination. ``sent`` and ``abandoned`` are final.

    ::

        published result → ready → leased → sent
                             ▲       ├──→ delayed → ready     trouble with this output, backoff, capped
                             │       ├──→ failed → (resend) ready
                             │       ├──→ abandoned           nobody wants it any more: see its code
                             └───────┘ lease expired, or the destination is away
    """

    READY = "ready"
    LEASED = "leased"
    DELAYED = "delayed"
    SENT = "sent"
    FAILED = "failed"
    ABANDONED = "abandoned"


class DestinationKind(StrEnum):
    """How a destination is spoken to: C-STORE over DICOM's own protocol, or STOW-RS over HTTP."""

    DICOM = "dicom"
    DICOMWEB = "dicomweb"


class Lane(StrEnum):
    """Who waits: ``icu`` films are claimed before ``archive`` films."""

    ICU = "icu"
    ARCHIVE = "archive"


#: Lane → ``job.priority``; smaller is claimed first.
PRIORITY: dict[str, int] = {Lane.ICU: 0, Lane.ARCHIVE: 10}
#: ``job.priority`` of shadow jobs, behind everything else.
SHADOW_PRIORITY = 20


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def _id() -> Column[int]:
    return Column("id", Id, primary_key=True, autoincrement=True)


def _time(name: str, *, now: bool = False, nullable: bool = False) -> Column[Any]:
    return Column(name, UtcDateTime, nullable=nullable, default=database_now() if now else None)


submission = Table(
    "submission",
    metadata,
    _id(),
    _time("created_at", now=True),
    _time("scanned_at", nullable=True),
    Column("lane", String(16), nullable=False),
    Column("scan_complete", Boolean, nullable=False, default=False),
    Column("files_seen", Id, nullable=False, default=0),
    Column("not_dicom", Id, nullable=False, default=0),
    CheckConstraint(_one_of("lane", Lane), name="lane"),
)

instance = Table(
    "instance",
    metadata,
    _id(),
    # HMAC-SHA256(site key, SOP Instance UID), hex
    Column("key", String(64), nullable=False, unique=True),
    Column("patient_key", String(64), nullable=False),
    Column("study_key", String(64), nullable=False),
    Column("series_key", String(64), nullable=False),
    Column("held_out", Boolean, nullable=False),
    _time("created_at", now=True),
    Column("generation", Integer, nullable=False, default=1),
    Column("content_hash", String(64)),
    Column("file_hash", String(64)),
    Column("alias_of", Id, ForeignKey("instance.id")),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False, default=""),
    Column("modality", String(16), nullable=False, default=""),
    Column("body_part", String(64), nullable=False, default=""),
    Column("view_position", String(16), nullable=False, default=""),
    Column("station", String(64), nullable=False, default=""),
    Column("manufacturer", String(64), nullable=False, default=""),
    Column("photometric_interpretation", String(32), nullable=False, default=""),
    Column("sex", String(1), nullable=False, default=""),
    Column("age_days", Integer),
    Column("film_rows", Integer),
    Column("film_columns", Integer),
    Column("row_spacing", Float),
    Column("column_spacing", Float),
    Column("spacing_source", String(16)),
    CheckConstraint("alias_of IS NULL OR alias_of <> id", name="alias_not_itself"),
    CheckConstraint("age_days IS NULL OR age_days BETWEEN 0 AND 47450", name="age"),
    Index("ix_instance_patient_key", "patient_key"),
    Index("ix_instance_created_at", "created_at"),
    # One film for one content: what has another name and the same content is its alias.
    Index(
        "uq_instance_content_hash",
        "content_hash",
        unique=True,
        sqlite_where=text("alias_of IS NULL AND content_hash IS NOT NULL"),
        postgresql_where=text("alias_of IS NULL AND content_hash IS NOT NULL"),
    ),
)

arrival = Table(
    "arrival",
    metadata,
    _id(),
    Column("submission_id", Id, ForeignKey("submission.id"), nullable=False),
    Column("instance_id", Id, ForeignKey("instance.id")),
    _time("arrived_at", now=True),
    Column("state", String(16), nullable=False),
    # The file this instance is read from: exactly one per instance.
    Column("current", Boolean, nullable=False, default=False),
    Column("code", String(32)),
    Column("detail", Text, nullable=False, default=""),
    Column("file_hash", String(64)),
    Column("content_hash", String(64)),
    CheckConstraint(_one_of("state", ArrivalState), name="state"),
    CheckConstraint("state NOT IN ('rejected', 'not_dicom') OR code IS NOT NULL", name="code"),
    CheckConstraint("state IN ('rejected', 'not_dicom') OR instance_id IS NOT NULL", name="instance"),
    CheckConstraint("NOT current OR state IN ('instance', 'alias')", name="current"),
    Index("ix_arrival_submission_id", "submission_id"),
    Index("ix_arrival_arrived_at", "arrived_at"),
    Index("ix_arrival_instance_id", "instance_id"),
    Index(
        "uq_arrival_current",
        "instance_id",
        unique=True,
        sqlite_where=text("current"),
        postgresql_where=text("current"),
    ),
    Index(
        "ix_arrival_conflict",
        "id",
        sqlite_where=text("state = 'conflict'"),
        postgresql_where=text("state = 'conflict'"),
    ),
)


def _location_of_row(context: DefaultExecutionContext) -> str:
    row: dict[str, Any] = context.get_current_parameters()  # type: ignore[no-untyped-call]
    return location_hash(row["root"], row["path"], row.get("member", ""), row["size"], row["modified_ns"])


#: Where a file is and what it called itself. Personal data: apart from everything else.
identity = Table(
    "identity",
    metadata,
    Column("arrival_id", Id, ForeignKey("arrival.id", ondelete="CASCADE"), primary_key=True),
    Column("root", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("member", Text, nullable=False, default=""),
    Column("size", Id, nullable=False),
    Column("modified_ns", Id, nullable=False),
    # schema.keys.location_hash of the five: what a file is found by.
    Column("location_hash", String(64), nullable=False, unique=True, default=_location_of_row),
)

#: Original identifiers of a film. Personal data.
instance_identity = Table(
    "instance_identity",
    metadata,
    Column("instance_id", Id, ForeignKey("instance.id", ondelete="CASCADE"), primary_key=True),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("study_instance_uid", String(64), nullable=False, default=""),
    Column("series_instance_uid", String(64), nullable=False, default=""),
    Column("patient_id", String(64), nullable=False, default=""),
    Column("issuer_of_patient_id", String(64), nullable=False, default=""),
    Column("accession_number", String(64), nullable=False, default=""),
    Column("study_date", String(10), nullable=False, default=""),
    Index("ix_instance_identity_sop_instance_uid", "sop_instance_uid"),
    Index("ix_instance_identity_accession_number", "accession_number"),
)

#: Which files a submission saw: also those an earlier one had registered.
submission_arrival = Table(
    "submission_arrival",
    metadata,
    Column("submission_id", Id, ForeignKey("submission.id"), primary_key=True),
    Column("arrival_id", Id, ForeignKey("arrival.id", ondelete="CASCADE"), primary_key=True),
    Column("seen_before", Boolean, nullable=False, default=False),
    sqlite_with_rowid=False,
)

bundle = Table(
    "bundle",
    metadata,
    _id(),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    _time("added_at", now=True),
    Column("manifest", JSON, nullable=False),
    UniqueConstraint("name", "version"),
)

bundle_alias = Table(
    "bundle_alias",
    metadata,
    Column("alias", String(16), primary_key=True),
    Column("bundle_id", Id, ForeignKey("bundle.id"), nullable=False),
    _time("since", now=True),
    CheckConstraint("alias IN ('champion', 'candidate', 'previous')", name="alias"),
)

engine = Table(
    "engine",
    metadata,
    _id(),
    Column("bundle_id", Id, ForeignKey("bundle.id"), nullable=False),
    Column("backend", String(32), nullable=False),
    Column("backend_version", String(64), nullable=False),
    Column("device", String(128), nullable=False),
    Column("precision", String(16), nullable=False),
    _time("verified_at", now=True),
    Column("parity", JSON, nullable=False),
    UniqueConstraint("bundle_id", "backend", "backend_version", "device", "precision"),
)

worker = Table(
    "worker",
    metadata,
    _id(),
    Column("name", String(128), nullable=False, unique=True),
    Column("host", String(128), nullable=False),
    Column("process_id", Integer, nullable=False),
    Column("boot_id", String(36), nullable=False),
    Column("device", String(128), nullable=False, default=""),
    Column("version", String(32), nullable=False),
    Column("bundle_id", Id, ForeignKey("bundle.id")),
    _time("started_at", now=True),
    _time("seen_at", now=True),
    _time("stopped_at", nullable=True),
)

lease = Table(
    "lease",
    metadata,
    # A UUID: the fencing token. Who no longer holds it writes nothing.
    Column("id", String(36), primary_key=True),
    Column("worker_id", Id, ForeignKey("worker.id"), nullable=False),
    Column("boot_id", String(36), nullable=False),
    _time("taken_at", now=True),
    _time("expires_at"),
    Index("ix_lease_expires_at", "expires_at"),
    Index("ix_lease_worker_id", "worker_id"),
)

job = Table(
    "job",
    metadata,
    _id(),
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
    _time("created_at", now=True),
    _time("available_at", nullable=True),
    _time("started_at", nullable=True),
    _time("finished_at", nullable=True),
    # The lease under which the result was written: answers "was it me?" after a lost COMMIT.
    Column("finished_lease", String(36)),
    Column("wait_seconds", Float),
    Column("run_seconds", Float),
    CheckConstraint(_one_of("state", JobState), name="state"),
    CheckConstraint(_one_of("kind", JobKind), name="kind"),
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
    _id(),
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("worker_id", Id, ForeignKey("worker.id")),
    _time("ended_at", now=True),
    Column("outcome", String(16), nullable=False),
    Column("code", String(32)),
    Column("stage", String(16)),
    Column("detail", Text, nullable=False, default=""),
    Index("ix_attempt_job_id", "job_id"),
)

segmentation = Table(
    "segmentation",
    metadata,
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("encoding", String(16), nullable=False),
    Column("mask", LargeBinary, nullable=False),
    Column("raw_mask", LargeBinary),
    Column("resampler_version", Integer, nullable=False),
    Column("film_rows", Integer, nullable=False),
    Column("film_columns", Integer, nullable=False),
    Column("flip_columns", Boolean, nullable=False),
    Column("flip_rows", Boolean, nullable=False),
    Column("carina_threshold", Float),
    Column("repaired_pixels", Integer, nullable=False),
    Column("voi_policy", String(32), nullable=False),
    # Of the stored values in the valid area, as shares of their range: what the detector delivered.
    Column("grey_mean", Float),
    Column("grey_spread", Float),
    Column("engine", JSON, nullable=False),
    Column("seconds", JSON, nullable=False),
)

region_measurement = Table(
    "region_measurement",
    metadata,
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("region", String(64), primary_key=True),
    Column("area_pixels", Integer, nullable=False),
    Column("area_fraction", Float, nullable=False),
    Column("area_mm2", Float),
    Column("components", Integer, nullable=False),
    Column("centroid_row", Float),
    Column("centroid_column", Float),
    Column("box_top", Integer),
    Column("box_left", Integer),
    Column("box_bottom", Integer),
    Column("box_right", Integer),
    Column("mean_probability", Float),
    Column("repaired_pixels", Integer, nullable=False),
    CheckConstraint("area_pixels >= 0 AND area_fraction BETWEEN 0 AND 1", name="area"),
    sqlite_with_rowid=False,
)

failure_flag = Table(
    "failure_flag",
    metadata,
    _id(),
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), nullable=False),
    Column("rule", String(64), nullable=False),
    Column("rule_version", Integer, nullable=False),
    Column("source", String(8), nullable=False),
    Column("region", String(64)),
    Column("value", Float),
    Column("threshold", Float),
    Column("detail", Text, nullable=False, default=""),
    Column("notice", Boolean, nullable=False, default=False, server_default=false()),
    CheckConstraint("source IN ('raw', 'cleaned', 'input', 'result')", name="source"),
    Index("ix_failure_flag_job_id", "job_id"),
    Index("ix_failure_flag_rule", "rule"),
)

finding_score = Table(
    "finding_score",
    metadata,
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("finding", String(64), primary_key=True),
    Column("probability", Float, nullable=False),
    Column("spread", Float, nullable=False),
    Column("threshold", Float, nullable=False),
    Column("positive", Boolean, nullable=False),
    Column("members", JSON, nullable=False),
    CheckConstraint("probability BETWEEN 0 AND 1", name="probability"),
    Index("ix_finding_score_finding", "finding", "probability"),
    sqlite_with_rowid=False,
)

heatmap = Table(
    "heatmap",
    metadata,
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("findings", JSON, nullable=False),
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("encoding", String(16), nullable=False),
    Column("maps", LargeBinary, nullable=False),
)

duty = Table(
    "duty",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("every_seconds", Float, nullable=False),
    _time("due_at"),
    Column("claimed_by", Id, ForeignKey("worker.id")),
    _time("claimed_until", nullable=True),
    _time("finished_at", nullable=True),
    Column("outcome", Text, nullable=False, default=""),
)

#: Where results go, as the file of ``CARINA_DELIVERY`` said at the last start.
delivery_destination = Table(
    "delivery_destination",
    metadata,
    _id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    # Without secrets: those stay in files.
    Column("configuration", JSON, nullable=False),
    _time("added_at", now=True),
    # Set while the file does not name it.
    _time("removed_at", nullable=True),
    # Results published before are in the outbox, as far as the rules want them.
    _time("filled_until", now=True),
    # The circuit: how often it failed since it last took something, what it said, and until when it is left alone.
    Column("failures", Integer, nullable=False, default=0),
    _time("blocked_until", nullable=True),
    Column("code", String(32)),
    Column("detail", Text, nullable=False, default=""),
    CheckConstraint(_one_of("kind", DestinationKind), name="kind"),
    CheckConstraint("(failures = 0) = (code IS NULL)", name="code"),
)

#: The outbox: one output of one result for one destination.
delivery = Table(
    "delivery",
    metadata,
    _id(),
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
    _time("leased_until", nullable=True),
    Column("attempts", Integer, nullable=False, default=0),
    Column("code", String(32)),
    Column("detail", Text, nullable=False, default=""),
    _time("created_at", now=True),
    _time("available_at", nullable=True),
    _time("sent_at", nullable=True),
    UniqueConstraint("destination_id", "job_id", "output", "revision"),
    CheckConstraint(_one_of("state", DeliveryState), name="state"),
    CheckConstraint(_one_of("output", OutputKind), name="output"),
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

#: What readers say. Rows are only ever added: a correction is a new row with a later ``labelled_at``.
label = Table(
    "label",
    metadata,
    _id(),
    Column("instance_id", Id, ForeignKey("instance.id"), nullable=False),
    Column("finding", String(64), nullable=False),
    Column("value", String(16), nullable=False),
    # A pseudonym.
    Column("reader", String(64), nullable=False),
    Column("source", String(16), nullable=False),
    _time("labelled_at"),
    _time("recorded_at", now=True),
    CheckConstraint(_one_of("value", LabelValue), name="value"),
    CheckConstraint(_one_of("source", LabelSource), name="source"),
    Index("ix_label_current", "instance_id", "finding", "reader", "labelled_at"),
)

#: Regions that a reader drew or corrected. Rows are only ever added, as those of ``label``.
label_map = Table(
    "label_map",
    metadata,
    _id(),
    Column("instance_id", Id, ForeignKey("instance.id"), nullable=False),
    # A pseudonym.
    Column("reader", String(64), nullable=False),
    Column("source", String(16), nullable=False),
    # On the film's own grid, with the values of schema.regions.REGIONS.
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("encoding", String(16), nullable=False),
    Column("mask", LargeBinary, nullable=False),
    _time("labelled_at"),
    _time("recorded_at", now=True),
    CheckConstraint(_one_of("source", LabelSource), name="source"),
    Index("ix_label_map_current", "instance_id", "reader", "labelled_at"),
)

#: How well a result's region fits a reader's: Dice coefficient, NULL where neither has the region.
region_dice = Table(
    "region_dice",
    metadata,
    Column("label_map_id", Id, ForeignKey("label_map.id"), primary_key=True),
    Column("job_id", Id, ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    Column("region", String(64), primary_key=True),
    Column("dice", Float),
    CheckConstraint("dice BETWEEN 0 AND 1", name="dice"),
    Index("ix_region_dice_job_id", "job_id"),
    sqlite_with_rowid=False,
)


def _window() -> tuple[Column[Any] | CheckConstraint, ...]:
    return (
        Column("cohort", String(16), nullable=False),
        # Which of the cohort's films: "0-4", "F", "PA", a station's name; "" for all.
        Column("cohort_value", String(64), nullable=False),
        Column("period", String(16), nullable=False),
        _time("starts_at"),
        # Exclusive.
        _time("ends_at"),
        _time("computed_at", now=True),
        # Of everything that the numbers were computed from.
        Column("digest", String(64), nullable=False),
        # What several readers of a film say together: worker.monitor.labels.ReaderPolicy.
        Column("readers", String(16), nullable=False),
        CheckConstraint(_one_of("cohort", Cohort), name="cohort"),
        CheckConstraint(_one_of("period", Period), name="period"),
    )


def _interval(name: str) -> tuple[Column[float], ...]:
    return Column(name, Float), Column(f"{name}_low", Float), Column(f"{name}_high", Float)


#: How well a bundle tells a finding on labelled films; the ends of intervals are those of 95 %.
auc_tracking = Table(
    "auc_tracking",
    metadata,
    _id(),
    Column("bundle_id", Id, ForeignKey("bundle.id"), nullable=False),
    Column("finding", String(64), nullable=False),
    *_window(),
    Column("positives", Integer, nullable=False),
    Column("negatives", Integer, nullable=False),
    Column("patients", Integer, nullable=False),
    # Labelled films that do not count: the bundle may have learned from them, they were chosen, the readers are unsure.
    Column("left_out_training", Integer, nullable=False, default=0),
    Column("left_out_chosen", Integer, nullable=False, default=0),
    Column("left_out_uncertain", Integer, nullable=False, default=0),
    # Then there are no numbers.
    Column("too_few", Boolean, nullable=False),
    Column("replicates", Integer, nullable=False),
    *_interval("auroc"),
    Column("delong_low", Float),
    Column("delong_high", Float),
    *_interval("average_precision"),
    # The bundle's; the rates are those at it.
    Column("threshold", Float),
    *_interval("sensitivity"),
    *_interval("specificity"),
    *_interval("f1"),
    Column("youden_threshold", Float),
    Column("brier", Float),
    Column("calibration_slope", Float),
    Column("calibration_intercept", Float),
    CheckConstraint("NOT too_few OR auroc IS NULL", name="too_few"),
    UniqueConstraint(
        "bundle_id",
        "finding",
        "cohort",
        "cohort_value",
        "period",
        "ends_at",
        name="uq_auc_tracking_window",
    ),
    Index("ix_auc_tracking_newest", "bundle_id", "ends_at"),
)

#: How well a bundle's regions fit those that readers drew: the mean Dice coefficient of a region over films.
dice_tracking = Table(
    "dice_tracking",
    metadata,
    _id(),
    Column("bundle_id", Id, ForeignKey("bundle.id"), nullable=False),
    Column("region", String(64), nullable=False),
    *_window(),
    Column("films", Integer, nullable=False),
    Column("patients", Integer, nullable=False),
    Column("too_few", Boolean, nullable=False),
    Column("replicates", Integer, nullable=False),
    *_interval("dice"),
    CheckConstraint("NOT too_few OR dice IS NULL", name="too_few"),
    UniqueConstraint(
        "bundle_id",
        "region",
        "cohort",
        "cohort_value",
        "period",
        "ends_at",
        name="uq_dice_tracking_window",
    ),
    Index("ix_dice_tracking_newest", "bundle_id", "ends_at"),
)

#: The bundle in service and one on trial, on the films that both have read.
auc_comparison = Table(
    "auc_comparison",
    metadata,
    _id(),
    Column("bundle_id", Id, ForeignKey("bundle.id"), nullable=False),
    Column("candidate_id", Id, ForeignKey("bundle.id"), nullable=False),
    Column("finding", String(64), nullable=False),
    *_window(),
    Column("positives", Integer, nullable=False),
    Column("negatives", Integer, nullable=False),
    Column("patients", Integer, nullable=False),
    Column("too_few", Boolean, nullable=False),
    Column("auroc", Float),
    Column("candidate_auroc", Float),
    # Candidate less bundle in service.
    *_interval("difference"),
    Column("p_value", Float),
    CheckConstraint("NOT too_few OR auroc IS NULL", name="too_few"),
    UniqueConstraint(
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

#: A row for each time that everything tracked was up to date.
tracking_run = Table(
    "tracking_run",
    metadata,
    _id(),
    _time("finished_at", now=True),
    _time("ends_at"),
    Column("last_label_id", Id, nullable=False),
    Column("last_label_map_id", Id, nullable=False),
    Column("computed", Integer, nullable=False),
)

#: What needs a person. While it does, there is one row for it; it is closed when the trouble has been gone for a while.
alert = Table(
    "alert",
    metadata,
    _id(),
    # What kind of trouble, of worker.monitor.alert_rules.RULES, and whose: a lane, a finding, a station.
    Column("rule", String(32), nullable=False),
    Column("subject", String(255), nullable=False),
    _time("opened_at", now=True),
    # When it was last seen, and since when it has not been.
    _time("seen_at", now=True),
    _time("quiet_since", nullable=True),
    _time("closed_at", nullable=True),
    Column("value", Float),
    Column("threshold", Float),
    Column("detail", Text, nullable=False, default=""),
    _time("acknowledged_at", nullable=True),
    # Somebody said that this is how it is from now on: drift is measured from here.
    _time("accepted_at", nullable=True),
    # When the webhook took the news.
    _time("opening_sent_at", nullable=True),
    _time("closing_sent_at", nullable=True),
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
    _id(),
    _time("started_at", now=True),
    _time("finished_at", nullable=True),
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
    CheckConstraint(_one_of("state", RebuildState), name="state"),
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
    _id(),
    _time("happened_at", now=True),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(128), nullable=False, default=""),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_event_happened_at", "happened_at"),
)

# Counted days: what the views would otherwise count anew in millions of rows. ``schema/daily.py`` writes them.

#: Days (UTC) that are counted when somebody asks: all that have no rows below, and all whose jobs changed since.
#: Triggers on ``job`` put them here.
daily_open = Table(
    "daily_open",
    metadata,
    Column("day", Date, primary_key=True),
    _time("begins_at"),
    _time("ends_at"),
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
