"""The nights of the bundle in service, as :mod:`worker.monitor.drift` judges them, from the views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Table, and_, func, or_, select

from schema.tables import alert, bundle, bundle_alias
from schema.types import database_now
from schema.view_tables import area_drift, film_drift, flag_drift, input_drift, score_drift, view_drift
from worker.monitor.drift import (
    AGE_MIX,
    STATION_MIX,
    VIEW_MIX,
    Cell,
    Chart,
    Family,
    Group,
    Measure,
    Nights,
    Series,
    charts,
    groups_of,
    judge,
    learned_since,
)
from worker.monitor.drift_charts import FloatArray

#: Days in which a group's baseline nights are looked for.
_LEARNING_DAYS = 120
#: Days before today that are looked at.
_RECENT_DAYS = 60
#: A group that had no night for so long is gone, and nothing is said of it any more.
_GONE_DAYS = 30
_TENTHS = tuple(f"tenth_{number}" for number in range(1, 11))

Row = Any


@dataclass(frozen=True)
class DriftReport:
    """Every series of the bundle in service (``name:version``), until the last day (UTC) that has ended."""

    bundle: str
    until: date
    series: tuple[Series, ...]

    def subject(self, group: Group) -> str:
        """What an alert about a group of this bundle's films is about."""
        return subject(self.bundle, group)


def subject(key: str, group: Group) -> str:
    """``name:version, station CR1``."""
    return f"{key}, {group}"


def look_at_drift(connection: Connection, *, now: datetime | None = None) -> DriftReport | None:
    """Judge the nights of the bundle in service; None where none is in service.

    Parameters
    ----------
    now
        The database's time if it is None: the day it falls into has not ended.
    """
    serving = connection.execute(
        select(bundle.c.name, bundle.c.version, bundle.c.manifest)
        .join(bundle_alias, bundle_alias.c.bundle_id == bundle.c.id)
        .where(bundle_alias.c.alias == "champion")
    ).first()
    if serving is None:
        return None
    key = f"{serving.name}:{serving.version}"
    moment = now or connection.execute(select(database_now())).scalar_one()
    until = moment.astimezone(UTC).date()
    accepted = _accepted(connection, key)
    nights = _load(connection, key, until, accepted.values(), serving.manifest)
    known = {subject(key, group): group for group in groups_of(nights.cells)}
    starts = {(Family(rule), known[about]): day for (rule, about), day in accepted.items() if about in known}
    gone = until - timedelta(days=_GONE_DAYS)

    def lives(chart: Chart) -> bool:
        # One that is learned anew from today on has no night yet.
        last = chart.days[-1] if chart.days else learned_since(chart.measure.family, chart.group, starts)
        return last is not None and last >= gone

    drawn = [chart for chart in charts(nights, starts) if lives(chart)]
    return DriftReport(key, until - timedelta(days=1), judge(drawn))


def _accepted(connection: Connection, key: str) -> dict[tuple[str, str], date]:
    """(rule, subject) → the last day from which on somebody took a change for what is usual."""
    columns = alert.c
    query = select(columns.rule, columns.subject, columns.accepted_at).where(
        columns.accepted_at.is_not(None),
        columns.rule.in_([str(family) for family in Family]),
        columns.subject.startswith(f"{key}, ", autoescape=True),
    )
    return {
        (row.rule, row.subject): row.accepted_at.date()
        for row in connection.execute(query.order_by(columns.accepted_at))
    }


def _load(
    connection: Connection, key: str, until: date, accepted: Iterable[date], manifest: Mapping[str, Any]
) -> Nights:
    columns = film_drift.c
    first = connection.scalar(select(func.min(columns.day)).where(columns.bundle == key, columns.day < until))
    if first is None:
        return Nights((), (), ())
    starts = {first, *accepted}

    def wanted(table: Table) -> ColumnElement[bool]:
        day = table.c.day
        learned = [and_(day >= start, day < start + timedelta(days=_LEARNING_DAYS)) for start in starts]
        return and_(table.c.bundle == key, day < until, or_(day >= until - timedelta(days=_RECENT_DAYS), *learned))

    def rows(table: Table) -> Sequence[Row]:
        return connection.execute(select(table).where(wanted(table))).all()

    films = rows(film_drift)
    days = sorted({row.day for row in films})
    cells = sorted({(row.station, row.age_band) for row in films})
    grid = _Grid({day: place for place, day in enumerate(days)}, {cell: place for place, cell in enumerate(cells)})
    counts = grid.of(films, lambda row: row.films)
    measures = [
        *_flags(grid, films, rows(flag_drift), counts),
        *_scores(grid, rows(score_drift), manifest),
        *_areas(grid, rows(area_drift)),
        *_inputs(grid, rows(input_drift)),
        *_mixes(grid, counts, rows(view_drift)),
    ]
    return Nights(tuple(days), tuple(Cell(*cell) for cell in cells), tuple(measures))


