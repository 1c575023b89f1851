"""How far do two bundles agree about the same films?

From stored results alone, those of shadow jobs included: nothing is read or computed again.
Agreement is no accuracy. It says how much would change, not which of the two is right.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Select, and_, bindparam, func, select

from schema.database import Database
from schema.regions import RegionDefinition
from schema.tables import JobKind, JobState, arrival, bundle, finding_score, instance, job, segmentation
from worker.metrics import agreement, cohen_kappa, overlap
from worker.results.masks import DamagedMaskError, decode_mask
from worker.results.overlay import labels_on

log = logging.getLogger(__name__)

ByteArray = npt.NDArray[np.uint8]
#: Called with the number of films done and the number of all.
Progress = Callable[[int, int], None]

#: Films named as those that differ most.
WORST_FILMS = 6

_PAGE = 200
_KEY_DIGITS = 8


@dataclass(frozen=True)
class RegionAgreement:
    """Dice of the two bundles' masks of one region (0-1) over the films where either has it.

    ``low`` is the Dice that 95 of 100 films reach. ``only_one`` counts films where one bundle alone has
    the region: their Dice is 0.
    """

    films: int
    mean: float
    low: float
    worst: float
    only_one: int


@dataclass(frozen=True)
class FindingAgreement:
    """Two bundles' verdicts on one finding.

    ``agreement`` is the share of films with the same verdict (0-1), ``kappa`` that beyond chance,
    ``correlation`` Pearson's between the probabilities, ``difference`` the mean of second minus first.
    ``gained`` and ``lost`` count films that the second bundle alone, or the first alone, calls positive.
    """

    films: int
    agreement: float
    kappa: float
    correlation: float
    difference: float
    gained: int
    lost: int


@dataclass(frozen=True)
class FilmAgreement:
    """One film: its file's number, the start of its key, the mean Dice over its regions."""

    number: int
    key: str
    mean_dice: float
    jobs: tuple[int, int] = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """What two bundles said about the films that both have read.

    Attributes
    ----------
    first, second
        ``name:version``.
    films
        Films with a result of both.
    ended
        How the second bundle's job ended → films with a result of the first, other than ``done``.
    regions, findings
        Those that both know, by name.
    worst
        The films whose masks differ most, the worst first.
    """

    first: str
    second: str
    films: int
    ended: Counter[str]
    regions: dict[str, RegionAgreement]
    findings: dict[str, FindingAgreement]
    worst: tuple[FilmAgreement, ...]

    @property
    def agreement(self) -> float:
        """How far they agree (0-1); NaN without films.

        The lesser of two means: of the regions' mean Dice, background apart, and of the findings' shares
        of same verdicts.
        """
        parts = [
            [region.mean for name, region in self.regions.items() if name != "background"],
            [finding.agreement for finding in self.findings.values()],
        ]
        means = [float(np.nanmean(part)) for part in parts if part and not np.isnan(part).all()]
        return min(means, default=math.nan)

    def to_json(self) -> dict[str, Any]:
        """As plain values; NaN as None."""
        return {
            "first": self.first,
            "second": self.second,
            "films": self.films,
            "agreement": _plain(self.agreement),
            "ended_otherwise": dict(sorted(self.ended.items())),
            "regions": {name: _plain(vars(each)) for name, each in self.regions.items()},
            "findings": {name: _plain(vars(each)) for name, each in self.findings.items()},
            "worst_films": [
                {"number": film.number, "key": film.key, "mean_dice": _plain(film.mean_dice)} for film in self.worst
            ],
        }


