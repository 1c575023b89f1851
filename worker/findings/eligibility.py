"""Is this a frontal chest radiograph? The picture decides, the header is a witness.

The segmentation shows whether there are two lungs of plausible size, order and place; the
header says what it was meant to be. ``TRUTH_TABLE`` puts the two together. Whatever is not
clearly a frontal chest is either ineligible with a reason or done with a flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import cv2
import numpy as np

from schema.regions import HOLSTE_REGIONS, Region, RegionDefinition
from worker.film.prepared import FilmFacts
from worker.findings.flag_rules import Rule
from worker.findings.flags import raise_flag
from worker.findings.witness import Witness, header_says
from worker.results.result import Flag, Measurement, Segmentation


class Picture(StrEnum):
    """What the segmentation shows."""

    PLAUSIBLE = "two plausible lungs"
    DOUBTFUL = "lungs of doubtful size, order or place"
    IMPLAUSIBLE = "no two plausible lungs"
    UNTOLD = "the bundle has no left and right lung to judge by"


@dataclass(frozen=True)
class Outcome:
    """``code`` is None for a film that is done; ``rules`` are flags to raise besides the picture's own."""

    code: str | None
    rules: tuple[str, ...] = ()


_DONE = Outcome(None)
_DISAGREES = (Rule.HEADER_DISAGREES,)
_DOUBTFUL = (Rule.CHEST_DOUBTFUL,)

TRUTH_TABLE: dict[tuple[Picture, Witness], Outcome] = {
    (Picture.PLAUSIBLE, Witness.FRONTAL_CHEST): _DONE,
    (Picture.PLAUSIBLE, Witness.SILENT): _DONE,
    (Picture.PLAUSIBLE, Witness.LATERAL): Outcome(None, _DISAGREES),
    (Picture.PLAUSIBLE, Witness.OTHER): Outcome(None, _DISAGREES),
    # What is doubtful raises its own flag, so it is never silently done.
    (Picture.DOUBTFUL, Witness.FRONTAL_CHEST): _DONE,
    (Picture.DOUBTFUL, Witness.SILENT): _DONE,
    (Picture.DOUBTFUL, Witness.LATERAL): Outcome("LATERAL"),
    (Picture.DOUBTFUL, Witness.OTHER): Outcome("NOT_A_CHEST"),
    (Picture.IMPLAUSIBLE, Witness.FRONTAL_CHEST): Outcome("NOT_A_CHEST", _DISAGREES),
    (Picture.IMPLAUSIBLE, Witness.SILENT): Outcome("NOT_A_CHEST"),
    (Picture.IMPLAUSIBLE, Witness.LATERAL): Outcome("LATERAL"),
    (Picture.IMPLAUSIBLE, Witness.OTHER): Outcome("NOT_A_CHEST"),
    (Picture.UNTOLD, Witness.FRONTAL_CHEST): _DONE,
    (Picture.UNTOLD, Witness.SILENT): Outcome(None, _DOUBTFUL),
    (Picture.UNTOLD, Witness.LATERAL): Outcome("LATERAL"),
    (Picture.UNTOLD, Witness.OTHER): Outcome("NOT_A_CHEST"),
}


@dataclass(frozen=True)
class Limits:
    """A number inside ``sound`` is plausible, outside ``bearable`` implausible, else doubtful."""

    words: str
    sound: tuple[float, float]
    bearable: tuple[float, float]


_ANY = float("inf")

#: Limits for one lung. Hand-drawn lungs of about 540 films at 1 to 5 years lie well inside:
#: 8.6-36 % of the film, solidity 0.81-0.98, area ratio below 1.9, centres 0.92-1.5 lung
#: widths apart, vertical overlap above 0.84. Newborns' lungs are small on long films;
#: effusions and collapse make lungs small, unequal and ragged.
LUNG_LIMITS: dict[str, Limits] = {
    "area": Limits("area as a fraction of the film", (0.025, 0.40), (0.01, 0.50)),
    "largest_share": Limits("share of its largest piece", (0.80, 1.0), (0.50, 1.0)),
    "solidity": Limits("area over that of its convex hull", (0.60, 1.0), (0.40, 1.0)),
    "probability": Limits("mean probability", (0.60, 1.0), (0.40, 1.0)),
}

PAIR_LIMITS: dict[str, Limits] = {
    "area_ratio": Limits("ratio of the lungs' areas", (1.0, 4.0), (1.0, 8.0)),
    "separation": Limits("distance between the lungs in lung widths", (0.60, _ANY), (0.30, _ANY)),
    "vertical_overlap": Limits("vertical overlap of the lungs", (0.50, 1.0), (0.20, 1.0)),
}

#: With a single lung left (collapse, effusion, one lung removed), at least one of these is seen too.
MIDLINE = (Region.SPINE, Region.MEDIASTINUM, Region.HEART)


@dataclass(frozen=True)
class Verdict:
    """``code`` is None for an eligible film, else ``NOT_A_CHEST`` or ``LATERAL``.

    ``detail`` says what was seen; ``flags`` go with the film either way.
    """

    eligible: bool
    code: str | None
    detail: str
    flags: list[Flag] = field(default_factory=list)


@dataclass(frozen=True)
class Sight:
    """What the picture shows, why, and the flags for its doubts."""

    picture: Picture
    reasons: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()


@dataclass(frozen=True)
class Trouble:
    """A number outside its limits; ``refused`` when it is not bearable either."""

    reason: str
    refused: bool


