"""Files that came and the films they are; who they were stands apart, as personal data."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, CheckConstraint, Column, Float, ForeignKey, Index, Integer, String, Table, Text, text
from sqlalchemy.engine.default import DefaultExecutionContext

from schema.keys import location_hash
from schema.tables.base import metadata, moment, one_of, row_id
from schema.tables.states import ArrivalState, Lane
from schema.types import Id

submission = Table(
    "submission",
    metadata,
    row_id(),
    moment("created_at", now=True),
    moment("scanned_at", nullable=True),
    Column("lane", String(16), nullable=False),
    Column("scan_complete", Boolean, nullable=False, default=False),
    Column("files_seen", Id, nullable=False, default=0),
    Column("not_dicom", Id, nullable=False, default=0),
    CheckConstraint(one_of("lane", Lane), name="lane"),
)

instance = Table(
    "instance",
    metadata,
    row_id(),
    # HMAC-SHA256(site key, SOP Instance UID), hex
    Column("key", String(64), nullable=False, unique=True),
    Column("patient_key", String(64), nullable=False),
    Column("study_key", String(64), nullable=False),
    Column("series_key", String(64), nullable=False),
    Column("held_out", Boolean, nullable=False),
    moment("created_at", now=True),
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
    row_id(),
    Column("submission_id", Id, ForeignKey("submission.id"), nullable=False),
    Column("instance_id", Id, ForeignKey("instance.id")),
    moment("arrived_at", now=True),
    Column("state", String(16), nullable=False),
    # The file this instance is read from: exactly one per instance.
    Column("current", Boolean, nullable=False, default=False),
    Column("code", String(32)),
    Column("detail", Text, nullable=False, default=""),
    Column("file_hash", String(64)),
    Column("content_hash", String(64)),
    CheckConstraint(one_of("state", ArrivalState), name="state"),
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
