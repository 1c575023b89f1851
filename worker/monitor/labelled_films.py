"""Which films have a label and a result, and may they judge the bundle?

A bundle's result of a film is its newest published one, of the film's present file. What another bundle said, what was
read again since, and what is not published does not count; only to compare a bundle on trial with the one in service
are its unpublished results asked for.

A bundle may have learned from a film where the film's patient is not held out (by the film's row, that of an alias, or
:func:`schema.keys.is_held_out`) and a film of that patient had a label here when the bundle was added. Such films do
not judge it: a number on films that were learned from flatters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Table, func, select

from schema.keys import is_held_out
from schema.tables import (
    PRIORITY,
    Cohort,
    JobKind,
    JobState,
    Lane,
    arrival,
    audit_event,
    bundle,
    bundle_alias,
    finding_score,
    instance,
    job,
    label,
    submission,
)
from worker.intake.lookups import slices
from worker.monitor.labels import HEADLINE_SOURCES, ReaderPolicy, known_findings
from worker.monitor.windows import Films, age_band

FloatArray = npt.NDArray[np.float64]


class Standing(IntEnum):
    """Whether a film's label of a finding counts for a bundle, and if not, why."""

    NONE = 0
    COUNTS = 1
    TRAINING = 2
    CHOSEN = 3
    UNCERTAIN = 4


@dataclass(frozen=True)
class JudgedBundle:
    """A bundle and what a tracked number needs to know of it.

    ``thresholds`` is finding → the probability from which it is called; ``promoted_at`` the last time it was put into
    service, or when it was added.
    """

    id: int
    key: str
    added_at: datetime
    promoted_at: datetime
    champion: bool
    thresholds: Mapping[str, float]
    regions: tuple[str, ...]


@dataclass(frozen=True)
class Truth:
    """What readers say of findings.

    ``headline`` is what those say who saw films that nobody chose, ``every`` what all say; film → finding → present,
    absent, or None where they are not sure. ``first_labels`` is a patient's key → when the first label came.
    """

    headline: Mapping[int, Mapping[str, bool | None]]
    every: Mapping[int, Mapping[str, bool | None]]
    first_labels: Mapping[str, datetime]


@dataclass(frozen=True)
class JudgedFilms:
    """A bundle's films with their findings, (films, findings) each.

    Attributes
    ----------
    labels
        1 or 0 where the label counts, else NaN.
    scores
        Probabilities; 0 where the label does not count.
    standing
        Values of :class:`Standing`.
    """

    films: Films
    findings: tuple[str, ...]
    labels: FloatArray
    scores: FloatArray
    standing: npt.NDArray[np.int8]


def judged_bundles(connection: Connection) -> list[JudgedBundle]:
    """Every bundle, as it was added."""
    events = audit_event.c
    promoted: dict[str, datetime] = {
        row.subject: row.at
        for row in connection.execute(
            select(events.subject, func.max(events.happened_at).label("at"))
            .where(events.action.in_(("promote", "rollback")))
            .group_by(events.subject)
        )
    }
    aliases = bundle_alias.c
    champion = connection.execute(
        select(aliases.bundle_id, aliases.since).where(aliases.alias == "champion")
    ).one_or_none()
    found = []
    for row in connection.execute(select(bundle).order_by(bundle.c.id)):
        key = f"{row.name}:{row.version}"
        serves = champion is not None and champion.bundle_id == row.id
        since = champion.since if champion is not None and serves else promoted.get(key, row.added_at)
        found.append(
            JudgedBundle(
                id=row.id,
                key=key,
                added_at=row.added_at,
                promoted_at=since,
                champion=serves,
                thresholds={each["finding"]: float(each["threshold"]) for each in row.manifest.get("findings", ())},
                regions=tuple(each["name"] for each in row.manifest.get("regions", ())),
            )
        )
    return found


def truth_of(connection: Connection, policy: ReaderPolicy) -> Truth:
    """What all labels say."""
    return Truth(
        known_findings(connection, policy, sources=HEADLINE_SOURCES),
        known_findings(connection, policy),
        first_labels(connection, label),
    )


def first_labels(connection: Connection, table: Table) -> dict[str, datetime]:
    """Patient key → when the first row of ``table`` (``label``, ``label_map``) about one of the films was recorded."""
    labelled, film = instance.alias("labelled"), instance.alias("film")
    query = (
        select(film.c.patient_key, func.min(table.c.recorded_at).label("first"))
        .select_from(table)
        .join(labelled, labelled.c.id == table.c.instance_id)
        .join(film, film.c.id == func.coalesce(labelled.c.alias_of, labelled.c.id))
        .group_by(film.c.patient_key)
    )
    return {row.patient_key: row.first for row in connection.execute(query)}