@dataclass(frozen=True)
class _Grid:
    days: Mapping[date, int]
    cells: Mapping[tuple[str, str], int]

    def of(self, rows: Iterable[Row], number: Callable[[Row], float | None]) -> FloatArray:
        """(nights, cells): the number of each row at its place, 0 where there is none."""
        grid = np.zeros((len(self.days), len(self.cells)))
        for row in rows:
            grid[self.days[row.day], self.cells[row.station, row.age_band]] += number(row) or 0.0
        return grid


def _by(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(getattr(row, column), []).append(row)
    return dict(sorted(parts.items()))


def _flags(grid: _Grid, films: Sequence[Row], fired: Sequence[Row], counts: FloatArray) -> list[Measure]:
    flagged = grid.of(films, lambda row: row.flagged_films)
    repaired = grid.of(films, lambda row: row.repaired_films)
    shares = {"films with flags": flagged, "films with repaired masks": repaired}
    shares |= {
        f"flag {rule}": grid.of(part, lambda row: row.flagged_films) for rule, part in _by(fired, "rule").items()
    }
    return [Measure(Family.FLAGS, name, "share", counts, sums) for name, sums in shares.items()]


def _scores(grid: _Grid, rows: Sequence[Row], manifest: Mapping[str, Any]) -> list[Measure]:
    found = []
    for finding, part in _by(rows, "finding").items():
        films, *moments = _moments(grid, part, "films", "mean_probability", "variance")
        tenths = np.stack([grid.of(part, lambda row, name=name: getattr(row, name)) for name in _TENTHS], axis=-1)  # type: ignore[misc]
        spread = grid.of(part, lambda row: row.mean_spread * row.films)
        found += [
            Measure(Family.SCORES, f"mean probability of {finding}", "mean", films, *moments),
            Measure(Family.SCORES, f"distribution of {finding}", "distribution", films, counts=tenths),
            Measure(Family.MEMBERS, f"disagreement on {finding}", "mean", films, spread),
        ]
        reference = reference_of(manifest, finding)
        if reference is not None:
            found.append(
                Measure(Family.REFERENCE, f"distribution of {finding}", "distribution", films, counts=tenths,
                        reference=reference)
            )  # fmt: skip
    return found


def reference_of(manifest: Mapping[str, Any], finding: str) -> FloatArray | None:
    """(10,): how many of the films that a bundle was measured on had a probability in each tenth; None if not kept."""
    metrics = manifest.get("metrics") or {}
    kept = (metrics.get("classification") or {}).get("reference") or {}
    counts = np.asarray(kept.get(finding, ()), np.float64)
    return counts if counts.shape == (len(_TENTHS),) and counts.sum() > 0 else None


def _areas(grid: _Grid, rows: Sequence[Row]) -> list[Measure]:
    found = []
    for region, part in _by(rows, "region").items():
        films, *moments = _moments(grid, part, "films", "mean_area_fraction", "variance")
        missing = grid.of(part, lambda row: row.missing_films)
        found += [
            Measure(Family.AREAS, f"area of {region}", "mean", films, *moments),
            Measure(Family.AREAS, f"films without {region}", "share", films, missing),
        ]
    return found


def _inputs(grid: _Grid, rows: Sequence[Row]) -> list[Measure]:
    measured = {
        "grey level": ("grey_films", "mean_grey", "grey_variance"),
        "grey contrast": ("grey_films", "mean_grey_spread", "grey_spread_variance"),
        "pixel spacing": ("spacing_films", "mean_spacing", "spacing_variance"),
    }
    return [Measure(Family.INPUT, name, "mean", *_moments(grid, rows, *columns)) for name, columns in measured.items()]


def _moments(grid: _Grid, rows: Sequence[Row], films: str, mean: str, variance: str) -> tuple[FloatArray, ...]:
    """Films, sums and sums of squares."""

    def sums(row: Row) -> float:
        return (getattr(row, mean) or 0.0) * getattr(row, films)

    def squares(row: Row) -> float:
        return ((getattr(row, variance) or 0.0) + (getattr(row, mean) or 0.0) ** 2) * getattr(row, films)

    return grid.of(rows, lambda row: getattr(row, films)), grid.of(rows, sums), grid.of(rows, squares)


def _mixes(grid: _Grid, counts: FloatArray, views: Sequence[Row]) -> list[Measure]:
    parted = _by(views, "view_position").values()
    by_view = [grid.of(part, lambda row: row.films) for part in parted]
    found = {
        STATION_MIX: [_only(grid, counts, 0, name) for name in sorted({cell[0] for cell in grid.cells})],
        AGE_MIX: [_only(grid, counts, 1, name) for name in sorted({cell[1] for cell in grid.cells})],
        VIEW_MIX: by_view,
    }
    return [
        Measure(Family.MIX, name, "mix", counts, counts=np.stack(parts, axis=-1))
        for name, parts in found.items()
        if parts
    ]


def _only(grid: _Grid, counts: FloatArray, part: int, name: str) -> FloatArray:
    return np.where([cell[part] == name for cell in grid.cells], counts, 0.0)
