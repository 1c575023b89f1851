"""Masks against their truth: overlap, distances, carina, age groups, failures.

Holste et al., section 2.3 and Tables 2-4. What the paper leaves open, decided here:

* Overlap and surface distance are those of the raw winner-takes-all masks at the network's grid,
  as in the paper; post-processing enters the failure table, the carina's distance, and a column
  of its own.
* A region that is neither in the truth nor in the prediction has no Dice; one that is in only one of
  them has 0. A film's mean Dice is over the regions that have one, background included.
* A region whose truth was made by rule (``derived``) is measured but not scored: it is left out of
  the film's means, and pixel accuracy looks only at pixels whose true region is scored.
* Surface distance is the symmetric mean in pixels of the network's grid, and in per cent of the
  grid's diagonal so that grids can be compared; films are stretched to the grid, so there are no
  millimetres. The carina's distance is that of centroids after post-processing, in the same units.
* A network whose channels stand for themselves (``network.activation = "sigmoid"``) is measured channel by channel:
  a region is where its probability is above the recipe's threshold (Novikov et al., eq. 9: above 0.75), and the
  background, which has no probability of its own, is not measured. Dice, Jaccard and the symmetric mean surface
  distance per region are then what Novikov's Tables I-VI report, the last as MedPy's ``assd``. Where the truth's
  regions overlap (``data.overlapping``) each is compared whole. Label maps (accuracy, what post-processing leaves,
  failures) show of overlapping regions the later one, in truth and prediction alike.
* A film whose truth is background everywhere shows no chest: it is counted apart, by whether the
  night would have refused it, and enters nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schema.bundle import BundleRegion
from schema.regions import LUNGS, Region, is_lung, parts_of
from trainer.data.store import Samples
from trainer.errors import RunError
from trainer.evaluation.subjects import Evaluation, Subject, predict
from worker.findings import flag_rules
from worker.metrics import (
    Overlap,
    SurfaceDistance,
    centroid_distance,
    overlap,
    pixel_accuracy,
    region_overlaps,
    surface_distance,
)
from worker.pipeline import FilmInWork

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
LabelMap = npt.NDArray[np.uint8]

_NOT_MEASURED = Overlap(float("nan"), float("nan"))
_NO_SURFACE = SurfaceDistance(float("nan"), float("nan"), float("nan"))

#: The two maps of a film: winner takes all, and after post-processing.
SOURCES = ("raw", "cleaned")

#: Age groups of Holste, section 2.1 and Table 4: key, title, from and below which age in years.
AGE_GROUPS: tuple[tuple[str, str, float, float], ...] = (
    ("age_0_4", "0-4 years", 0.0, 5.0),
    ("age_5_plus", "5 years and over", 5.0, float("inf")),
)
AGE_UNKNOWN = ("age_unknown", "age not known")

#: Failures of Holste, section 2.3, and one that can be told of a carina nobody drew: key, title.
FAILURES: tuple[tuple[str, str], ...] = (
    ("missing_carina", "carina missing"),
    ("carina_astray", "carina missing or not between the lungs"),
    ("missing_region", "any region missing"),
    ("disconnected_films", "two or more regions disconnected or interrupted"),
    ("failed_films", "failure by the paper's rule (either of the two above)"),
)


@dataclass(frozen=True)
class Overlaps:
    """Per film and region, float64 (films, regions): 0-1, distances in pixels of the grid."""

    dice: FloatArray
    jaccard: FloatArray
    surface: FloatArray
    surface_95: FloatArray
    dice_cleaned: FloatArray


@dataclass(frozen=True)
class SegmentationScores:
    """What was measured on N films that show a chest.

    Attributes
    ----------
    regions
        With their truth's origin.
    grid
        (height, width) of the network.
    rows
        (N,): places in the samples.
    accuracy
        (N,): share of right pixels among those whose true region is scored.
    overlaps
        Per film and region.
    lungs
        (N,): Dice of both lungs as one after post-processing; NaN where they are no regions of the network or derived.
    carina
        (N,): distance of the carina's centroids in pixels of the grid, NaN where one is missing or derived.
    ages
        (N,): days, NaN not known.
    repaired
        (N,): pixels that post-processing changed.
    failures
        ``"raw"`` and ``"cleaned"`` → failure → (N,) whether the film fails so; what cannot happen with these
        regions is absent.
    missing, broken
        ``"raw"`` and ``"cleaned"`` → (N, regions): missing; disconnected or interrupted.
    verdicts
        Per film the code with which the night would refuse it, or ``""``.
    no_chest
        The same for films that show no chest.
    threshold
        Probability above which a pixel counts as a region whatever else it is; None where the highest wins.
    """

    regions: tuple[BundleRegion, ...]
    grid: tuple[int, int]
    rows: npt.NDArray[np.int64]
    accuracy: FloatArray
    overlaps: Overlaps
    lungs: FloatArray
    carina: FloatArray
    ages: FloatArray
    repaired: npt.NDArray[np.int64]
    failures: Mapping[str, Mapping[str, BoolArray]]
    missing: Mapping[str, BoolArray]
    broken: Mapping[str, BoolArray]
    verdicts: tuple[str, ...]
    no_chest: tuple[str, ...]
    threshold: float | None = None

    @property
    def scored(self) -> BoolArray:
        """(regions,): whose truth is not derived."""
        return np.array([region.origin != "derived" for region in self.regions])

    @property
    def mean_dice(self) -> FloatArray:
        """(N,): each film's mean over the scored regions, NaN when none has a Dice."""
        return row_means(self.overlaps.dice[:, self.scored])

    @property
    def diagonal(self) -> float:
        """The grid's diagonal in pixels."""
        return float(np.hypot(*self.grid))

    def age_groups(self) -> list[tuple[str, str, BoolArray]]:
        """Key, title and members (N,) of each group that has a film."""
        years = self.ages / flag_rules.YEAR_DAYS
        groups = [(key, title, (years >= low) & (years < high)) for key, title, low, high in AGE_GROUPS]
        groups.append((*AGE_UNKNOWN, np.isnan(years)))
        return [group for group in groups if group[2].any()]


