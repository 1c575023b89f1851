"""When does somebody have to look? The rules of alerts as data, and what each says now.

A rule has two limits, so that nothing flutters: a reading is *on* beyond the one that opens an alert, *off* once it is
back behind the other, and *between* neither opens nor closes one. Sentences name lanes, machines, bundles, findings and
stations, never a film or a patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, func, select

from schema import queries
from schema.tables import Cohort, JobKind, JobState, Lane, Period, arrival, job, worker
from schema.types import database_now, seconds_since
from schema.view_tables import latest_auc
from worker.monitor.auc import is_under_floor
from worker.monitor.drift import Family, Series, State
from worker.monitor.drift_nights import DriftReport
from worker.monitor.status import duration, free_bytes
from worker.queue.leases import is_alive
from worker.settings import Settings

#: Failures are counted over so many seconds, and from so many films on.
FAILURE_SECONDS = 86_400.0
LEAST_ENDED = 20
#: What closes an alert lies so far behind what opens it.
_HALF = 0.5
_DISK_MARGIN = 1.1
#: What was on is closed when it has been off for so long.
_CALM_SECONDS = 900.0
_GONE_SECONDS = 86_400.0
_MIB = 1 << 20


class Level(StrEnum):
    """What a reading does to an alert."""

    ON = "on"
    BETWEEN = "between"
    OFF = "off"


@dataclass(frozen=True)
class AlertRule:
    """What people need to know of a rule.

    ``calm_seconds`` is how long a reading must be off before the alert is closed; rules that look at whole nights have
    their patience in the reading. What nobody has told of for ``gone_seconds`` is off: a machine that was taken away
    tells nothing of its disk.
    """

    meaning: str
    advice: str
    calm_seconds: float = 0.0
    gone_seconds: float = float("inf")


RULES: Mapping[str, AlertRule] = {
    "oldest_ready": AlertRule(
        "A film has been waiting for too long.", "See whether workers run: carina status", _CALM_SECONDS
    ),
    "no_films": AlertRule(
        "No film has come for a long time.", "See whether the sender and carina listen, watch or pull run.", 0.0
    ),
    "failure_rate": AlertRule("Too many films fail.", "Look why: carina failed", _CALM_SECONDS),
    "disk": AlertRule(
        "The disk of a home folder fills up.",
        "Make room, or give the home folder a larger disk.",
        60.0,
        _GONE_SECONDS,
    ),
    "auc_floor": AlertRule(
        "On labelled films a finding is told worse than it may be: the whole interval lies under the floor.",
        "Look at the films with labels: carina auc. Consider: carina bundle rollback",
    ),
    Family.SCORES: AlertRule("Scores of findings have moved.", "Compare with what the detectors deliver: carina drift"),
    Family.REFERENCE: AlertRule(
        "Scores are spread otherwise than on the films the bundle was measured on.",
        "Its thresholds may not fit this hospital: label films and look at carina auc.",
    ),
    Family.FLAGS: AlertRule("Flags are raised more or less often.", "Look at flagged films: carina report"),
    Family.AREAS: AlertRule("Regions have grown, shrunk or gone missing.", "Look at masks: carina report"),
    Family.MEMBERS: AlertRule("The networks agree less, or more, than they did.", "Look at films: carina report"),
    Family.INPUT: AlertRule(
        "A detector delivers other grey values or another pixel spacing.",
        "Ask what was changed at the scanner. If that is how it stays: carina alerts acknowledge ID --accept",
    ),
    Family.MIX: AlertRule(
        "Other films come than did: the mix has shifted. That is no drift of the network.",
        "If that is how it stays: carina alerts acknowledge ID --accept",
    ),
}


@dataclass(frozen=True)
class Reading:
    """What a rule says of a subject now; ``detail`` is a sentence."""

    rule: str
    subject: str
    level: Level
    value: float | None = None
    threshold: float | None = None
    detail: str = ""


#: Rules that tell of all their subjects at once: one that is not among the readings is off.
LEDGER_RULES = frozenset({"oldest_ready", "no_films", "failure_rate", "auc_floor"})
DRIFT_RULES = frozenset(str(family) for family in Family)


def ledger_readings(connection: Connection, settings: Settings) -> list[Reading]:
    """What :data:`LEDGER_RULES` say. A limit of 0 turns a rule off."""
    return [
        *_waiting(connection, settings),
        *_silence(connection, settings),
        *_failures(connection, settings),
        *_aucs(connection, settings),
    ]


def disk_readings(connection: Connection, settings: Settings, here: str) -> Iterator[Reading]:
    """Whether there is room on the disks of home folders: of this machine, called ``here``, and of those with workers.

    Of several home folders of one machine the fullest disk counts.
    """
    limit = settings.alert_disk
    if not limit:
        return
    told = (
        select(worker.c.host, func.min(worker.c.home_free_bytes))
        .where(is_alive(settings.lease_seconds), worker.c.home_free_bytes.is_not(None))
        .group_by(worker.c.host)
    )
    free: dict[str, int] = {row[0]: row[1] for row in connection.execute(told)}
    own = free_bytes(settings.home)
    free[here] = min(own, free.get(here, own))
    for host, size in sorted(free.items()):
        detail = f"{size // _MIB:,} MiB are free on {host}, the limit is {limit // _MIB:,} MiB."
        yield Reading("disk", host, _level(-size, -limit, -limit * _DISK_MARGIN), size, limit, detail)


def drift_readings(report: DriftReport) -> list[Reading]:
    """One reading for each family of series and group of films."""
    parts: dict[tuple[Any, Any], list[Series]] = {}
    for series in report.series:
        parts.setdefault((series.family, series.group), []).append(series)
    return [_drifting(report, family, group, found) for (family, group), found in parts.items()]


def _drifting(report: DriftReport, family: Family, group: Any, found: Sequence[Series]) -> Reading:
    own = [series for series in found if series.state is State.SIGNAL and not series.with_mix]
    level = Level.ON if own else Level.OFF
    if not own and any(series.state in (State.SIGNAL, State.FADING) for series in found):
        level = Level.BETWEEN
    words = _listed([str(series) for series in own])
    if family is Family.MIX and own:
        names = {series.name for series in own}
        moved = [s for s in report.series if names & set(s.with_mix)]
        words += f". With it moved: {_listed([str(series) for series in moved])}" if moved else ""
    far = max((abs(series.sigma or 0.0) for series in own), default=None)
    return Reading(str(family), report.subject(group), level, far, 3.0, f"{words}." if words else "")


def _listed(words: Sequence[str], most: int = 6) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return "; ".join(words[:most]) + more


def _level(value: float, opens: float, closes: float) -> Level:
    if value > opens:
        return Level.ON
    return Level.OFF if value <= closes else Level.BETWEEN


def _waiting(connection: Connection, settings: Settings) -> Iterator[Reading]:
    limits = {Lane.ICU: settings.alert_wait_icu, Lane.ARCHIVE: settings.alert_wait_archive}
    for name, lane in queries.backlog(connection).items():
        limit, waited = limits[Lane(name)], lane.oldest_ready_seconds or 0.0
        if limit:
            detail = f"A film of the lane {name} has been waiting for {duration(waited)}, {lane.ready:,} are ready."
            yield Reading("oldest_ready", name, _level(waited, limit, limit * _HALF), waited, limit, detail)


def _silence(connection: Connection, settings: Settings) -> Iterator[Reading]:
    limit = settings.alert_no_films
    silent = connection.scalar(select(seconds_since(func.max(arrival.c.arrived_at))))
    if limit and silent is not None:
        detail = f"The last film came {duration(silent)} ago."
        yield Reading("no_films", "all senders", _level(silent, limit, limit), silent, limit, detail)


def _failures(connection: Connection, settings: Settings) -> Iterator[Reading]:
    limit = settings.alert_failures
    ended = (JobState.DONE.value, JobState.INELIGIBLE.value, JobState.FAILED.value)
    query = (
        select(job.c.state, func.count())
        .where(
            job.c.finished_at >= database_now(-FAILURE_SECONDS),
            job.c.kind == JobKind.PROCESS.value,
            job.c.state.in_(ended),
        )
        .group_by(job.c.state)
    )
    counts: dict[str, int] = {row[0]: row[1] for row in connection.execute(query)} if limit else {}
    total, failed = sum(counts.values()), counts.get(JobState.FAILED.value, 0)
    if total >= LEAST_ENDED:
        rate = failed / total
        detail = f"{failed:,} of {total:,} films of the last {duration(FAILURE_SECONDS)} failed."
        yield Reading("failure_rate", "all films", _level(rate, limit, limit * _HALF), rate, limit, detail)


#: The shortest window with labels enough speaks.
_PERIODS = (Period.WEEK, Period.MONTH, Period.QUARTER)


def _aucs(connection: Connection, settings: Settings) -> Iterator[Reading]:
    floor = settings.alert_auc_floor
    serving = queries.bundle_aliases(connection).get("champion")
    if not floor or serving is None:
        return
    columns = latest_auc.c
    query = select(latest_auc).where(columns.bundle == serving, columns.cohort == Cohort.ALL.value)
    rows: dict[str, dict[str, Any]] = {}
    for each in connection.execute(query):
        rows.setdefault(each.finding, {})[each.period] = each
    for finding, windows in sorted(rows.items()):
        told = (windows[period] for period in map(str, _PERIODS) if period in windows)
        row: Any = next((one for one in told if one.auroc_high is not None), None)
        subject = f"{serving}, {finding}"
        if row is None:
            # Nothing new is known: what is open stays.
            yield Reading("auc_floor", subject, Level.BETWEEN)
            continue
        level = Level.ON if is_under_floor(row, floor) else Level.OFF
        if level is Level.OFF and is_under_floor(row, floor, "value"):
            level = Level.BETWEEN
        detail = (
            f"AUROC {row.auroc:.3f} ({row.auroc_low:.3f} to {row.auroc_high:.3f}) on {row.positives} films with and "
            f"{row.negatives} without {finding}, {row.period} until {row.ends_at:%Y-%m-%d}."
        )
        yield Reading("auc_floor", subject, level, row.auroc_high, floor, detail)