def compare(
    database: Database, first: int, second: int, *, progress: Progress = lambda done, total: None
) -> Comparison:
    """Compare what two bundles, by their rows, have stored about the same films.

    Of a film's several results by one bundle the newest counts; what was said about a file that another
    one has replaced since does not.
    """
    with database.read() as connection:
        manifests = {row.id: row for row in connection.execute(select(bundle).where(bundle.c.id.in_([first, second])))}
        pairs = connection.execute(_PAIRS, {"first": first, "second": second}).all()
        ended = Counter({row[0]: row[1] for row in connection.execute(_ENDED, {"first": first, "second": second})})
    ours, theirs = (regions_of(manifests[number].manifest) for number in (first, second))
    masks = _Masks([name for name in ours if name in theirs], ours, theirs)
    scores = _Scores()
    for start in range(0, len(pairs), _PAGE):
        page = pairs[start : start + _PAGE]
        # A transaction per page: a long one would keep the database from tidying up.
        with database.read() as connection:
            masks.add(page, _stored_masks(connection, page))
            scores.add(page, _stored_scores(connection, page))
        progress(min(start + _PAGE, len(pairs)), len(pairs))
    names = {number: f"{row.name}:{row.version}" for number, row in manifests.items()}
    return Comparison(
        first=names[first],
        second=names[second],
        films=len(pairs),
        ended=ended,
        regions=masks.regions(),
        findings=scores.findings(),
        worst=masks.worst(),
    )


# Masks