def judge(
    connection: Connection, judged: JudgedBundle, truth: Truth, *, findings: Collection[str] = (), shadow: bool = False
) -> JudgedFilms:
    """A bundle's labelled films.

    Parameters
    ----------
    findings
        Only these; none: all of the bundle's.
    shadow
        Its results on trial instead of the published ones.
    """
    rows = results_of(connection, judged.id, truth.every.keys(), shadow=shadow)
    names = tuple(name for name in judged.thresholds if not findings or name in findings)
    labels = np.full((len(rows), len(names)), np.nan)
    standing = np.zeros(labels.shape, np.int8)
    held = held_out(connection, rows)
    for place, row in enumerate(rows):
        learned = may_have_learned(row, judged, truth.first_labels, held)
        said, all_said = truth.headline.get(row.id, {}), truth.every.get(row.id, {})
        for column, name in enumerate(names):
            standing[place, column] = which = _standing(name, said, all_said, learned)
            if which is Standing.COUNTS:
                labels[place, column] = float(bool(said[name]))
    scores = _scores(connection, rows, names)
    missing = np.isnan(scores)
    standing[missing & (standing == Standing.COUNTS)] = Standing.NONE
    labels[missing] = np.nan
    scores[np.isnan(labels)] = 0.0
    return JudgedFilms(films_of(rows), names, labels, scores, standing)


def _standing(name: str, said: Mapping[str, bool | None], every: Mapping[str, bool | None], learned: bool) -> Standing:
    if name not in said:
        return Standing.CHOSEN if name in every else Standing.NONE
    if learned:
        return Standing.TRAINING
    return Standing.UNCERTAIN if said[name] is None else Standing.COUNTS


def results_of(connection: Connection, bundle_id: int, films: Collection[int], *, shadow: bool = False) -> list[Any]:
    """The bundle's results of these films, by when the films came; a row each."""
    query = (
        select(
            instance.c.id,
            instance.c.patient_key,
            instance.c.held_out,
            instance.c.age_days,
            instance.c.sex,
            instance.c.view_position,
            instance.c.station,
            instance.c.created_at,
            job.c.id.label("job_id"),
            job.c.priority,
            submission.c.lane,
        )
        .join(job, (job.c.instance_id == instance.c.id) & (job.c.generation == instance.c.generation))
        .outerjoin(arrival, arrival.c.id == job.c.arrival_id)
        .outerjoin(submission, submission.c.id == arrival.c.submission_id)
        .where(job.c.bundle_id == bundle_id, job.c.state == JobState.DONE.value, instance.c.alias_of.is_(None))
        .where(job.c.kind == (JobKind.SHADOW if shadow else JobKind.PROCESS).value)
        .where(job.c.published.is_(not shadow))
        .order_by(job.c.id)
    )
    newest: dict[int, Any] = {}
    for some in slices(sorted(films)):
        newest |= {row.id: row for row in connection.execute(query.where(instance.c.id.in_(some)))}
    return sorted(newest.values(), key=lambda row: (row.created_at, row.id))


def held_out(connection: Connection, rows: Collection[Any]) -> set[int]:
    """Films of patients that no rebuild learns from."""
    aliases = set(connection.scalars(select(instance.c.alias_of).where(instance.c.held_out, instance.c.alias_of > 0)))
    return {row.id for row in rows if row.held_out or row.id in aliases or is_held_out(row.patient_key)}


def may_have_learned(row: Any, judged: JudgedBundle, labelled: Mapping[str, datetime], held: Collection[int]) -> bool:
    """Whether the bundle may have learned from a film."""
    first = labelled.get(row.patient_key)
    return row.id not in held and first is not None and first <= judged.added_at


def films_of(rows: Collection[Any]) -> Films:
    """The films of rows of :func:`results_of`."""
    return Films(
        ids=np.array([row.id for row in rows], np.int64),
        jobs=np.array([row.job_id for row in rows], np.int64),
        # The same number for a patient whichever films there are: windows are compared by it.
        patients=np.array([_number(row.patient_key) for row in rows], np.int64),
        came=np.array([row.created_at.astimezone(UTC).timestamp() for row in rows], np.float64),
        cohorts={
            Cohort.AGE: np.array([age_band(row.age_days) for row in rows], np.str_),
            Cohort.SEX: np.array([row.sex for row in rows], np.str_),
            Cohort.VIEW_POSITION: np.array([row.view_position for row in rows], np.str_),
            Cohort.STATION: np.array([row.station for row in rows], np.str_),
            Cohort.LANE: np.array([_lane(row) for row in rows], np.str_),
        },
    )


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def _lane(row: Any) -> str:
    # What was found in the shadow has the archive's priority since its bundle was promoted.
    return str(row.lane or (Lane.ICU if row.priority == PRIORITY[Lane.ICU] else Lane.ARCHIVE))


def _scores(connection: Connection, rows: Collection[Any], names: tuple[str, ...]) -> FloatArray:
    columns = {name: column for column, name in enumerate(names)}
    places = {row.job_id: place for place, row in enumerate(rows)}
    scores = np.full((len(places), len(names)), np.nan)
    score = finding_score.c
    for some in slices(places):
        query = select(score.job_id, score.finding, score.probability).where(score.job_id.in_(some))
        for number, name, probability in connection.execute(query):
            if name in columns:
                scores[places[number], columns[name]] = probability
    return scores
