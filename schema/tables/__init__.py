"""The tables: what came, what it is, what must be done, what came out.

``arrival`` is a file that came; ``instance`` is a film, named by its SOP Instance UID;
``job`` is the work on a film. A film has one open job at most, and one job for each
bundle and revision, apart from what bundles on trial do with it (``shadow``). Identity (UIDs,
record numbers, paths) stands apart in ``identity`` and ``instance_identity`` so that it can be
granted, exported or dropped alone.

Invariants live here, as constraints, so that no code path can break them.
"""

from __future__ import annotations

from schema.tables.base import metadata
from schema.tables.care import alert, audit_event, rebuild
from schema.tables.daily import (
    daily_film,
    daily_finding,
    daily_flag,
    daily_input,
    daily_lane,
    daily_open,
    daily_region,
    daily_view,
)
from schema.tables.films import arrival, identity, instance, instance_identity, submission, submission_arrival
from schema.tables.outbox import delivery, delivery_destination
from schema.tables.results import failure_flag, finding_score, heatmap, region_measurement, segmentation
from schema.tables.states import (
    PRIORITY,
    SHADOW_PRIORITY,
    ArrivalState,
    Cohort,
    DeliveryState,
    DestinationKind,
    JobKind,
    JobState,
    LabelSource,
    LabelValue,
    Lane,
    Period,
    RebuildState,
)
from schema.tables.tracking import (
    auc_comparison,
    auc_tracking,
    dice_tracking,
    label,
    label_map,
    region_dice,
    tracking_run,
)
from schema.tables.work import attempt, bundle, bundle_alias, duty, engine, job, lease, worker

__all__ = [
    "PRIORITY",
    "SHADOW_PRIORITY",
    "ArrivalState",
    "Cohort",
    "DeliveryState",
    "DestinationKind",
    "JobKind",
    "JobState",
    "LabelSource",
    "LabelValue",
    "Lane",
    "Period",
    "RebuildState",
    "alert",
    "arrival",
    "attempt",
    "auc_comparison",
    "auc_tracking",
    "audit_event",
    "bundle",
    "bundle_alias",
    "daily_film",
    "daily_finding",
    "daily_flag",
    "daily_input",
    "daily_lane",
    "daily_open",
    "daily_region",
    "daily_view",
    "delivery",
    "delivery_destination",
    "dice_tracking",
    "duty",
    "engine",
    "failure_flag",
    "finding_score",
    "heatmap",
    "identity",
    "instance",
    "instance_identity",
    "job",
    "label",
    "label_map",
    "lease",
    "metadata",
    "rebuild",
    "region_dice",
    "region_measurement",
    "segmentation",
    "submission",
    "submission_arrival",
    "tracking_run",
    "worker",
]
