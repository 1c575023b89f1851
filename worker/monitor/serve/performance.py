"""How well each bundle tells each finding: the newest numbers, and how they moved, with their intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, select

from schema import findings as finding_names
from schema.findings import Finding
from schema.queries import bundle_aliases
from schema.tables import Cohort, Period, auc_tracking, bundle
from schema.view_tables import latest_auc, latest_dice
from worker.monitor.serve.plots import Measured, Plot, plot

#: Days of the past that are drawn.
DRAWN_DAYS = 180
_ORDER = {str(finding): place for place, finding in enumerate(Finding)}


@dataclass(frozen=True)
class PerformancePage:
    """Tables and plots of one bundle, period and cohort."""

    bundle: str
    bundles: tuple[str, ...]
    period: str
    cohort: str
    cohorts: tuple[str, ...]
    findings: tuple[Any, ...]
    regions: tuple[Any, ...]
    plots: tuple[Plot, ...]


def read_performance(connection: Connection, parameters: Mapping[str, str]) -> PerformancePage:
    """What the address asks for; the bundle in service, 30 days and all films where it says nothing known."""
    bundles = _bundles(connection)
    chosen = parameters.get("bundle", "")
    name = chosen if chosen in bundles else bundles[0] if bundles else ""
    period = parameters.get("period", "")
    period = period if period in tuple(Period) else Period.MONTH
    cohorts = _cohorts(connection, name, period)
    cohort = parameters.get("cohort", "")
    cohort = cohort if cohort in cohorts else Cohort.ALL
    kind, _, value = cohort.partition(" ")
    findings = connection.execute(
        select(latest_auc).where(
            latest_auc.c.bundle == name,
            latest_auc.c.period == period,
            latest_auc.c.cohort == kind,
            latest_auc.c.cohort_value == value,
        )
    ).all()
    regions = connection.execute(
        select(latest_dice)
        .where(
            latest_dice.c.bundle == name,
            latest_dice.c.period == period,
            latest_dice.c.cohort == kind,
            latest_dice.c.cohort_value == value,
        )
        .order_by(latest_dice.c.region)
    ).all()
    return PerformancePage(
        name,
        bundles,
        period,
        cohort,
        cohorts,
        tuple(sorted(findings, key=lambda row: _ORDER.get(row.finding, len(_ORDER)))),
        tuple(regions),
        _plots(connection, name, period, kind, value),
    )


def _bundles(connection: Connection) -> tuple[str, ...]:
    """Bundles with numbers, the one in service first."""
    tracked = connection.scalars(
        select(bundle.c.name + ":" + bundle.c.version)
        .where(select(auc_tracking.c.id).where(auc_tracking.c.bundle_id == bundle.c.id).exists())
        .order_by(bundle.c.id.desc())
    ).all()
    champion = bundle_aliases(connection).get("champion")
    return tuple(sorted(tracked, key=lambda name: name != champion))


def _cohorts(connection: Connection, name: str, period: str) -> tuple[str, ...]:
    rows = connection.execute(
        select(latest_auc.c.cohort, latest_auc.c.cohort_value)
        .where(latest_auc.c.bundle == name, latest_auc.c.period == period)
        .distinct()
    )
    found = {f"{row.cohort} {row.cohort_value}".strip() for row in rows}
    return (Cohort.ALL.value, *sorted(found - {Cohort.ALL.value}))


def _plots(connection: Connection, name: str, period: str, kind: str, value: str) -> tuple[Plot, ...]:
    newest = select(auc_tracking.c.ends_at).order_by(auc_tracking.c.ends_at.desc()).limit(1)
    last = connection.scalar(newest)
    if last is None:
        return ()
    rows = connection.execute(
        select(auc_tracking)
        .join(bundle, bundle.c.id == auc_tracking.c.bundle_id)
        .where(
            bundle.c.name + ":" + bundle.c.version == name,
            auc_tracking.c.ends_at >= last - timedelta(days=DRAWN_DAYS),
            auc_tracking.c.period == period,
            auc_tracking.c.cohort == kind,
            auc_tracking.c.cohort_value == value,
            auc_tracking.c.auroc.is_not(None),
        )
    )
    values: dict[str, list[Measured]] = defaultdict(list)
    for row in rows:
        # A window ends at midnight: its last day is the one before.
        day = (row.ends_at - timedelta(seconds=1)).date()
        words = (
            f"{day:%Y-%m-%d}: AUROC {row.auroc:.3f} ({row.auroc_low:.3f} to {row.auroc_high:.3f}), "
            f"{row.positives} with and {row.negatives} without"
        )
        values[row.finding].append(Measured(day, row.auroc, row.auroc_low, row.auroc_high, words))
    return tuple(
        plot(finding_names.title(finding), values[finding], low=0.5, high=1.0, percent=False)
        for finding in sorted(values, key=lambda finding: _ORDER.get(finding, len(_ORDER)))
    )