def judge(
    segmentation: Segmentation,
    measurements: Sequence[Measurement],
    facts: FilmFacts,
    regions: Sequence[RegionDefinition] = HOLSTE_REGIONS,
) -> Verdict:
    """Decide whether a film is a frontal chest radiograph.

    Parameters
    ----------
    segmentation
        The film's maps; the cleaned one is judged.
    measurements
        From :func:`worker.findings.measurements.measure`, one per region.
    facts
        The header's testimony.
    regions
        The bundle's regions.
    """
    sight = look(segmentation, measurements, regions)
    witness = header_says(facts)
    outcome = TRUTH_TABLE[sight.picture, witness]
    detail = "; ".join([*(sight.reasons or (sight.picture.value,)), witness.value])
    flags = [*sight.flags, *(raise_flag(rule, "input", detail=detail) for rule in outcome.rules)]
    return Verdict(outcome.code is None, outcome.code, detail, flags)


def look(segmentation: Segmentation, measurements: Sequence[Measurement], regions: Sequence[RegionDefinition]) -> Sight:
    """Judge the picture alone."""
    values = {region.name: region.value for region in regions}
    measured = {measurement.region: measurement for measurement in measurements if measurement.region in values}
    if Region.LEFT_LUNG not in measured or Region.RIGHT_LUNG not in measured:
        return Sight(Picture.UNTOLD)
    left, right = measured[Region.LEFT_LUNG], measured[Region.RIGHT_LUNG]
    troubles = {
        lung.region: _troubles(_lung_numbers(segmentation, lung, values[lung.region]), LUNG_LIMITS, lung.region)
        for lung in (left, right)
    }
    for lost, other in ((left, right), (right, left)):
        if lost.area_fraction < LUNG_LIMITS["area"].bearable[0]:
            midline = any(measured[name].area_pixels for name in MIDLINE if name in measured)
            return _single_lung(lost.region, plausible=midline and not troubles[other.region])
    apart = _column(left) - _column(right)
    pair = _troubles(_pair_numbers(left, right, segmentation.cleaned.shape[1]), PAIR_LIMITS, "lungs")
    return _sum_up([*troubles[left.region], *troubles[right.region], *pair], apart)


def _single_lung(lost: str, plausible: bool) -> Sight:
    reason = f"no {_words(lost)} of plausible size"
    if not plausible:
        return Sight(Picture.IMPLAUSIBLE, (reason,))
    return Sight(Picture.DOUBTFUL, (reason,), (raise_flag(Rule.CHEST_DOUBTFUL, "cleaned", detail=reason),))


def _sum_up(troubles: Sequence[Trouble], apart: float) -> Sight:
    """``apart`` is the left lung's centre minus the right's in columns (-1 to 1); negative is swapped."""
    reasons = [trouble.reason for trouble in troubles]
    if any(trouble.refused for trouble in troubles):
        return Sight(Picture.IMPLAUSIBLE, tuple(trouble.reason for trouble in troubles if trouble.refused))
    flags = []
    if reasons:
        flags.append(raise_flag(Rule.CHEST_DOUBTFUL, "cleaned", detail="; ".join(reasons)))
    if apart < 0.0:
        reasons.append("left and right lung are swapped")
        flags.append(raise_flag(Rule.LEFT_RIGHT_SWAPPED, "cleaned", Region.LEFT_LUNG, value=apart, threshold=0.0))
    return Sight(Picture.DOUBTFUL if reasons else Picture.PLAUSIBLE, tuple(reasons), tuple(flags))


def _troubles(numbers: dict[str, float], limits: dict[str, Limits], subject: str) -> list[Trouble]:
    found = []
    for name, limit in limits.items():
        number = numbers[name]
        if not limit.sound[0] <= number <= limit.sound[1]:
            refused = not limit.bearable[0] <= number <= limit.bearable[1]
            found.append(Trouble(f"{_words(subject)}: {limit.words} is {number:.3g}", refused))
    return found


def _lung_numbers(segmentation: Segmentation, lung: Measurement, value: int) -> dict[str, float]:
    """The numbers of ``LUNG_LIMITS`` for one lung; outlines stand for pieces."""
    mask = (segmentation.cleaned == value).view(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    areas = [cv2.contourArea(outline) for outline in outlines]
    largest = max(areas, default=0.0)
    hull = cv2.contourArea(cv2.convexHull(outlines[int(np.argmax(areas))])) if largest else 0.0
    return {
        "area": lung.area_fraction,
        "largest_share": largest / sum(areas) if largest else 0.0,
        "solidity": largest / hull if hull else 0.0,
        "probability": lung.mean_probability or 0.0,
    }


def _pair_numbers(left: Measurement, right: Measurement, width: int) -> dict[str, float]:
    """The numbers of ``PAIR_LIMITS``; both lungs have pixels, ``width`` is the grid's."""
    boxes = [lung.bounding_box for lung in (left, right) if lung.bounding_box is not None]
    heights = [bottom - top for top, _, bottom, _ in boxes]
    widths = [right_edge - left_edge for _, left_edge, _, right_edge in boxes]
    overlap = min(box[2] for box in boxes) - max(box[0] for box in boxes)
    areas = sorted(lung.area_pixels for lung in (left, right))
    return {
        "area_ratio": areas[1] / areas[0],
        "separation": abs(_column(left) - _column(right)) * width / (sum(widths) / 2),
        "vertical_overlap": max(0, overlap) / min(heights),
    }


def _column(lung: Measurement) -> float:
    """The lung's centre as a fraction of the film's width; a lung judged here has one."""
    return 0.0 if lung.centroid_column is None else lung.centroid_column


def _words(name: str) -> str:
    return name.replace("_", " ")
