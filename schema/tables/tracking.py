"""What readers say of films, and how well a bundle agrees with them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
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
    UniqueConstraint,
)

from schema.tables.base import metadata, moment, one_of, row_id
from schema.tables.states import Cohort, LabelSource, LabelValue, Period
from schema.types import Id

#: What readers say. Rows are only ever added: a correction is a new row with a later ``labelled_at``.
label = Table(
    "label",
    metadata,
    row_id(),
    Column("instance_id", Id, ForeignKey("instance.id"), nullable=False),
    Column("finding", String(64), nullable=False),
    Column("value", String(16), nullable=False),
    # A pseudonym.
    Column("reader", String(64), nullable=False),
    Column("source", String(16), nullable=False),
    moment("labelled_at"),
    moment("recorded_at", now=True),
    CheckConstraint(one_of("value", LabelValue), name="value"),
    CheckConstraint(one_of("source", LabelSource), name="source"),
    Index("ix_label_current", "instance_id", "finding", "reader", "labelled_at"),
)

#: Regions that a reader drew or corrected. Rows are only ever added, as those of ``label``.
label_map = Table(
    "label_map",
    metadata,
    row_id(),
    Column("instance_id", Id, ForeignKey("instance.id"), nullable=False),
    # A pseudonym.
    Column("reader", String(64), nullable=False),
    Column("source", String(16), nullable=False),
    # On the film's own grid, with the values of schema.regions.REGIONS.
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("encoding", String(16), nullable=False),
    Column("mask", LargeBinary, nullable=False),
    moment("labelled_at"),
    moment("recorded_at", now=True),
    CheckConstraint(one_of("source", LabelSource), name="source"),
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
        moment("starts_at"),
        # Exclusive.
        moment("ends_at"),
        moment("computed_at", now=True),
        # Of everything that the numbers were computed from.
        Column("digest", String(64), nullable=False),
        # What several readers of a film say together: worker.monitor.labels.ReaderPolicy.
        Column("readers", String(16), nullable=False),
        CheckConstraint(one_of("cohort", Cohort), name="cohort"),
        CheckConstraint(one_of("period", Period), name="period"),
    )


def _interval(name: str) -> tuple[Column[float], ...]:
    return Column(name, Float), Column(f"{name}_low", Float), Column(f"{name}_high", Float)


#: How well a bundle tells a finding on labelled films; the ends of intervals are those of 95 %.
auc_tracking = Table(
    "auc_tracking",
    metadata,
    row_id(),
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
    row_id(),
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
    row_id(),
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
    row_id(),
    moment("finished_at", now=True),
    moment("ends_at"),
    Column("last_label_id", Id, nullable=False),
    Column("last_label_map_id", Id, nullable=False),
    Column("computed", Integer, nullable=False),
)
