"""Do the nights change, before any label says so?

Looked at are the nightly results of the bundle in service: scores, flags, areas, how far the networks disagree, and
what the detectors deliver; of all films, of each station and of each age band. Every number is corrected for the mix of
stations and ages: a night with more newborns is no drift of the network. The mix itself is looked at as well, and what
moves together with the mix of views is called that and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt

from worker.monitor.drift_charts import (
    BASELINE_NIGHTS,
    LEAST_FILMS,
    FloatArray,
    distances,
    is_over,
    is_signal,
    means,
    shares,
)


class Family(StrEnum):
    """What a series is about; an alert's rule is called the same."""

    SCORES = "score_drift"
    REFERENCE = "score_reference"
    FLAGS = "flag_drift"
    AREAS = "area_drift"
    MEMBERS = "disagreement_drift"
    INPUT = "input_drift"
    MIX = "mix_shift"


class State(StrEnum):
    """What is to be said of a series; ``fading`` was a signal or is on the way to one."""

    LEARNING = "learning"
    QUIET = "quiet"
    FADING = "fading"
    SIGNAL = "signal"


@dataclass(frozen=True, order=True)
class Group:
    """Some of the films: ``all``, those of a ``station`` or of an ``age_band``."""

    kind: Literal["all", "station", "age_band"] = "all"
    value: str = ""

    def __str__(self) -> str:
        if self.kind == "all":
            return "all films"
        if self.kind == "station":
            return f"station {self.value or 'unknown'}"
        return f"age {self.value.removeprefix('age ')}"


ALL = Group()


@dataclass(frozen=True)
class Cell:
    """Films that are compared with films of their kind only."""

    station: str
    age_band: str

    def lies_in(self, group: Group) -> bool:
        """Whether the cell's films are of the group."""
        return group.kind == "all" or getattr(self, group.kind) == group.value


@dataclass(frozen=True)
class Measure:
    """What was measured, night by night and cell by cell.

    Attributes
    ----------
    films
        (nights, cells).
    sums, squares
        (nights, cells): sums over the films, of a number or, for a ``share``, how many have it.
    counts
        (nights, cells, categories) of a ``distribution`` or ``mix``.
    reference
        (categories,): what the bundle's own distribution was; None: the first nights here.
    """

    family: Family
    name: str
    kind: Literal["mean", "share", "distribution", "mix"]
    films: FloatArray
    sums: FloatArray | None = None
    squares: FloatArray | None = None
    counts: FloatArray | None = None
    reference: FloatArray | None = None


@dataclass(frozen=True)
class Nights:
    """All that is known of a bundle's nights, the first first."""

    days: tuple[date, ...]
    cells: tuple[Cell, ...]
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Series:
    """One number in one group of films, as of its last night.

    ``seen`` and ``expected`` are of the last night: a mean or share, or for distributions the population stability
    index and its limit. ``sigma`` is the distance in units of the usual scatter. ``with_mix`` names the mixes that
    moved at the same time: then it is no drift of the network.
    """

    family: Family
    name: str
    group: Group
    state: State
    nights: int
    last: date | None = None
    seen: float | None = None
    expected: float | None = None
    sigma: float | None = None
    with_mix: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.sigma is None or self.seen is None or self.expected is None:
            return self.name
        if "distribution" in self.name or self.family is Family.MIX:
            return f"{self.name} (stability index {self.seen:.2f}, limit {self.expected:.2f})"
        return f"{self.name} {self.seen:.4g}, expected {self.expected:.4g} ({self.sigma:+.1f} sigma)"


@dataclass(frozen=True)
class Chart:
    """A series night by night: the nights that have films enough, the first :data:`BASELINE_NIGHTS` say what is usual.

    ``seen``, ``expected`` and ``sigmas`` are those of :mod:`worker.monitor.drift_charts`; (nights,) each.
    ``baseline`` counts the nights that say what is usual.
    """

    measure: Measure
    group: Group
    days: tuple[date, ...]
    baseline: int
    seen: FloatArray
    expected: FloatArray
    sigmas: FloatArray

    def as_of(self, nights: int | None = None) -> Series:
        """What is to be said after so many of the nights; None: all."""
        sigmas = self.sigmas[:nights]
        series = Series(self.measure.family, self.measure.name, self.group, State.LEARNING, len(sigmas))
        after = sigmas[self.baseline :]
        if np.isnan(after).all():
            return series
        state = State.SIGNAL if is_signal(after) else State.QUIET if is_over(after) else State.FADING
        last = int(np.flatnonzero(~np.isnan(sigmas))[-1])
        return replace(
            series,
            state=state,
            last=self.days[last],
            seen=float(self.seen[last]),
            expected=float(self.expected[last]),
            sigma=float(sigmas[last]),
        )


