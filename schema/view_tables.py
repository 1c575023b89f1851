"""The views that queries read, as SQLAlchemy sees them: see ``schema/views`` for what they mean."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Boolean, Column, Date, Float, Integer, MetaData, String, Table, Text

from schema.types import Id, UtcDateTime

_views = MetaData()

#: One row per file that came.
film_state = Table(
    "film_state",
    _views,
    Column("arrival_id", Id),
    Column("submission_id", Id),
    Column("instance_id", Id),
    Column("arrived_at", UtcDateTime),
    Column("arrival_state", String),
    Column("job_id", Id),
    Column("state", String),
    Column("code", String),
    Column("detail", Text),
    Column("stage", String),
    Column("attempts", Integer),
    Column("bundle_id", Id),
    Column("bundle", String),
    Column("flagged", Integer),
    Column("finished_at", UtcDateTime),
)

#: One row per film with a result.
published_result = Table(
    "published_result",
    _views,
    Column("job_id", Id),
    Column("instance_id", Id),
    Column("arrival_id", Id),
    Column("instance_key", String),
    Column("bundle_id", Id),
    Column("bundle", String),
    Column("held_out", Boolean),
    Column("flagged", Integer),
    Column("finished_at", UtcDateTime),
)


def _window(what: str) -> tuple[Column[str] | Column[datetime], ...]:
    names = ("bundle", what, "cohort", "cohort_value", "period")
    times = ("starts_at", "ends_at", "computed_at")
    return *(Column(name, String) for name in names), *(Column(name, UtcDateTime) for name in times)


def _interval(name: str) -> tuple[Column[float], ...]:
    return Column(name, Float), Column(f"{name}_low", Float), Column(f"{name}_high", Float)


#: One row per bundle, finding, cohort and period, of the bundle's last day.
latest_auc = Table(
    "latest_auc",
    _views,
    *_window("finding"),
    *(Column(name, Integer) for name in ("positives", "negatives", "patients")),
    *(Column(f"left_out_{why}", Integer) for why in ("training", "chosen", "uncertain")),
    Column("too_few", Boolean),
    *_interval("auroc"),
    Column("delong_low", Float),
    Column("delong_high", Float),
    *_interval("average_precision"),
    Column("threshold", Float),
    *_interval("sensitivity"),
    *_interval("specificity"),
    *_interval("f1"),
    *(Column(name, Float) for name in ("youden_threshold", "brier", "calibration_slope", "calibration_intercept")),
)

#: One row per bundle, region, cohort and period, of the bundle's last day.
latest_dice = Table(
    "latest_dice",
    _views,
    *_window("region"),
    *(Column(name, Integer) for name in ("films", "patients")),
    Column("too_few", Boolean),
    *_interval("dice"),
)


def _drift(name: str, *what: Column[str], counts: tuple[str, ...], numbers: tuple[str, ...] = ()) -> Table:
    groups = (Column(column, String) for column in ("bundle", "station", "age_band"))
    columns = (*(Column(each, Id) for each in counts), *(Column(each, Float) for each in numbers))
    return Table(name, _views, Column("day", Date), *groups, *what, *columns)


#: One row per day, bundle, station and age band, or more: what :mod:`worker.monitor.drift` looks at.
film_drift = _drift("film_drift", counts=("films", "flagged_films", "repaired_films"))
flag_drift = _drift("flag_drift", Column("rule", String), counts=("flagged_films",))
score_drift = _drift(
    "score_drift",
    Column("finding", String),
    counts=("films", *(f"tenth_{number}" for number in range(1, 11))),
    numbers=("mean_probability", "variance", "mean_spread"),
)
area_drift = _drift(
    "area_drift",
    Column("region", String),
    counts=("films", "missing_films"),
    numbers=("mean_area_fraction", "variance"),
)
input_drift = _drift(
    "input_drift",
    counts=("films", "grey_films", "spacing_films"),
    numbers=(
        "mean_grey", "grey_variance", "mean_grey_spread", "grey_spread_variance", "mean_spacing", "spacing_variance",
    ),
)  # fmt: skip
view_drift = _drift("view_drift", Column("view_position", String), counts=("films",))