@dataclass(frozen=True)
class _Film:
    """One film's numbers, in the order of the regions where there is one per region."""

    accuracy: float
    overlaps: tuple[list[float], list[float], list[float], list[float], list[float]]
    lungs: float
    carina: float
    astray: dict[str, bool]
    repaired: int
    missing: dict[str, list[bool]]
    broken: dict[str, list[bool]]
    verdict: str


def measure_films(evaluation: Evaluation) -> SegmentationScores:
    """Predict every film and compare it with its truth.

    Raises
    ------
    RunError
        The films have no masks, or an engine failed.
    """
    films, title = evaluation.films, evaluation.subject.title
    if films.labels is None:
        raise RunError(f"{title}: these films have no masks to compare with.")
    regions = evaluation.subject.manifest.regions
    chests = [row for row in range(len(films)) if np.asarray(films.labels[row]).any()]
    strange = sorted(set(range(len(films))) - set(chests))
    threshold = threshold_of(evaluation.subject)
    measured = [
        _measure(film, FilmTruth.of(films, row), regions, threshold)
        for row, film in zip(chests, predict(evaluation, chests, f"{evaluation.part} films"), strict=True)
    ]
    no_chest = tuple(_verdict(film) for film in predict(evaluation, strange, "films without a chest"))
    overlaps = np.array([film.overlaps for film in measured], np.float64).reshape(len(measured), 5, len(regions))
    missing = {source: _table([film.missing[source] for film in measured], regions) for source in SOURCES}
    broken = {source: _table([film.broken[source] for film in measured], regions) for source in SOURCES}
    astray = {source: np.array([film.astray[source] for film in measured], np.bool_) for source in SOURCES}
    return SegmentationScores(
        regions=regions,
        grid=(films.labels.shape[1], films.labels.shape[2]),
        rows=np.array(chests, np.int64),
        accuracy=np.array([film.accuracy for film in measured], np.float64),
        overlaps=Overlaps(*np.moveaxis(overlaps, 1, 0)),
        lungs=np.array([film.lungs for film in measured], np.float64),
        carina=np.array([film.carina for film in measured], np.float64),
        ages=np.asarray(films.ages, np.float64)[chests],
        repaired=np.array([film.repaired for film in measured], np.int64),
        failures={source: failures_of(missing[source], broken[source], astray[source], regions) for source in SOURCES},
        missing=missing,
        broken=broken,
        verdicts=tuple(film.verdict for film in measured),
        no_chest=no_chest,
        threshold=threshold,
    )


def threshold_of(subject: Subject) -> float | None:
    """The probability above which a pixel counts, where every member's channels stand for themselves; else None."""
    asked = [r.network.threshold if r.network.activation == "sigmoid" else None for r in subject.recipes.values()]
    return asked[0] if len(set(asked)) == 1 and len(asked) == len(subject.members) else None


def failures_of(
    missing: BoolArray, broken: BoolArray, astray: BoolArray, regions: Sequence[BundleRegion]
) -> dict[str, BoolArray]:
    """Holste's failures per film, from what is missing and what is broken (both (films, regions)).

    ``missing_carina`` is absent when there is no such region, ``carina_astray`` (from ``astray``, (films,)) also where
    there are no two lungs.
    """
    names = [region.name for region in regions]
    absent = missing.any(axis=1)
    disconnected = broken.sum(axis=1) >= flag_rules.HOLSTE_BROKEN_CLASSES
    failures = {
        "missing_region": absent,
        "disconnected_films": disconnected,
        "failed_films": absent | disconnected,
    }
    if Region.CARINA in names:
        failures["missing_carina"] = missing[:, names.index(Region.CARINA)]
        if set(LUNGS) <= set(names):
            failures["carina_astray"] = astray
    return failures