def groups_of(cells: Iterable[Cell]) -> list[Group]:
    """All films, and each station's and age band's."""
    cells = list(cells)
    stations = {Group("station", cell.station) for cell in cells}
    return sorted({ALL, *stations, *(Group("age_band", cell.age_band) for cell in cells)})


def charts(nights: Nights, accepted: Mapping[tuple[Family, Group], date] | None = None) -> Iterator[Chart]:
    """Every series.

    Parameters
    ----------
    accepted
        Since when a change in a family and group is how things are: its series are learned anew from there.
    """
    for measure in nights.measures:
        for group in groups_of(nights.cells):
            if _applies(measure, group):
                yield _chart(nights, measure, group, learned_since(measure.family, group, accepted or {}))


def judge(found: Iterable[Chart], nights: int | None = None) -> tuple[Series, ...]:
    """What is to be said of all series together, after so many nights of each; None: after all."""
    return tuple(_explained(_narrowed(chart.as_of(nights) for chart in found)))


def _applies(measure: Measure, group: Group) -> bool:
    if measure.family is Family.REFERENCE:
        return group == ALL
    if measure.family is Family.MIX:
        # The mix of stations says nothing within one, nor that of ages.
        return group == ALL or (group.kind == "station" and measure.name != STATION_MIX)
    return True


STATION_MIX, AGE_MIX, VIEW_MIX = "mix of stations", "mix of ages", "mix of views"


def learned_since(family: Family, group: Group, accepted: Mapping[tuple[Family, Group], date]) -> date | None:
    """From when on a series is learned: a station's change is one of all films and of every age band as well."""
    return max(
        (
            day
            for (other, where), day in accepted.items()
            if other is family and (where in (ALL, group) or group == ALL or group.kind != where.kind)
        ),
        default=None,
    )


def _chart(nights: Nights, measure: Measure, group: Group, since: date | None) -> Chart:
    columns = np.array([cell.lies_in(group) for cell in nights.cells])
    late = np.array([since is None or day >= since for day in nights.days])
    places = np.flatnonzero((measure.films[:, columns].sum(1) >= LEAST_FILMS) & late)
    baseline = 0 if measure.reference is not None else BASELINE_NIGHTS
    days = tuple(nights.days[place] for place in places)
    numbers = _numbers(measure, places, columns, baseline)
    return Chart(measure, group, days, baseline, *numbers)


def _numbers(
    measure: Measure, places: npt.NDArray[np.intp], columns: npt.NDArray[np.bool_], baseline: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    if measure.counts is not None:
        counts = measure.counts[places][:, columns]
        if measure.kind == "mix":
            return distances(counts.sum(1, keepdims=True), baseline)
        return distances(counts, baseline, measure.reference, ordered=True)
    assert measure.sums is not None
    films, sums = measure.films[places][:, columns], measure.sums[places][:, columns]
    if measure.kind == "share":
        return shares(sums, films, baseline)
    squares = None if measure.squares is None else measure.squares[places][:, columns]
    return means(sums, squares, films, baseline)


def _explained(found: Sequence[Series]) -> list[Series]:
    """Say of each signal which mix moved with it: views are not corrected for, stations and ages are."""
    moved = {series.group for series in found if series.name == VIEW_MIX and series.state is State.SIGNAL}

    def mixes(series: Series) -> tuple[str, ...]:
        if series.family is Family.MIX:
            return ()
        stations = {group for group in moved if group.kind == "station"}
        # A station's views move the numbers of all films and of every age band.
        touched = ALL in moved or series.group in moved or (series.group.kind != "station" and stations)
        return (VIEW_MIX,) if touched else ()

    return [replace(s, with_mix=mixes(s)) if s.state is State.SIGNAL else s for s in found]


def _narrowed(found: Iterable[Series]) -> list[Series]:
    """Leave a signal to the narrowest group that has it; the others are ``fading``: no alert of their own."""
    kept = list(found)
    by_measure: dict[tuple[Family, str], list[int]] = {}
    for place, series in enumerate(kept):
        by_measure.setdefault((series.family, series.name), []).append(place)
    for places in by_measure.values():
        judged = [place for place in places if kept[place].state is not State.LEARNING]
        signals = [place for place in judged if kept[place].state is State.SIGNAL]
        if not signals:
            continue
        stations = [place for place in judged if kept[place].group.kind == "station"]
        moved = [place for place in stations if place in signals]
        whole = [place for place in signals if kept[place].group == ALL]
        ages = [place for place in judged if kept[place].group.kind == "age_band"]
        moved_ages = [place for place in ages if place in signals]
        # What most stations have is everybody's.
        if moved and not (whole and 2 * len(moved) > len(stations)):
            cause = moved
        elif whole and (moved or not moved_ages or len(moved_ages) == len(ages)):
            cause = whole
        else:
            cause = moved_ages or whole
        for place in set(signals) - set(cause):
            kept[place] = replace(kept[place], state=State.FADING)
    return kept