class _Masks:
    """Collects the Dice of each region of each film."""

    def __init__(self, names: Sequence[str], ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        self._names = names
        self._values = ([ours[name].value for name in names], [theirs[name].value for name in names])
        self._dice: list[npt.NDArray[np.float64]] = []
        self._only_one: list[npt.NDArray[np.bool_]] = []
        self._films: list[Any] = []

    def add(self, pairs: Sequence[Any], masks: Mapping[int, ByteArray]) -> None:
        """Take the masks of a page of films; a film whose mask is damaged is left out."""
        for pair in pairs:
            if pair.first not in masks or pair.second not in masks:
                continue
            first, second = _on_one_grid(masks[pair.first], masks[pair.second])
            dice, only_one = np.full(len(self._names), np.nan), np.zeros(len(self._names), bool)
            for place, (mine, other) in enumerate(zip(*self._values, strict=True)):
                here, there = first == mine, second == other
                dice[place] = overlap(here, there).dice
                only_one[place] = bool(here.any()) != bool(there.any())
            self._dice.append(dice)
            self._only_one.append(only_one)
            self._films.append(pair)

    def regions(self) -> dict[str, RegionAgreement]:
        """The regions that any film has."""
        found = {}
        for place, name in enumerate(self._names):
            column = np.array([row[place] for row in self._dice])
            known = column[~np.isnan(column)]
            if known.size:
                only_one = sum(bool(row[place]) for row in self._only_one)
                low = float(np.percentile(known, 5))
                found[name] = RegionAgreement(known.size, float(known.mean()), low, float(known.min()), only_one)
        return found

    def worst(self) -> tuple[FilmAgreement, ...]:
        """The films that differ most, background apart; none where all masks are the same."""
        places = [place for place, name in enumerate(self._names) if name != "background"]
        ranked = []
        for pair, dice in zip(self._films, self._dice, strict=True):
            known = dice[places][~np.isnan(dice[places])]
            if known.size and known.mean() < 1.0:
                key, jobs = pair.key[:_KEY_DIGITS], (pair.first, pair.second)
                ranked.append(FilmAgreement(pair.arrival_id, key, float(known.mean()), jobs))
        return tuple(sorted(ranked, key=lambda film: (film.mean_dice, film.number))[:WORST_FILMS])


def _on_one_grid(first: ByteArray, second: ByteArray) -> tuple[ByteArray, ByteArray]:
    """Both on the finer grid: each covers the whole film."""
    if first.shape == second.shape:
        return first, second
    rows, columns = (max(sizes) for sizes in zip(first.shape, second.shape, strict=True))
    return labels_on((rows, columns), first), labels_on((rows, columns), second)


def _stored_masks(connection: Connection, pairs: Sequence[Any]) -> dict[int, ByteArray]:
    jobs = [number for pair in pairs for number in (pair.first, pair.second)]
    masks = {}
    for row in connection.execute(
        select(segmentation.c.job_id, segmentation.c.mask, segmentation.c.height, segmentation.c.width).where(
            segmentation.c.job_id.in_(jobs)
        )
    ):
        try:
            masks[row.job_id] = decode_mask(row.mask, (row.height, row.width))
        except DamagedMaskError as error:
            log.error("job %d: %s", row.job_id, error)
    return masks


# Findings


class _Scores:
    """Collects probabilities and verdicts of each finding."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[float, bool, float, bool]]] = defaultdict(list)

    def add(self, pairs: Sequence[Any], scores: Mapping[int, Mapping[str, Any]]) -> None:
        """Take the scores of a page of films."""
        for pair in pairs:
            ours, theirs = scores.get(pair.first, {}), scores.get(pair.second, {})
            for name in ours.keys() & theirs.keys():
                mine, other = ours[name], theirs[name]
                self._rows[name].append((mine.probability, mine.positive, other.probability, other.positive))

    def findings(self) -> dict[str, FindingAgreement]:
        """The findings that any film has of both."""
        return {name: _finding(np.array(rows, np.float64)) for name, rows in sorted(self._rows.items())}


def _finding(rows: npt.NDArray[np.float64]) -> FindingAgreement:
    before, now = rows[:, 0], rows[:, 2]
    was, is_now = rows[:, 1].astype(np.int64), rows[:, 3].astype(np.int64)
    varies = len(rows) > 1 and before.std() > 0 and now.std() > 0
    return FindingAgreement(
        films=len(rows),
        agreement=agreement(was, is_now),
        kappa=cohen_kappa(was, is_now),
        correlation=float(np.corrcoef(before, now)[0, 1]) if varies else math.nan,
        difference=float((now - before).mean()),
        gained=int((is_now > was).sum()),
        lost=int((is_now < was).sum()),
    )


def _stored_scores(connection: Connection, pairs: Sequence[Any]) -> dict[int, dict[str, Any]]:
    jobs = [number for pair in pairs for number in (pair.first, pair.second)]
    scores: dict[int, dict[str, Any]] = defaultdict(dict)
    for row in connection.execute(select(finding_score).where(finding_score.c.job_id.in_(jobs))):
        scores[row.job_id][row.finding] = row
    return scores


def regions_of(manifest: Mapping[str, Any]) -> dict[str, RegionDefinition]:
    """A manifest's regions by name."""
    return {
        region["name"]: RegionDefinition(region["value"], region["name"], region["title"], tuple(region["colour"]))
        for region in manifest["regions"]
    }


# Queries


def _newest(which: str) -> Any:
    """A bundle's newest result of each film, of its present file."""
    return (
        select(job.c.instance_id, func.max(job.c.id).label("job_id"))
        .join(instance, and_(instance.c.id == job.c.instance_id, instance.c.generation == job.c.generation))
        .where(job.c.bundle_id == bindparam(which), job.c.kind != JobKind.VERIFY.value)
        .where(job.c.state == JobState.DONE.value)
        .group_by(job.c.instance_id)
        .subquery()
    )


_first, _second = _newest("first"), _newest("second")
#: Films that both have read, the one whose file came first first.
_PAIRS: Select[Any] = (
    select(
        instance.c.key,
        arrival.c.id.label("arrival_id"),
        _first.c.job_id.label("first"),
        _second.c.job_id.label("second"),
    )
    .join(_first, _first.c.instance_id == instance.c.id)
    .join(_second, _second.c.instance_id == instance.c.id)
    .join(arrival, and_(arrival.c.instance_id == instance.c.id, arrival.c.current))
    .order_by(arrival.c.id)
)
#: How the second bundle's jobs ended that gave no result, for films that the first has read.
_ENDED: Select[Any] = (
    select(job.c.state, func.count(func.distinct(job.c.instance_id)))
    .join(_first, _first.c.instance_id == job.c.instance_id)
    .where(job.c.bundle_id == bindparam("second"), job.c.kind != JobKind.VERIFY.value)
    .where(job.c.state.in_([JobState.INELIGIBLE.value, JobState.FAILED.value]))
    .group_by(job.c.state)
)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
