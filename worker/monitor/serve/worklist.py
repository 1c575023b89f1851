"""The worklist: which films, the newest first, by flag, finding, state, lane, station and day.

A page is found from where the last one ended, not by counting rows: the thousandth page costs what the first does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, literal_column, or_, select

from schema import findings as finding_names
from schema.findings import Finding
from schema.tables import PRIORITY, ArrivalState, JobState, Lane, failure_flag, finding_score, instance, job
from schema.tables import instance_identity as identity
from schema.view_tables import film_state
from worker.findings.flag_rules import RULES
from worker.results.film_card import KEY_DIGITS

PAGE = 50
#: Filter → what it says of every film that has it.
ANY, NONE = "any", "none"
STATES = tuple(dict.fromkeys((*JobState, *ArrivalState)))
SORTS = {"newest": "newest first", "oldest": "oldest first", "score": "highest score first"}
#: States that few films are in: each has an index of its own.
_RARE = (JobState.FAILED, JobState.READY, JobState.DELAYED)


class FilterError(ValueError):
    """An address that says what the page does not know; the message says what it knows."""


@dataclass(frozen=True)
class Filters:
    """What an address asks for; "" is no condition. Days are UTC, of a film's arrival, both included."""

    flag: str = ""
    finding: str = ""
    state: str = ""
    lane: str = ""
    station: str = ""
    since: str = ""
    until: str = ""
    sort: str = "newest"
    after: str = ""

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> Filters:
        """Read an address.

        Raises
        ------
        FilterError
            A value that cannot be meant.
        """
        known = {item.name for item in fields(cls)}
        given = {name: value.strip() for name, value in parameters.items() if name in known and value.strip()}
        filters = cls(**given)
        _one_of("flag", filters.flag, (ANY, NONE, *RULES))
        _one_of("finding", filters.finding, tuple(Finding))
        _one_of("state", filters.state, STATES)
        _one_of("lane", filters.lane, tuple(Lane))
        _one_of("sort", filters.sort, tuple(SORTS))
        for name in ("since", "until"):
            _day(name, getattr(filters, name))
        if filters.sort == "score" and not filters.finding:
            raise FilterError("Films are sorted by the score of a finding: choose one.")
        _ = filters.place
        return filters

    @property
    def place(self) -> tuple[float, int] | None:
        """Where the page before ended: probability (0 unless sorted by it) and number; None on the first page."""
        if not self.after:
            return None
        probability, _, number = self.after.rpartition("_")
        try:
            return float(probability or 0), int(number)
        except ValueError:
            raise FilterError("after= is not a place in this list: begin at its first page.") from None

    def address(self, **changes: str) -> str:
        """The query of these filters with ``changes``, without what is not set."""
        given = replace(self, **changes)
        values = {item.name: getattr(given, item.name) for item in fields(given)}
        return urlencode(
            {name: value for name, value in values.items() if value and (name, value) != ("sort", "newest")}
        )

    @property
    def narrowed(self) -> bool:
        """Whether any condition is set."""
        return any(getattr(self, item.name) for item in fields(self) if item.name not in ("sort", "after"))


@dataclass(frozen=True)
class Entry:
    """One line of the list."""

    number: int
    key: str
    identifiers: tuple[str, ...]
    arrived_at: datetime
    day: date
    state: str
    code: str
    lane: str
    station: str
    age_days: int | None
    view: str
    rules: tuple[str, ...]
    findings: tuple[tuple[str, float], ...]
    score: float | None


@dataclass(frozen=True)
class Worklist:
    """A page of the list; ``next`` is the query of the next one, "" on the last."""

    filters: Filters
    entries: tuple[Entry, ...]
    next: str

    @property
    def days(self) -> list[tuple[date, list[Entry]]]:
        """The entries by day, in the list's order."""
        return [(day, list(entries)) for day, entries in groupby(self.entries, key=lambda entry: entry.day)]


def read_worklist(connection: Connection, filters: Filters, *, identifiers: Sequence[str] = ()) -> Worklist:
    """The films of one page; ``identifiers`` are columns of ``instance_identity`` to show."""
    rows = connection.execute(_query(filters)).all()
    shown = rows[:PAGE]
    jobs = [row.job_id for row in shown if row.job_id is not None]
    rules = _rules(connection, jobs)
    positive = _positive(connection, jobs)
    names = _identifiers(connection, [row.instance_id for row in shown], identifiers)
    entries = tuple(
        Entry(
            number=row.arrival_id,
            key=(row.key or "")[:KEY_DIGITS],
            identifiers=names.get(row.instance_id, ()),
            arrived_at=row.arrived_at,
            day=row.arrived_at.date(),
            state=row.state,
            code=row.code or "",
            lane="" if row.priority is None else Lane.ICU if row.priority == PRIORITY[Lane.ICU] else Lane.ARCHIVE,
            station=row.station or "",
            age_days=row.age_days,
            view=row.view_position or "",
            rules=rules.get(row.job_id, ()),
            findings=positive.get(row.job_id, ()),
            score=row.score,
        )
        for row in shown
    )
    more = len(rows) > PAGE
    last = entries[-1] if more else None
    place = "" if last is None else f"{last.score!r}_{last.number}" if filters.sort == "score" else str(last.number)
    return Worklist(filters, entries, filters.address(after=place) if more else "")


def stations(connection: Connection) -> tuple[str, ...]:
    """The stations that films came from; reads every film once."""
    found = connection.scalars(select(instance.c.station).where(instance.c.station != "").distinct())
    return tuple(sorted(found))


def rule_title(rule: str) -> str:
    """A rule's name for people: ``"missing_region"`` becomes ``"Missing region"``."""
    return rule.replace("_", " ").capitalize()


