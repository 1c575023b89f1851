"""Which films does a tracked number speak of?

A film belongs to the day on which it came (UTC). That never changes, so a label that comes late, or another reading of
the film, falls into the same windows as ever. A window ends at a midnight and reaches back 7, 30 or 90 days, or to when
the bundle was put into service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta

import numpy as np
import numpy.typing as npt

from schema.tables import Cohort, Period

#: Period → days; None: since promotion.
DAYS: Mapping[Period, int | None] = {
    Period.WEEK: 7,
    Period.MONTH: 30,
    Period.QUARTER: 90,
    Period.SINCE_PROMOTION: None,
}
#: Windows that ended longer ago than so many days are not computed anew.
HISTORY_DAYS = 180
_FIFTH_BIRTHDAY = 5 * 365.25


@dataclass(frozen=True)
class Films:
    """Labelled films that a bundle has read, by when they came.

    Attributes
    ----------
    ids, jobs
        (films,): the film, and the result that speaks for it.
    patients
        (films,): equal for films of one patient.
    came
        (films,): when, as seconds since 1970, rising.
    cohorts
        Cohort → (films,), which of its values; ``""`` where that is not known.
    """

    ids: npt.NDArray[np.int64]
    jobs: npt.NDArray[np.int64]
    patients: npt.NDArray[np.int64]
    came: npt.NDArray[np.float64]
    cohorts: Mapping[Cohort, npt.NDArray[np.str_]]


@dataclass(frozen=True)
class WindowKey:
    """Which window: as the columns of the tables are called."""

    cohort: Cohort
    cohort_value: str
    period: Period
    ends_at: datetime


@dataclass(frozen=True)
class Window:
    """A window and the films in it, as places in :class:`Films`."""

    key: WindowKey
    starts_at: datetime
    places: npt.NDArray[np.intp]


def age_band(age_days: int | None) -> str:
    """``"0-4"`` or ``"5+"`` years; ``""`` where the age is not known."""
    if age_days is None:
        return ""
    return "0-4" if age_days < _FIFTH_BIRTHDAY else "5+"


def midnight_after(moment: datetime) -> datetime:
    """The end of a moment's day (UTC)."""
    return datetime.combine(moment.astimezone(UTC).date() + timedelta(days=1), time(), UTC)


def ends(films: Films, last: datetime, history_days: int = HISTORY_DAYS) -> list[datetime]:
    """Ends of windows, the last first, back to the day of the first film."""
    if not films.came.size:
        return [last]
    first = midnight_after(datetime.fromtimestamp(float(films.came[0]), UTC))
    count = min(max((last - first).days, 0), history_days)
    return [last - timedelta(days=day) for day in range(count + 1)]


def windows(films: Films, promoted_at: datetime, ends_at: Sequence[datetime], last: datetime) -> Iterator[Window]:
    """The windows that end then and have films in them; of those that end at ``last`` all films' in any case."""
    for end in ends_at:
        for period, days in DAYS.items():
            start = promoted_at if days is None else end - timedelta(days=days)
            if start >= end:
                continue
            low, high = np.searchsorted(films.came, [start.timestamp(), end.timestamp()], side="left")
            inside = np.arange(low, high)
            if inside.size or end == last:
                yield Window(WindowKey(Cohort.ALL, "", period, end), start, inside)
            for cohort, values in films.cohorts.items():
                here = values[low:high]
                for value in np.unique(here):
                    if value:
                        yield Window(WindowKey(cohort, str(value), period, end), start, inside[here == value])
