"""Lines with their 95 % intervals, as coordinates for the templates to draw: no script, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

#: Size of a plot's own coordinates, and where its lines begin and end.
WIDTH, HEIGHT = 480.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 470.0, 10.0, 142.0
_Z = 1.959963984540054


@dataclass(frozen=True)
class Measured:
    """A value of a day and the ends of its interval; None where there is no interval."""

    day: date
    value: float
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Mark:
    """A place on an axis and what is written there."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """A value where it is drawn, with what is said of it."""

    x: float
    y: float
    words: str


@dataclass(frozen=True)
class Plot:
    """Paths of a plot; ``bands`` and ``lines`` are broken where days are missing."""

    title: str
    summary: str
    bands: tuple[str, ...]
    lines: tuple[str, ...]
    dots: tuple[Dot, ...]
    rows: tuple[Mark, ...]
    columns: tuple[Mark, ...]
    values: tuple[Measured, ...]


def rate(part: int, whole: int) -> tuple[float, float, float]:
    """A proportion and its 95 % interval (Wilson 1927); ``whole`` is at least 1."""
    share = part / whole
    middle = (share + _Z**2 / (2 * whole)) / (1 + _Z**2 / whole)
    half = _Z * math.sqrt(share * (1 - share) / whole + _Z**2 / (4 * whole**2)) / (1 + _Z**2 / whole)
    return share, max(0.0, middle - half), min(1.0, middle + half)


def mean(total: float, squares: float, count: int) -> tuple[float, float | None, float | None]:
    """A mean and its 95 % interval from sum and sum of squares; no interval for a single value."""
    centre = total / count
    if count < 2:
        return centre, None, None
    variance = max(0.0, (squares - total * centre) / (count - 1))
    half = _Z * math.sqrt(variance / count)
    return centre, centre - half, centre + half


def plot(title: str, values: Sequence[Measured], *, low: float, high: float, percent: bool, gap: int = 8) -> Plot:
    """Values over days, between ``low`` and ``high`` at least; days further apart than ``gap`` are not joined."""
    ordered = sorted(values, key=lambda item: item.day)
    ends = [end for item in ordered for end in (item.value, item.low, item.high) if end is not None]
    low, high = min([low, *ends]), max([high, *ends])
    step = _step(high - low)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = (ordered[0].day, ordered[-1].day) if ordered else (date.min, date.min)
    days = max(1, (last - first).days)

    def x(day: date) -> float:
        return (LEFT + RIGHT) / 2 if first == last else LEFT + (RIGHT - LEFT) * (day - first).days / days

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    def point(day: date, value: float) -> str:
        return f"{x(day):.1f},{y(value):.1f}"

    lines, bands = [], []
    for part in _joined(ordered, gap):
        lines.append(" ".join(point(item.day, item.value) for item in part))
        sure = [item for item in part if item.low is not None and item.high is not None]
        upper = [point(item.day, item.high) for item in sure if item.high is not None]
        lower = [point(item.day, item.low) for item in reversed(sure) if item.low is not None]
        if len(sure) > 1:
            bands.append(" ".join(upper + lower))
        elif sure:
            left, right = x(sure[0].day) - 2, x(sure[0].day) + 2
            top, bottom = y(sure[0].high or 0.0), y(sure[0].low or 0.0)
            corners = ((left, top), (right, top), (right, bottom), (left, bottom))
            bands.append(" ".join(f"{across:.1f},{down:.1f}" for across, down in corners))
    whole = abs(100 * step - round(100 * step)) < 1e-6
    written = ("{:.0%}" if whole else "{:.1%}") if percent else "{:.2f}"
    count = round((high - low) / step)
    middle = first + timedelta(days=days // 2)
    shown = [first] if first == last else [first, middle, last] if days > 2 else [first, last]
    return Plot(
        title,
        f"{title}: {ordered[-1].words}" if ordered else f"{title}: nothing yet",
        tuple(bands),
        tuple(lines),
        tuple(Dot(x(item.day), y(item.value), item.words) for item in ordered),
        tuple(Mark(y(low + step * row), written.format(low + step * row)) for row in range(count + 1)),
        tuple(Mark(x(day), f"{day:%d %b}") for day in shown) if ordered else (),
        tuple(reversed(ordered)),
    )


def _step(span: float) -> float:
    """A round distance between lines, so that there are three to seven of them."""
    rough = max(span, 1e-6) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)


def _joined(ordered: Sequence[Measured], gap: int) -> list[list[Measured]]:
    parts: list[list[Measured]] = []
    for item in ordered:
        if parts and (item.day - parts[-1][-1].day).days <= gap:
            parts[-1].append(item)
        else:
            parts.append([item])
    return parts
