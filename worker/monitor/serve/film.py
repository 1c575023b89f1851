"""One film: what came out, by which bundle, how sure, how long it took, and what earlier bundles said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from schema import findings as finding_names
from schema.findings import Finding
from schema.regions import RegionDefinition
from schema.tables import (
    PRIORITY,
    JobKind,
    Lane,
    arrival,
    bundle,
    failure_flag,
    identity,
    instance,
    instance_identity,
    job,
    region_measurement,
    segmentation,
)
from schema.view_tables import film_state
from worker.errors import CODES, advice, sentence
from worker.queue.outcomes import SourceReference
from worker.results.film_card import (
    KEY_DIGITS,
    FindingBar,
    FlagGroup,
    engine_words,
    finding_bars,
    flag_groups,
    leading_finding,
    read_flags,
    read_heat,
    read_scores,
)
from worker.results.outputs.stored import regions_of

#: What stands where a film has no result and its state says all.
_STATE_WORDS = {
    "ready": "It waits for a worker.",
    "leased": "A worker has it now.",
    "delayed": "Something was in the way; it is tried again by itself.",
    "duplicate": "The same film came before.",
    "alias": "The same picture came under another SOP Instance UID.",
    "conflict": "It names itself like a known film but shows another picture. Run: carina conflicts list",
    "cancelled": "It was taken back before it was processed.",
}
_IDENTIFIER_TITLES = {"accession_number": "Accession number", "sop_instance_uid": "SOP Instance UID"}


@dataclass(frozen=True)
class Shown:
    """What the picture shows, as the address says; opacity, centre and width in percent."""

    regions: tuple[str, ...] | None
    opacity: int
    outlines: bool
    heat: str
    center: int
    width: int

    @classmethod
    def parse(cls, parameters: Mapping[str, str], regions: Sequence[str]) -> Shown:
        """Read an address; ``regions`` are those it names. What makes no sense is as if it were not there."""
        chosen = "shown" in parameters
        return cls(
            regions=tuple(regions) if chosen else None,
            opacity=_percent(parameters.get("opacity", ""), 20),
            outlines=not chosen or "outlines" in parameters,
            heat=parameters.get("heat", ""),
            center=_percent(parameters.get("center", ""), 50),
            width=_percent(parameters.get("width", ""), 100),
        )

    def shows(self, region: str) -> bool:
        """Whether a region is drawn: all are until some are chosen."""
        return self.regions is None or region in self.regions


@dataclass(frozen=True)
class Result:
    """What one job computed; ``row`` is its row of ``segmentation``."""

    job: int
    bundle: str
    row: Any
    regions: tuple[RegionDefinition, ...]
    region_rows: tuple[dict[str, Any], ...]
    flags: tuple[FlagGroup, ...]
    findings: tuple[FindingBar, ...]
    heat: Any
    heat_findings: tuple[tuple[str, str], ...]
    leading: str
    engine: str
    seconds: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Past:
    """A job of the film, the newest first; ``probabilities`` in the order of :attr:`FilmPage.history_findings`."""

    job: int
    bundle: str
    state: str
    finished_at: Any
    flags: int
    probabilities: tuple[tuple[float, bool] | None, ...]


@dataclass(frozen=True)
class FilmPage:
    """All that the page says of a film."""

    number: int
    key: str
    state: str
    words: str
    advice: str
    facts: tuple[tuple[str, str], ...]
    source: SourceReference | None
    result: Result | None
    history: tuple[Past, ...]
    history_findings: tuple[str, ...]
    wait_seconds: float | None
    run_seconds: float | None
    newer: int | None
    older: int | None


def read_film(
    connection: Connection, number: int, *, job_id: int | None = None, identifiers: Sequence[str] = ()
) -> FilmPage | None:
    """The film of an arrival, or None where there is none; ``job_id`` chooses an earlier result of it.

    Shadow jobs are left out: nobody is shown them.
    """
    row = connection.execute(
        select(film_state, instance, job.c.priority, job.c.wait_seconds, job.c.run_seconds)
        .outerjoin(instance, instance.c.id == film_state.c.instance_id)
        .outerjoin(job, job.c.id == film_state.c.job_id)
        .where(film_state.c.arrival_id == number)
    ).one_or_none()
    if row is None:
        return None
    findings, history = _history(connection, row.instance_id)
    chosen = job_id if job_id in {past.job for past in history} else row.job_id
    timed = next((past for past in history if past.job == chosen), None)
    times = _times(connection, chosen) if timed else (row.wait_seconds, row.run_seconds)
    words, next_step = _words(row)
    return FilmPage(
        number=number,
        key=(row.key or "")[:KEY_DIGITS],
        state=row.state,
        words=words,
        advice=next_step,
        facts=_facts(row) + _identifiers(connection, row.instance_id, identifiers),
        source=_source(connection, number),
        result=None if chosen is None else _result(connection, chosen),
        history=history,
        history_findings=tuple(finding_names.title(finding) for finding in findings),
        wait_seconds=times[0],
        run_seconds=times[1],
        newer=connection.scalar(select(func.min(arrival.c.id)).where(arrival.c.id > number)),
        older=connection.scalar(select(func.max(arrival.c.id)).where(arrival.c.id < number)),
    )


def _words(row: Any) -> tuple[str, str]:
    if row.code in CODES:
        return sentence(row.code, row.detail), advice(row.code)
    return _STATE_WORDS.get(row.state, ""), ""


def _facts(row: Any) -> tuple[tuple[str, str], ...]:
    lane = "" if row.priority is None else str(Lane.ICU if row.priority == PRIORITY[Lane.ICU] else Lane.ARCHIVE)
    size = f"{row.film_rows} × {row.film_columns} pixels" if row.film_rows else ""
    spacing = f"{row.row_spacing:.3f} mm ({row.spacing_source})" if row.row_spacing else ""
    facts = (
        ("Came", f"{row.arrived_at:%Y-%m-%d %H:%M} UTC"),
        ("Lane", lane),
        ("Station", row.station),
        ("Age", age_words(row.age_days)),
        ("Sex", row.sex),
        ("View", row.view_position),
        ("Film", size),
        ("Pixel spacing", spacing),
        ("Held out", "yes: never learned from" if row.held_out else ""),
    )
    return tuple((name, value) for name, value in facts if value)


def age_words(days: int | None) -> str:
    """An age in the unit that says most: ``"12 days"``, ``"7 months"``, ``"4 years"``; "" for none."""
    if days is None:
        return ""
    if days < 60:
        return f"{days} days"
    return f"{days / 30.44:.0f} months" if days < 730 else f"{int(days / 365.25)} years"


def _identifiers(connection: Connection, film: int | None, columns: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if not columns or film is None:
        return ()
    row = connection.execute(select(instance_identity).where(instance_identity.c.instance_id == film)).one_or_none()
    found = ((_IDENTIFIER_TITLES[name], getattr(row, name, "")) for name in columns)
    return tuple((name, value) for name, value in found if value)


def _source(connection: Connection, number: int) -> SourceReference | None:
    row = connection.execute(select(identity).where(identity.c.arrival_id == number)).one_or_none()
    return None if row is None else SourceReference(row.root, row.path, row.member, row.size, row.modified_ns)


def _times(connection: Connection, job_id: int | None) -> tuple[float | None, float | None]:
    row = connection.execute(select(job.c.wait_seconds, job.c.run_seconds).where(job.c.id == job_id)).one()
    return row.wait_seconds, row.run_seconds


def _result(connection: Connection, job_id: int) -> Result | None:
    row = connection.execute(
        select(segmentation, bundle.c.name, bundle.c.version, bundle.c.manifest)
        .join(job, job.c.id == segmentation.c.job_id)
        .join(bundle, bundle.c.id == job.c.bundle_id)
        .where(segmentation.c.job_id == job_id)
    ).one_or_none()
    if row is None:
        return None
    scores = read_scores(connection, [job_id])[job_id]
    heat = read_heat(connection, [job_id]).get(job_id)
    regions = tuple(region for region in regions_of(row.manifest) if region.value)
    return Result(
        job=job_id,
        bundle=f"{row.name}:{row.version}",
        row=row,
        regions=regions,
        region_rows=_measured(connection, job_id, regions),
        flags=tuple(flag_groups(read_flags(connection, [job_id])[job_id])),
        findings=finding_bars(scores),
        heat=heat,
        heat_findings=tuple((name, finding_names.title(name)) for name in (heat.findings if heat else ())),
        leading=leading_finding(scores) or "",
        engine=engine_words(row.engine),
        seconds=tuple(row.seconds.items()),
    )


def _measured(connection: Connection, job_id: int, regions: Sequence[RegionDefinition]) -> tuple[dict[str, Any], ...]:
    rows = connection.execute(select(region_measurement).where(region_measurement.c.job_id == job_id))
    measured = {row.region: row for row in rows}
    return tuple(
        {"region": region, "measured": measured.get(region.name)} for region in regions if region.name in measured
    )


def _history(connection: Connection, film: int | None) -> tuple[tuple[str, ...], tuple[Past, ...]]:
    if film is None:
        return (), ()
    flags = (
        select(func.count(func.distinct(failure_flag.c.rule)))
        .where(failure_flag.c.job_id == job.c.id, ~failure_flag.c.notice)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            job.c.id,
            job.c.state,
            job.c.finished_at,
            (bundle.c.name + ":" + bundle.c.version).label("bundle"),
            flags.label("flags"),
        )
        .outerjoin(bundle, bundle.c.id == job.c.bundle_id)
        .where(job.c.instance_id == film, job.c.kind == JobKind.PROCESS.value, job.c.published)
        .order_by(job.c.id.desc())
    ).all()
    scores = read_scores(connection, [row.id for row in rows])
    told = {score.finding for each in scores.values() for score in each}
    findings = (*(name for name in Finding if name in told), *sorted(told - set(Finding)))
    history = []
    for row in rows:
        found = {score.finding: (score.probability, score.positive) for score in scores.get(row.id, ())}
        history.append(
            Past(row.id, row.bundle or "", row.state, row.finished_at, row.flags, tuple(map(found.get, findings)))
        )
    return findings, tuple(history)


def _percent(text: str, default: int) -> int:
    try:
        return min(100, max(0, int(text)))
    except ValueError:
        return default