def _query(filters: Filters) -> Select[Any]:
    by_score = filters.sort == "score"
    score = finding_score.c.probability if by_score else literal_column("NULL")
    query = select(
        film_state,
        instance.c.key,
        instance.c.station,
        instance.c.age_days,
        instance.c.view_position,
        job.c.priority,
        score.label("score"),
    )
    number = film_state.c.arrival_id
    order: tuple[ColumnElement[Any], ...]
    if by_score:
        # From the index of the finding: the scores come in order, and the films after them.
        scored = job.alias("scored")
        source = (
            finding_score.join(scored, scored.c.id == finding_score.c.job_id)
            .join(
                film_state,
                and_(film_state.c.instance_id == scored.c.instance_id, film_state.c.job_id == finding_score.c.job_id),
            )
            .outerjoin(instance, instance.c.id == film_state.c.instance_id)
            .outerjoin(job, job.c.id == film_state.c.job_id)
        )
        query = query.select_from(source).where(finding_score.c.finding == filters.finding)
        order = (finding_score.c.probability.desc(), number.desc())
    else:
        source = film_state.outerjoin(instance, instance.c.id == film_state.c.instance_id).outerjoin(
            job, job.c.id == film_state.c.job_id
        )
        query = query.select_from(source)
        order = (number.asc() if filters.sort == "oldest" else number.desc(),)
    return _after(_narrowed(query, filters), filters).order_by(*order).limit(PAGE + 1)


def _narrowed(query: Select[Any], filters: Filters) -> Select[Any]:
    if filters.flag == ANY:
        query = query.where(film_state.c.flagged == 1)
    elif filters.flag == NONE:
        query = query.where(film_state.c.flagged == 0, film_state.c.state == JobState.DONE.value)
    elif filters.flag:
        fired = failure_flag.c.rule == filters.flag
        of_film = exists().where(failure_flag.c.job_id == film_state.c.job_id, fired)
        # The films that any result of says so, first: the index of rules names them.
        flagged = select(job.c.instance_id).join(failure_flag, failure_flag.c.job_id == job.c.id).where(fired)
        query = query.where(film_state.c.instance_id.in_(flagged), of_film)
    if filters.finding and filters.sort != "score":
        query = query.where(
            exists().where(
                finding_score.c.job_id == film_state.c.job_id,
                finding_score.c.finding == filters.finding,
                finding_score.c.positive,
            )
        )
    if filters.state:
        query = query.where(film_state.c.state == filters.state)
        if filters.state in _RARE:
            waiting = select(job.c.instance_id).where(job.c.state == literal_column(f"'{filters.state}'"))
            query = query.where(film_state.c.instance_id.in_(waiting))
        elif filters.state not in tuple(JobState):
            # Such files ended as they came: no job is looked for.
            query = query.where(film_state.c.arrival_state == filters.state)
    if filters.lane:
        icu = job.c.priority == PRIORITY[Lane.ICU]
        query = query.where(icu if filters.lane == Lane.ICU else job.c.priority != PRIORITY[Lane.ICU])
    if filters.station:
        # Before jobs are looked for, too: few films may come from there.
        there = select(instance.c.id).where(instance.c.station == filters.station)
        query = query.where(instance.c.station == filters.station, film_state.c.instance_id.in_(there))
    if filters.since:
        query = query.where(film_state.c.arrived_at >= _day("since", filters.since))
    if filters.until:
        query = query.where(film_state.c.arrived_at < _day("until", filters.until) + timedelta(days=1))
    return query


def _after(query: Select[Any], filters: Filters) -> Select[Any]:
    if filters.place is None:
        return query
    probability, last = filters.place
    number = film_state.c.arrival_id
    if filters.sort == "score":
        found = finding_score.c.probability
        return query.where(found <= probability, or_(found < probability, number < last))
    return query.where(number > last if filters.sort == "oldest" else number < last)


def _rules(connection: Connection, jobs: Sequence[int]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for row in connection.execute(
        select(failure_flag.c.job_id, failure_flag.c.rule, func.min(failure_flag.c.id).label("first"))
        .where(failure_flag.c.job_id.in_(jobs), ~failure_flag.c.notice)
        .group_by(failure_flag.c.job_id, failure_flag.c.rule)
        .order_by("first")
    ):
        found[row.job_id] = (*found.get(row.job_id, ()), rule_title(row.rule))
    return found


def _positive(connection: Connection, jobs: Sequence[int]) -> dict[int, tuple[tuple[str, float], ...]]:
    found: dict[int, tuple[tuple[str, float], ...]] = {}
    for row in connection.execute(
        select(finding_score)
        .where(finding_score.c.job_id.in_(jobs), finding_score.c.positive)
        .order_by(finding_score.c.probability.desc())
    ):
        found[row.job_id] = (*found.get(row.job_id, ()), (finding_names.title(row.finding), row.probability))
    return found


def _identifiers(
    connection: Connection, instances: Sequence[int | None], columns: Sequence[str]
) -> dict[int, tuple[str, ...]]:
    if not columns:
        return {}
    rows = connection.execute(select(identity).where(identity.c.instance_id.in_([key for key in instances if key])))
    return {row.instance_id: tuple(value for name in columns if (value := getattr(row, name))) for row in rows}


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value and value not in known:
        raise FilterError(f"{name}={value} is not known. Known: {', '.join(known)}.")


def _day(name: str, text: str) -> datetime:
    try:
        day = date.fromisoformat(text) if text else date(1970, 1, 1)
    except ValueError:
        raise FilterError(f"{name}={text} is not a day. Write it as 2026-03-01.") from None
    return datetime.combine(day, time(), UTC)
