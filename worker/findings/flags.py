"""Failure flags: what is wrong with a film's result, before and after clean-up.

Every rule that reads a map is evaluated on the raw *and* the cleaned map, so clean-up
never hides a failure (Holste et al., section 2.3 and Table 3, count on cleaned maps).

* **missing**: a region of the bundle has no pixel. Background is not asked for: a tightly
  collimated film has none.
* **disconnected**: more than one 8-connected component, pieces joined behind the regions of
  ``CONTINUES_BEHIND`` counting as one; of a region that joins both sides of the body, more than two.
* **interrupted** by an intruder along an axis: in a column (vertical) or row (horizontal),
  intruder pixels lie strictly between the region's first and last pixel, and all such
  pixels together reach ``INTERRUPTION_FRACTION`` of the region's area. Components of the
  region below that fraction do not count: a speck is a piece, not a part. The pairs are data.
  In a region set of lungs alone background is no intruder: heart and diaphragm are background there.
* Before clean-up pieces and interruptions below ``RAW_FRACTION`` of the region count neither.
* **holste_failure**: a region is missing, or at least two are disconnected or interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from schema.regions import REGION_BY_NAME, Region, RegionDefinition
from worker.film.prepared import FilmFacts, Observation
from worker.findings import flag_rules as table
from worker.findings.flag_rules import Rule
from worker.findings.postprocess import PostprocessSettings
from worker.findings.shapes import CONNECTIVITY, RegionShape, shapes_of
from worker.results.result import FindingScore, Flag, LabelMap, Measurement, Segmentation


@dataclass(frozen=True)
class FlagContext:
    """All that the rules may look at, for one film.

    ``measurements`` are those of the cleaned map, ``probabilities`` is float32 of shape
    (regions, height, width), and ``further`` are flags raised elsewhere, such as those of
    the eligibility verdict.
    """

    segmentation: Segmentation
    measurements: Sequence[Measurement]
    probabilities: npt.NDArray[np.float32]
    regions: Sequence[RegionDefinition]
    facts: FilmFacts
    observations: Sequence[Observation] = ()
    scores: Sequence[FindingScore] = ()
    settings: PostprocessSettings = field(default_factory=PostprocessSettings)
    further: Sequence[Flag] = ()


@dataclass(frozen=True)
class MapContext:
    """One of the two maps with its shapes; ``source`` is ``"raw"`` or ``"cleaned"``."""

    source: str
    labels: LabelMap
    shapes: dict[str, RegionShape]
    film: FlagContext

    @property
    def foreground(self) -> list[RegionDefinition]:
        """The bundle's regions other than background."""
        return [region for region in self.film.regions if region.name != Region.BACKGROUND]


def evaluate(context: FlagContext) -> list[Flag]:
    """All flags of one film, at most one per (rule, source, region)."""
    segmentation = context.segmentation
    shapes = {measurement.region: _shape(measurement) for measurement in context.measurements}
    cleaned = MapContext("cleaned", segmentation.cleaned, shapes, context)
    if segmentation.repaired_pixels:
        shapes = shapes_of(segmentation.raw, context.regions)
    raw = MapContext("raw", segmentation.raw, shapes, context)
    flags = [*_input_flags(context.observations), *context.further]
    for view in (raw, cleaned):
        flags += _map_flags(view)
    flags += _carina_threshold_lowered(context)
    flags += _low_confidence(context)
    flags += _ensemble_disagreement(context.scores)
    return unique(flags)


def unique(flags: Iterable[Flag]) -> list[Flag]:
    """The first flag of each (rule, source, region), in order."""
    kept: dict[tuple[str, str, str | None], Flag] = {}
    for flag in flags:
        kept.setdefault((flag.rule, flag.source, flag.region), flag)
    return list(kept.values())


def raise_flag(
    rule: str,
    source: str,
    region: str | None = None,
    *,
    value: float | None = None,
    threshold: float | None = None,
    detail: str = "",
) -> Flag:
    """A flag carrying its rule's present version."""
    version = table.RULES.get(rule, table.UNKNOWN_RULE).version
    return Flag(rule, version, source, region, value, threshold, detail)


def describe(flag: Flag) -> str:
    """The flag as one sentence for a person, with where it was seen."""
    definition = table.RULES.get(flag.rule, table.UNKNOWN_RULE)
    words = definition.sentence.format(
        rule=flag.rule.replace("_", " "),
        region=_title(flag.region) if flag.region else "A region",
        value=float("nan") if flag.value is None else flag.value,
        threshold=float("nan") if flag.threshold is None else flag.threshold,
    )
    where = {"raw": " (before clean-up)", "cleaned": " (after clean-up)"}.get(flag.source, "")
    detail = f": {flag.detail}" if flag.detail else ""
    return f"{words}{where}{detail}."