def is_carina_astray(labels: LabelMap, regions: Sequence[BundleRegion]) -> bool:
    """Whether there is no carina between the lungs.

    Its centroid must lie between the lungs' centroids from left to right, and below the higher apex and above the
    lower lung's end; without either lung it lies between none. ``labels`` is uint8 (height, width) with the values of
    ``regions``.
    """
    values = {region.name: region.value for region in regions}
    carina, *lungs = (np.argwhere(labels == values.get(name, -1)) for name in (Region.CARINA, *LUNGS))
    if not all(len(place) for place in (carina, *lungs)):
        return True
    row, column = carina.mean(axis=0)
    columns = [float(lung[:, 1].mean()) for lung in lungs]
    rows = np.concatenate(lungs)[:, 0]
    return not (min(columns) < column < max(columns) and rows.min() < row < rows.max())


def row_means(values: FloatArray) -> FloatArray:
    """Mean of each row over what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    result: FloatArray = np.divide(sums, count, out=np.full(len(values), np.nan), where=count > 0)
    return result


@dataclass(frozen=True)
class FilmTruth:
    """A film's truth: a label map, and what is stored, which is a bit field where regions overlap."""

    labels: LabelMap
    stored: LabelMap
    overlapping: bool

    @classmethod
    def of(cls, films: Samples, row: int) -> FilmTruth:
        """That of the film at ``row``."""
        assert films.labels is not None
        return cls(films.label_map(row), np.asarray(films.labels[row], np.uint8), films.overlapping)

    def mask(self, place: int) -> BoolArray:
        """Where the region of this place is."""
        return np.asarray(self.stored >> place & 1 > 0 if self.overlapping else self.stored == place)


def region_masks(
    film: FilmInWork, truth: FilmTruth, regions: Sequence[BundleRegion], threshold: float | None
) -> list[tuple[BoolArray, BoolArray] | None]:
    """Of each region the true and the found mask; None for a background that nobody asks for."""
    assert film.segmentation is not None
    if threshold is None:
        raw = film.segmentation.raw
        return [(truth.labels == region.value, raw == region.value) for region in regions]
    found = film.output.probabilities > threshold
    return [
        None if region.name == Region.BACKGROUND else (truth.mask(place), found[place])
        for place, region in enumerate(regions)
    ]


def _measure(film: FilmInWork, told: FilmTruth, regions: Sequence[BundleRegion], threshold: float | None) -> _Film:
    assert film.segmentation is not None
    raw, cleaned, truth = film.segmentation.raw, film.segmentation.cleaned, told.labels
    masks = region_masks(film, told, regions, threshold)
    overlaps = [overlap(*pair) if pair else _NOT_MEASURED for pair in masks]
    after = region_overlaps(truth, cleaned, [region.definition() for region in regions])
    surfaces = [surface_distance(*pair) if pair else _NO_SURFACE for pair in masks]
    scored = np.isin(truth, [region.value for region in regions if region.origin != "derived"])
    drawn = (region.value for region in regions if region.name == Region.CARINA and region.origin != "derived")
    carina = next(drawn, None)
    lungs = [region for region in regions if is_lung(region.name) and region.origin != "derived"]
    drawn_lungs = {part for region in lungs for part in parts_of(region.name)}
    both = [np.isin(labels, [region.value for region in lungs]) for labels in (truth, cleaned)]
    return _Film(
        accuracy=pixel_accuracy(truth[scored], raw[scored]) if scored.any() else float("nan"),
        overlaps=(
            [each.dice for each in overlaps],
            [each.jaccard for each in overlaps],
            [surface.mean for surface in surfaces],
            [surface.percentile95 for surface in surfaces],
            [after[region.name].dice if pair else float("nan") for region, pair in zip(regions, masks, strict=True)],
        ),
        lungs=overlap(both[0], both[1]).dice if drawn_lungs == {*LUNGS} else float("nan"),
        carina=float("nan") if carina is None else centroid_distance(truth == carina, cleaned == carina),
        astray={"raw": is_carina_astray(raw, regions), "cleaned": is_carina_astray(cleaned, regions)},
        repaired=film.segmentation.repaired_pixels,
        missing=_flagged(film, regions, {flag_rules.Rule.MISSING_REGION}),
        broken=_flagged(film, regions, {flag_rules.Rule.DISCONNECTED_REGION, flag_rules.Rule.INTERRUPTED_REGION}),
        verdict=_verdict(film),
    )


def _flagged(film: FilmInWork, regions: Sequence[BundleRegion], rules: set[flag_rules.Rule]) -> dict[str, list[bool]]:
    raised = {(flag.source, flag.region) for flag in film.flags if flag.rule in rules}
    return {source: [(source, region.name) in raised for region in regions] for source in SOURCES}


def _verdict(film: FilmInWork) -> str:
    assert film.verdict is not None
    return film.verdict.code or ""


def _table(rows: list[list[bool]], regions: Sequence[BundleRegion]) -> BoolArray:
    return np.array(rows, np.bool_).reshape(len(rows), len(regions))
