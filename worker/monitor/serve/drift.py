"""What moves before labels exist: flags, scores, areas and what the detectors deliver, from counted days."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, func, select

from schema import findings as finding_names
from schema.findings import Finding
from schema.queries import bundle_aliases
from schema.regions import REGION_BY_NAME
from schema.view_tables import area_drift, film_drift, input_drift, score_drift, view_drift
from worker.monitor.serve.plots import Measured, Plot, mean, plot, rate

DAYS = (30, 90, 365)
_ORDER = {name: place for place, name in enumerate((*map(str, Finding), *REGION_BY_NAME))}


@dataclass(frozen=True)
class _Moments:
    """Columns of a view from which a plot of daily means is made; ``films`` is how many have the number."""

    title: str
    mean: str
    variance: str
    films: str
    percent: bool
    high: float


_INPUTS = (
    _Moments("Grey level", "mean_grey", "grey_variance", "grey_films", percent=True, high=0.1),
    _Moments("Grey contrast", "mean_grey_spread", "grey_spread_variance", "grey_films", percent=True, high=0.1),
    _Moments("Pixel spacing, mm", "mean_spacing", "spacing_variance", "spacing_films", percent=False, high=0.2),
)


@dataclass(frozen=True)
class _Asked:
    """Which rows of the views: those of a bundle since a day, "" for any station or age band."""

    since: date
    bundle: str
    station: str
    age_band: str

    def of(self, view: Table) -> tuple[ColumnElement[bool], ...]:
        conditions = [view.c.day >= self.since, view.c.bundle == self.bundle]
        if self.station:
            conditions.append(view.c.station == self.station)
        if self.age_band:
            conditions.append(view.c.age_band == self.age_band)
        return tuple(conditions)


@dataclass(frozen=True)
class DriftPage:
    """Plots of one bundle, station and age band; "" is all of them."""

    bundle: str
    station: str
    age_band: str
    days: int
    bundles: tuple[str, ...]
    stations: tuple[str, ...]
    age_bands: tuple[str, ...]
    inputs: tuple[Plot, ...]
    views: tuple[Plot, ...]
    flags: Plot
    scores: tuple[Plot, ...]
    spreads: tuple[Plot, ...]
    areas: tuple[Plot, ...]


def read_drift(connection: Connection, parameters: Mapping[str, str], *, today: date | None = None) -> DriftPage:
    """What the address asks for; the bundle in service over 90 days where it says nothing known."""
    asked = parameters.get("days", "")
    days = int(asked) if asked.isdecimal() and int(asked) in DAYS else 90
    since = (today or datetime.now(UTC).date()) - timedelta(days=days)
    groups = connection.execute(
        select(film_drift.c.bundle, film_drift.c.station, film_drift.c.age_band)
        .where(film_drift.c.day >= since)
        .distinct()
    ).all()
    champion = bundle_aliases(connection).get("champion")
    bundles = tuple(sorted({row.bundle for row in groups}, key=lambda name: (name != champion, name)))
    stations = tuple(sorted({row.station for row in groups if row.station}))
    age_bands = tuple(sorted({row.age_band for row in groups if row.age_band}))
    name = parameters.get("bundle", "")
    name = name if name in bundles else bundles[0] if bundles else ""
    station, band = parameters.get("station", ""), parameters.get("age_band", "")
    station, band = station if station in stations else "", band if band in age_bands else ""
    asked_for = _Asked(since, name, station, band)
    return DriftPage(
        name,
        station,
        band,
        days,
        bundles,
        stations,
        age_bands,
        tuple(_input(connection, moments, asked_for) for moments in _INPUTS),
        _views(connection, asked_for),
        _flags(connection, asked_for),
        _means(connection, score_drift, "finding", "mean_probability", asked_for, title=finding_names.title),
        _spreads(connection, asked_for),
        _means(connection, area_drift, "region", "mean_area_fraction", asked_for, title=_region_title),
    )


def _input(connection: Connection, of: _Moments, asked: _Asked) -> Plot:
    columns = input_drift.c
    values = [
        _measured(row, percent=of.percent)
        for row in connection.execute(
            select(columns.day, *_sums(columns[of.mean], columns[of.variance], columns[of.films]))
            .where(*asked.of(input_drift))
            .group_by(columns.day)
        )
        if row.films
    ]
    return plot(of.title, values, low=0.0, high=of.high, percent=of.percent)


def _views(connection: Connection, asked: _Asked) -> tuple[Plot, ...]:
    columns = view_drift.c
    query = (
        select(columns.day, columns.view_position, func.sum(columns.films).label("films"))
        .where(*asked.of(view_drift))
        .group_by(columns.day, columns.view_position)
    )
    rows = connection.execute(query).all()
    totals: dict[date, int] = {}
    for row in rows:
        totals[row.day] = totals.get(row.day, 0) + int(row.films)
    values: dict[str, dict[date, int]] = {}
    for row in rows:
        values.setdefault(row.view_position, {})[row.day] = int(row.films)
    return tuple(
        plot(
            f"View {view or 'unknown'}",
            [_part(day, counts.get(day, 0), films, "so taken") for day, films in totals.items()],
            low=0.0, high=1.0, percent=True,
        )
        for view, counts in sorted(values.items())
    )  # fmt: skip


def _flags(connection: Connection, asked: _Asked) -> Plot:
    columns = film_drift.c
    query = (
        select(columns.day, func.sum(columns.films).label("films"), func.sum(columns.flagged_films).label("flagged"))
        .where(*asked.of(film_drift))
        .group_by(columns.day)
    )
    values = [
        _part(row.day, int(row.flagged), int(row.films), "flagged") for row in connection.execute(query) if row.films
    ]
    return plot("Films with a flag", values, low=0.0, high=0.05, percent=True)


def _part(day: date, part: int, whole: int, what: str) -> Measured:
    return Measured(day, *rate(part, whole), f"{day:%Y-%m-%d}: {part} of {_films(whole)} {what}")


def _spreads(connection: Connection, asked: _Asked) -> tuple[Plot, ...]:
    columns = score_drift.c
    query = (
        select(
            columns.day,
            columns.finding,
            func.sum(columns.films).label("films"),
            func.sum(columns.mean_spread * columns.films).label("total"),
        )
        .where(*asked.of(score_drift))
        .group_by(columns.day, columns.finding)
    )
    values: dict[str, list[Measured]] = {}
    for row in connection.execute(query):
        if row.films:
            spread = float(row.total) / int(row.films)
            words = f"{row.day:%Y-%m-%d}: {spread:.1%} apart on average, {_films(row.films)}"
            values.setdefault(row.finding, []).append(Measured(row.day, spread, None, None, words))
    return tuple(
        plot(finding_names.title(each), values[each], low=0.0, high=0.1, percent=True) for each in _order(values)
    )


def _means(
    connection: Connection,
    view: Table,
    names: str,
    means: str,
    asked: _Asked,
    *,
    title: Callable[[str], str],
) -> tuple[Plot, ...]:
    name = view.c[names]
    query = (
        select(view.c.day, name.label("name"), *_sums(view.c[means], view.c.variance, view.c.films))
        .where(*asked.of(view))
        .group_by(view.c.day, name)
    )
    values: dict[str, list[Measured]] = {}
    for row in connection.execute(query):
        if row.films:
            values.setdefault(row.name, []).append(_measured(row, percent=True))
    return tuple(plot(title(each), values[each], low=0.0, high=0.1, percent=True) for each in _order(values))


def _sums(
    centre: ColumnElement[Any], variance: ColumnElement[Any], films: ColumnElement[Any]
) -> tuple[ColumnElement[Any], ...]:
    """Means and variances of groups give sums and sums of squares back, and those of all groups add up."""
    return (
        func.sum(films).label("films"),
        func.sum(centre * films).label("total"),
        func.sum((variance + centre * centre) * films).label("squares"),
    )


def _measured(row: Row[Any], *, percent: bool) -> Measured:
    count = int(row.films)
    middle, low, high = mean(float(row.total), float(row.squares), count)
    written = f"{middle:.1%}" if percent else f"{middle:.3f}"
    return Measured(row.day, middle, low, high, f"{row.day:%Y-%m-%d}: {written} on average, {_films(count)}")


def _films(count: int) -> str:
    return f"{count} film{'' if count == 1 else 's'}"


def _order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))


def _region_title(name: str) -> str:
    known = REGION_BY_NAME.get(name)
    return known.title if known else name.replace("_", " ").capitalize()