def advice(flag: Flag) -> str:
    """What a person does about the flag."""
    return table.RULES.get(flag.rule, table.UNKNOWN_RULE).advice


def _title(region: str) -> str:
    known = REGION_BY_NAME.get(region)
    return known.title if known else region.replace("_", " ").capitalize()


def _titles(regions: Iterable[str]) -> str:
    return ", ".join(_title(region).lower() for region in regions)


def _shape(measurement: Measurement) -> RegionShape:
    row, column = measurement.centroid_row, measurement.centroid_column
    return RegionShape(
        area=measurement.area_pixels,
        components=measurement.components,
        centroid=None if row is None or column is None else (row, column),
        box=measurement.bounding_box,
    )


def _input_flags(observations: Sequence[Observation]) -> list[Flag]:
    return [raise_flag(seen.rule, "input", value=seen.value, detail=seen.detail) for seen in observations]


# Rules on one map


def _map_flags(view: MapContext) -> list[Flag]:
    missing = _missing(view)
    disconnected = _disconnected(view)
    interrupted = _interrupted(view)
    flags = [*_holste_failure(view, missing, disconnected, interrupted), *missing, *disconnected, *interrupted]
    for rule in (_carina_out_of_range, _area_out_of_range, _left_right_swapped):
        flags += rule(view)
    return flags


def _missing(view: MapContext) -> list[Flag]:
    return [
        raise_flag(Rule.MISSING_REGION, view.source, region.name, value=0.0, threshold=1.0)
        for region in view.foreground
        if view.shapes[region.name].area == 0
    ]


def _disconnected(view: MapContext) -> list[Flag]:
    flags = []
    for region in view.foreground:
        sound = table.SOUND_PIECES.get(region.name, 1)
        if view.shapes[region.name].components <= sound:
            continue
        pieces = _pieces(view, region)
        if view.source == "raw":
            pieces = pieces[pieces >= table.RAW_FRACTION * pieces.sum()]
        if len(pieces) > sound:
            flags.append(
                raise_flag(
                    Rule.DISCONNECTED_REGION,
                    view.source,
                    region.name,
                    value=float(len(pieces)),
                    threshold=float(sound),
                    detail=f"{pieces[sound:].sum()} of {pieces.sum()} pixels lie outside the largest"
                    f"{'' if sound == 1 else f' {sound}'}",
                )
            )
    return flags


def _pieces(view: MapContext, region: RegionDefinition) -> npt.NDArray[np.int64]:
    """Pixels of each component, largest first; those that meet behind another region are one."""
    over = table.CONTINUES_BEHIND.get(region.name, ())
    values = [other.value for other in view.film.regions if other.name in over]
    own = view.labels == region.value
    joined = own | np.isin(view.labels, values)
    _, labels = cv2.connectedComponents(joined.view(np.uint8), connectivity=CONNECTIVITY)
    sizes = np.bincount(labels[own])
    return np.sort(sizes[sizes > 0])[::-1]


def _interrupted(view: MapContext) -> list[Flag]:
    values = {region.name: region.value for region in view.film.regions if view.shapes[region.name].area}
    if not {region.name for region in view.film.regions} & set(table.BETWEEN_LUNG_PARTS):
        values.pop(str(Region.BACKGROUND), None)
    flags = []
    for name, value in values.items():
        shape = view.shapes[name]
        pairs = [pair for pair in table.INTERRUPTIONS if pair.region == name and pair.intruder in values]
        if shape.box is None or not pairs:
            continue
        window = view.labels[shape.box[0] : shape.box[2], shape.box[1] : shape.box[3]]
        parts = _sizeable(window == value) if shape.components > 1 else window == value
        between = {axis: _between(parts, axis) for axis in table.Axis}
        shares = {
            pair: np.count_nonzero(window[between[pair.axis]] == values[pair.intruder]) / shape.area for pair in pairs
        }
        least = table.RAW_FRACTION if view.source == "raw" else table.INTERRUPTION_FRACTION
        guilty = {pair: share for pair, share in shares.items() if share >= least}
        if guilty:
            flags.append(
                raise_flag(
                    Rule.INTERRUPTED_REGION,
                    view.source,
                    name,
                    value=float(max(guilty.values())),
                    threshold=least,
                    detail=f"by {_titles(sorted({pair.intruder for pair in guilty}))}",
                )
            )
    return flags


