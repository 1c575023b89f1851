"""How well do bundles do on labelled films, and does it get worse?

For every bundle with published results the numbers of each finding are kept for each cohort and window of the last
:data:`worker.monitor.windows.HISTORY_DAYS` days (``auc_tracking``), those of the regions that readers drew besides
(``dice_tracking``), and for a bundle on trial how its areas differ from those of the bundle in service on the films
that both have read (``auc_comparison``). Only films that nobody chose count, and none that a bundle may have learned
from: see :mod:`worker.monitor.labelled_films`.

In a worker films come first: the duty works for seconds at a time and goes on at the next occasion.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, func, insert, select

from schema.database import Database
from schema.tables import (
    Cohort,
    JobKind,
    JobState,
    Period,
    auc_comparison,
    auc_tracking,
    job,
    label,
    label_map,
    tracking_run,
)
from schema.types import database_now
from worker.bootstrap import REPLICATES
from worker.monitor.auc_figures import paired, performance
from worker.monitor.dice import track_dice
from worker.monitor.labelled_films import JudgedBundle, JudgedFilms, Standing, Truth, judge, judged_bundles, truth_of
from worker.monitor.labels import ReaderPolicy
from worker.monitor.tracking import Effort, OutOfTimeError, Row, Tracker
from worker.monitor.windows import HISTORY_DAYS, Films, Window, ends, midnight_after, windows

#: How long the duty works before it lets the worker go on with its other chores.
DUTY_SECONDS = 20.0

_LEFT_OUT = {
    "left_out_training": Standing.TRAINING,
    "left_out_chosen": Standing.CHOSEN,
    "left_out_uncertain": Standing.UNCERTAIN,
}


@dataclass(frozen=True)
class TrackingReport:
    """What was done: how many windows were computed, and whether everything is up to date."""

    computed: int
    finished: bool

    def __str__(self) -> str:
        more = "" if self.finished else ", more to do"
        return f"{self.computed} windows computed{more}" if self.computed or not self.finished else "nothing new"


def auc_duty(database: Database, readers: ReaderPolicy) -> str:
    """Track for some seconds; returns a line for the record."""
    return str(track(database, readers=readers, seconds=DUTY_SECONDS))


def track(
    database: Database,
    *,
    readers: ReaderPolicy = ReaderPolicy.MAJORITY,
    seconds: float | None = None,
    replicates: int = REPLICATES,
    now: datetime | None = None,
    history_days: int = HISTORY_DAYS,
) -> TrackingReport:
    """Bring everything that is tracked up to date.

    Parameters
    ----------
    seconds
        Stop when so many are over, after at least one window; None: not before all is done.
    now
        The database's time if it is None. What labels and results say later is still seen.
    """
    with database.read() as connection:
        # A label that comes while we compute belongs to the next time.
        newest = _newest(connection)
        last = midnight_after(now or connection.execute(select(database_now())).scalar_one())
        if newest == (0, 0) or (seconds is not None and _up_to_date(connection, last, newest)):
            return TrackingReport(0, True)
        truth = truth_of(connection, readers)
        bundles = judged_bundles(connection)
    effort = Effort(float("inf") if seconds is None else time.monotonic() + seconds)
    night = _Night(database, truth, readers, effort, replicates, last, history_days)
    try:
        # What people look at first is brought up to date first.
        for each in sorted(bundles, key=lambda item: (not item.champion, -item.id)):
            night.track(each)
        night.compare(bundles)
        for each in bundles:
            track_dice(night.tracker_of, each, last, history_days)
    except OutOfTimeError:
        return TrackingReport(effort.computed, False)
    values = {"ends_at": last, "last_label_id": newest[0], "last_label_map_id": newest[1]}
    with database.write() as connection:
        connection.execute(insert(tracking_run).values(**values, computed=effort.computed))
    return TrackingReport(effort.computed, True)


@dataclass(frozen=True)
class _Night:
    """One time of bringing everything up to date."""

    database: Database
    truth: Truth
    readers: ReaderPolicy
    effort: Effort
    replicates: int
    last: datetime
    history_days: int

    def track(self, judged: JudgedBundle) -> None:
        """Keep a bundle's rows."""
        with self.database.read() as connection:
            films = judge(connection, judged, self.truth)
        if not films.findings:
            return
        thresholds = [judged.thresholds[name] for name in films.findings]
        fixed = [np.array(films.findings), np.array(thresholds)]

        def compute(window: Window) -> list[Row]:
            places = window.places
            found = performance(
                films.labels[places], films.scores[places], thresholds, films.films.patients[places],
                replicates=self.replicates,
            )  # fmt: skip
            return [
                {"finding": name, **each.to_row(), **_left_out(films.standing[places, column])}
                for column, (name, each) in enumerate(zip(films.findings, found, strict=True))
            ]

        tracker = self.tracker_of(auc_tracking, bundle_id=judged.id)
        tracker.keep(
            self._windows(films.films, judged), lambda window: [*fixed, *_content(films, window, films.scores)], compute
        )

    def compare(self, bundles: Sequence[JudgedBundle]) -> None:
        """Keep the rows of the bundles on trial."""
        serving = next((each for each in bundles if each.champion), None)
        if serving is None:
            return
        with self.database.read() as connection:
            on_trial = set(connection.scalars(_ON_TRIAL))
        for candidate in bundles:
            if candidate.id in on_trial and not candidate.champion:
                self._compare(serving, candidate)

    def _compare(self, serving: JudgedBundle, candidate: JudgedBundle) -> None:
        both = serving.thresholds.keys() & candidate.thresholds.keys()
        if not both:
            return
        with self.database.read() as connection:
            theirs = judge(connection, serving, self.truth, findings=both)
            ours = judge(connection, candidate, self.truth, findings=both, shadow=True)
        _, left, right = np.intersect1d(theirs.films.ids, ours.films.ids, return_indices=True)
        order = np.argsort(left)
        left, right = left[order], right[order]
        columns = [ours.findings.index(name) for name in theirs.findings]
        second, others = ours.scores[right][:, columns], ours.labels[right][:, columns]
        # A film that one of the two may have learned from compares nothing.
        films = _some(theirs, left, np.where(np.isnan(others), np.nan, theirs.labels[left]))

        def compute(window: Window) -> list[Row]:
            places = window.places
            return [
                {
                    "finding": name,
                    **paired(
                        films.labels[places, column], films.scores[places, column], second[places, column],
                        films.films.patients[places],
                    ),
                }
                for column, name in enumerate(films.findings)
            ]  # fmt: skip

        tracker = self.tracker_of(auc_comparison, bundle_id=serving.id, candidate_id=candidate.id)
        tracker.keep(
            windows(films.films, serving.promoted_at, [self.last], self.last),
            lambda window: [np.array(films.findings), *_content(films, window, films.scores, second)],
            compute,
        )

    def _windows(self, films: Films, judged: JudgedBundle) -> Iterator[Window]:
        if not (films.ids.size or judged.champion):
            return iter(())
        return windows(films, judged.promoted_at, ends(films, self.last, self.history_days), self.last)

    def tracker_of(self, table: Any, **owner: int) -> Tracker:
        """What keeps the rows of a table that belong to ``owner``."""
        # Of comparisons only the last night's are kept anew: the bundle on trial was not there before.
        days = 0 if table is auc_comparison else self.history_days
        oldest = self.last - timedelta(days=days)
        return Tracker(self.database, table, owner, oldest, self.readers, self.effort, self.replicates)


