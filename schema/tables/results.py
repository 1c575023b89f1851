"""What came out: masks, measurements, flags, findings and heat maps."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    false,
)

from schema.tables.base import metadata, row_id
from schema.types import Id

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
    row_id(),
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