def _sizeable(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Without the components too small to make whatever lies before them an interruption."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=CONNECTIVITY)
    areas = statistics[:, cv2.CC_STAT_AREA]
    keep = areas >= table.INTERRUPTION_FRACTION * areas[1:].sum()
    keep[0] = False
    return keep[labels]


def _between(mask: npt.NDArray[np.bool_], axis: table.Axis) -> npt.NDArray[np.bool_]:
    """Pixels that have ``mask`` on both sides along ``axis``; shape as ``mask``."""
    lines = mask if axis is table.Axis.HORIZONTAL else mask.T
    length = lines.shape[1]
    some = lines.any(axis=1)
    first = np.where(some, lines.argmax(axis=1), length)
    last = np.where(some, length - 1 - lines[:, ::-1].argmax(axis=1), -1)
    position = np.arange(length)
    inside = (position > first[:, None]) & (position < last[:, None]) & ~lines
    return inside if axis is table.Axis.HORIZONTAL else inside.T


def _holste_failure(
    view: MapContext, missing: Sequence[Flag], disconnected: Sequence[Flag], interrupted: Sequence[Flag]
) -> list[Flag]:
    broken = sorted({str(flag.region) for flag in (*disconnected, *interrupted)})
    if not missing and len(broken) < table.HOLSTE_BROKEN_CLASSES:
        return []
    absent = [str(flag.region) for flag in missing]
    parts = {"missing": absent, "in pieces or interrupted": broken}
    return [
        raise_flag(
            Rule.HOLSTE_FAILURE,
            view.source,
            value=float(len(absent) + len(broken)),
            threshold=1.0 if absent else float(table.HOLSTE_BROKEN_CLASSES),
            detail="; ".join(f"{what}: {_titles(names)}" for what, names in parts.items() if names),
        )
    ]


def _carina_out_of_range(view: MapContext) -> list[Flag]:
    shape = view.shapes.get(Region.CARINA)
    if shape is None or shape.area == 0:
        return []
    smallest, largest = view.film.settings.carina_range((view.labels.shape[0], view.labels.shape[1]))
    if view.film.settings.carina_core and view.source == "raw":
        # Such a network's carina is too large by design, and cut down to its core afterwards.
        largest = math.inf
    return _out_of_range(Rule.CARINA_OUT_OF_RANGE, view.source, Region.CARINA, shape.area, (smallest, largest))


def _area_out_of_range(view: MapContext) -> list[Flag]:
    band = age_band(view.film.facts.age_days)
    flags = []
    for region in view.foreground:
        area = view.shapes[region.name].area / view.labels.size
        limits = band.areas.get(region.name)
        if limits and area > 0.0:
            flags += _out_of_range(Rule.AREA_OUT_OF_RANGE, view.source, region.name, area, limits, detail=band.name)
    return flags


def age_band(age_days: int | None) -> table.AgeBand:
    """The age band whose area ranges apply."""
    if age_days is None:
        return table.AGE_UNKNOWN
    return next(band for band in table.AGE_BANDS if age_days < band.until_days)


def _out_of_range(
    rule: str, source: str, region: str, value: float, limits: tuple[float, float], *, detail: str = ""
) -> list[Flag]:
    smallest, largest = limits
    if smallest <= value <= largest:
        return []
    limit = smallest if value < smallest else largest
    return [raise_flag(rule, source, region, value=float(value), threshold=limit, detail=detail)]


def _left_right_swapped(view: MapContext) -> list[Flag]:
    flags = []
    for left, right in table.SIDE_PAIRS:
        left_centre = view.shapes[left].centroid if left in view.shapes else None
        right_centre = view.shapes[right].centroid if right in view.shapes else None
        if left_centre and right_centre and left_centre[1] < right_centre[1]:
            distance = left_centre[1] - right_centre[1]
            flags.append(raise_flag(Rule.LEFT_RIGHT_SWAPPED, view.source, left, value=distance, threshold=0.0))
    return flags


# Rules on the film


def _carina_threshold_lowered(context: FlagContext) -> list[Flag]:
    threshold = context.segmentation.carina_threshold
    if threshold is None:
        return []
    return [raise_flag(Rule.CARINA_THRESHOLD_LOWERED, "cleaned", Region.CARINA, value=threshold)]


def _low_confidence(context: FlagContext) -> list[Flag]:
    """Mean probability of the winning class over the raw map's foreground."""
    background = [region.value for region in context.regions if region.name == Region.BACKGROUND]
    thorax = ~np.isin(context.segmentation.raw, background)
    if not thorax.any():
        return []
    confidence = float(context.probabilities.max(axis=0)[thorax].mean())
    if confidence >= table.LOW_CONFIDENCE:
        return []
    return [raise_flag(Rule.LOW_CONFIDENCE, "raw", value=confidence, threshold=table.LOW_CONFIDENCE)]


def _ensemble_disagreement(scores: Sequence[FindingScore]) -> list[Flag]:
    apart = [score for score in scores if score.spread >= table.ENSEMBLE_SPREAD]
    if not apart:
        return []
    return [
        raise_flag(
            Rule.ENSEMBLE_DISAGREEMENT,
            "result",
            value=max(score.spread for score in apart),
            threshold=table.ENSEMBLE_SPREAD,
            detail="about " + ", ".join(score.finding.replace("_", " ") for score in apart),
        )
    ]