def _content(films: JudgedFilms, window: Window, *scores: Any) -> list[Any]:
    places = window.places
    return [
        films.films.ids[places],
        films.films.patients[places],
        films.labels[places],
        films.standing[places],
        *(each[places] for each in scores),
    ]


def _some(films: JudgedFilms, places: Any, labels: Any) -> JudgedFilms:
    every = films.films
    chosen = Films(
        every.ids[places], every.jobs[places], every.patients[places], every.came[places],
        {cohort: values[places] for cohort, values in every.cohorts.items()},
    )  # fmt: skip
    return JudgedFilms(chosen, films.findings, labels, films.scores[places], films.standing[places])


def _left_out(standing: Any) -> dict[str, int]:
    return {column: int((standing == why).sum()) for column, why in _LEFT_OUT.items()}


def _newest(connection: Connection) -> tuple[int, int]:
    return (
        connection.scalar(select(func.max(label.c.id))) or 0,
        connection.scalar(select(func.max(label_map.c.id))) or 0,
    )


def _up_to_date(connection: Connection, last: datetime, newest: tuple[int, int]) -> bool:
    run = connection.execute(select(tracking_run).order_by(tracking_run.c.id.desc()).limit(1)).one_or_none()
    return run is not None and run.ends_at >= last and (run.last_label_id, run.last_label_map_id) == newest


_ON_TRIAL = (
    select(job.c.bundle_id).where(job.c.kind == JobKind.SHADOW.value, job.c.state == JobState.DONE.value).distinct()
)


# Is it worse than it may be?

Bound = Literal["low", "value", "high"]
_BOUNDS: dict[Bound, str] = {"low": "auroc_low", "value": "auroc", "high": "auroc_high"}


def is_under_floor(row: Any, floor: float, bound: Bound = "high") -> bool:
    """Whether a window's area lies under ``floor``; a window with too few films never does.

    Parameters
    ----------
    row
        Of ``auc_tracking`` or ``latest_auc``.
    bound
        Which number must be under it. ``high``: the whole interval, so that chance alone hardly ever does it;
        ``low``: already where the floor cannot be shown to be kept.
    """
    value = getattr(row, _BOUNDS[bound])
    return value is not None and value < floor


def nights_under_floor(
    connection: Connection,
    bundle_id: int,
    finding: str,
    floor: float,
    *,
    period: Period = Period.WEEK,
    bound: Bound = "high",
    since: datetime | None = None,
) -> list[datetime]:
    """Ends of the windows of all films whose area lies under ``floor`` (:func:`is_under_floor`), the first first."""
    table = auc_tracking.c
    query = select(auc_tracking).where(
        table.bundle_id == bundle_id, table.finding == finding, table.cohort == Cohort.ALL.value,
        table.period == period.value,
    ).order_by(table.ends_at)  # fmt: skip
    if since is not None:
        query = query.where(table.ends_at >= since)
    return [row.ends_at for row in connection.execute(query) if is_under_floor(row, floor, bound)]
