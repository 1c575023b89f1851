"""What moves before labels exist: flags, scores and areas day by day, from counted days."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, TableClause, column, func, select, table

from schema import findings as finding_names
from schema.findings import Finding
from schema.queries import bundle_aliases
from schema.regions import REGION_BY_NAME
from worker.monitor.serve.plots import Measured, Plot, mean, plot, rate

DAYS = (30, 90, 365)
_ORDER = {name: place for place, name in enumerate((*map(str, Finding), *REGION_BY_NAME))}

_FILMS = table("film_drift", *map(column, ("day", "bundle", "station", "age_band", "films", "flagged_films")))
_GROUP = ("day", "bundle", "station", "age_band", "films", "variance")
_SCORES = table("score_drift", *map(column, (*_GROUP, "finding", "mean_probability")))
_AREAS = table("area_drift", *map(column, (*_GROUP, "region", "mean_area_fraction")))


@dataclass(frozen=True)
class _Asked:
    """Which rows of the views: those of a bundle since a day, "" for any station or age band."""

    since: Any
    bundle: str
    station: str
    age_band: str

    def of(self, view: TableClause) -> tuple[ColumnElement[bool], ...]:
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
    flags: Plot
    scores: tuple[Plot, ...]
    areas: tuple[Plot, ...]


def read_drift(connection: Connection, parameters: Mapping[str, str], *, today: date | None = None) -> DriftPage:
    """What the address asks for; the bundle in service over 90 days where it says nothing known."""
    asked = parameters.get("days", "")
    days = int(asked) if asked.isdecimal() and int(asked) in DAYS else 90
    since = (today or datetime.now(UTC).date()) - timedelta(days=days)
    begin = since.isoformat() if connection.dialect.name == "sqlite" else since
    groups = connection.execute(
        select(_FILMS.c.bundle, _FILMS.c.station, _FILMS.c.age_band).where(_FILMS.c.day >= begin).distinct()
    ).all()
    champion = bundle_aliases(connection).get("champion")
    bundles = tuple(sorted({row.bundle for row in groups}, key=lambda name: (name != champion, name)))
    stations = tuple(sorted({row.station for row in groups if row.station}))
    age_bands = tuple(sorted({row.age_band for row in groups if row.age_band}))
    name = parameters.get("bundle", "")
    name = name if name in bundles else bundles[0] if bundles else ""
    station, band = parameters.get("station", ""), parameters.get("age_band", "")
    station, band = station if station in stations else "", band if band in age_bands else ""
    asked_for = _Asked(begin, name, station, band)
    return DriftPage(
        name,
        station,
        band,
        days,
        bundles,
        stations,
        age_bands,
        _flags(connection, asked_for),
        _means(connection, _SCORES, "finding", "mean_probability", asked_for, title=finding_names.title),
        _means(connection, _AREAS, "region", "mean_area_fraction", asked_for, title=_region_title),
    )


def _flags(connection: Connection, asked: _Asked) -> Plot:
    query = (
        select(_FILMS.c.day, func.sum(_FILMS.c.films).label("films"), func.sum(_FILMS.c.flagged_films).label("flagged"))
        .where(*asked.of(_FILMS))
        .group_by(_FILMS.c.day)
    )
    values = []
    for row in connection.execute(query):
        if row.films:
            day, films, flagged = _date(row.day), int(row.films), int(row.flagged)
            words = f"{day:%Y-%m-%d}: {flagged} of {films} films flagged"
            values.append(Measured(day, *rate(flagged, films), words))
    return plot("Films with a flag", values, low=0.0, high=0.05, percent=True)


def _means(
    connection: Connection,
    view: TableClause,
    names: str,
    means: str,
    asked: _Asked,
    *,
    title: Callable[[str], str],
) -> tuple[Plot, ...]:
    name, centre, films = view.c[names], view.c[means], view.c.films
    query = (
        select(
            view.c.day,
            name.label("name"),
            func.sum(films).label("films"),
            # Means and variances of groups give sums and sums of squares back, and those of all groups add up.
            func.sum(centre * films).label("total"),
            func.sum((view.c.variance + centre * centre) * films).label("squares"),
        )
        .where(*asked.of(view))
        .group_by(view.c.day, name)
    )
    values: dict[str, list[Measured]] = {}
    for row in connection.execute(query):
        if row.films:
            day, count = _date(row.day), int(row.films)
            middle, low, high = mean(float(row.total), float(row.squares), count)
            words = f"{day:%Y-%m-%d}: {middle:.1%} on average, {count} film{'' if count == 1 else 's'}"
            values.setdefault(row.name, []).append(Measured(day, middle, low, high, words))
    return tuple(
        plot(title(slug), values[slug], low=0.0, high=0.1, percent=True)
        for slug in sorted(values, key=lambda slug: (_ORDER.get(slug, len(_ORDER)), slug))
    )


def _region_title(name: str) -> str:
    known = REGION_BY_NAME.get(name)
    return known.title if known else name.replace("_", " ").capitalize()


def _date(value: Any) -> date:
    """SQLite hands days over as text."""
    return date.fromisoformat(value) if isinstance(value, str) else value
