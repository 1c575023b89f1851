"""The parity gate: a compiled engine must say what the trained network said.

A bundle carries parity films: for every member the input tensor, and what the network gave
for it where it was trained. An engine whose masks or probabilities differ by more than the
thresholds is refused, whatever its speed. An engine that computes in 8 bits must also agree with
float32 on a site's own films: :mod:`worker.inference.site_gate`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.bundle import BundleError, Manifest, Member
from worker.inference.engines.base import Engine, EngineError, FloatArray, Precision


class Measure(StrEnum):
    """What is compared; the last five on a site's own films."""

    DICE = "dice"
    CENTROID_SHIFT = "centroid_shift"
    PROBABILITY = "probability_difference"
    CAM = "cam_difference"
    MEAN_DICE = "mean_dice"
    LOW_DICE = "low_dice"
    RANKING = "ranking"
    CALIBRATION = "calibration"
    SPEED = "speed"


#: How a person reads each measure, and whether a large value is good.
_MEASURES: dict[Measure, tuple[str, bool]] = {
    Measure.DICE: ("Dice of {}", True),
    Measure.CENTROID_SHIFT: ("centroid shift in pixels of {}", False),
    Measure.PROBABILITY: ("probability difference of {}", False),
    Measure.CAM: ("heat map difference of {}", False),
    Measure.MEAN_DICE: ("mean Dice of {}", True),
    Measure.LOW_DICE: ("5th percentile of the Dice of {}", True),
    Measure.RANKING: ("share of film pairs ranked alike by {}", True),
    Measure.CALIBRATION: ("shift of the mean probability of {}", False),
    Measure.SPEED: ("speed relative to {}", True),
}


@dataclass(frozen=True)
class SiteThresholds:
    """How far an engine with 8-bit layers may be from float32 on a site's own films.

    Attributes
    ----------
    films
        Fewer films than this approve nothing.
    mean_dice, region_mean_dice
        Least mean over the films of a region's Dice between the two label maps (0-1), and the exceptions.
    low_dice, region_low_dice
        The same of the 5th percentile: one film in twenty may be worse.
    ranking
        Least share of pairs of films that a finding's probability puts in the same order, over
        the pairs that float32 puts further apart than ``separated``. An AUROC is such a share, of
        (ill, well) pairs, so this bounds how far one can move, whatever the truth.
    calibration
        Largest shift of a finding's mean probability.
    probability
        Largest difference of a finding's probability on one film.
    speed
        The engine must be so many times as fast as the one that is used when it is refused: else 8
        bits only cost accuracy.
    """

    films: int = 30
    mean_dice: float = 0.98
    region_mean_dice: dict[str, float] = field(default_factory=lambda: {"carina": 0.9})
    low_dice: float = 0.95
    region_low_dice: dict[str, float] = field(default_factory=lambda: {"carina": 0.7})
    ranking: float = 0.99
    separated: float = 0.01
    calibration: float = 0.01
    probability: float = 0.1
    speed: float = 1.2


@dataclass(frozen=True)
class ParityThresholds:
    """How far an engine may be from the reference.

    ``dice`` is the least Dice of a region's argmax mask (0-1), ``region_dice`` the exceptions
    for regions so small that one pixel counts; ``centroid_shift`` is in pixels of the network's
    grid; ``probability`` the largest absolute difference of a finding's probability, and
    ``eight_bit_probability`` the same for 8-bit engines, whose ranking and calibration ``site``
    bounds; ``cam`` the largest difference of a class activation map, as a fraction of the film's
    highest activation.
    """

    dice: float = 0.99
    region_dice: dict[str, float] = field(default_factory=lambda: {"carina": 0.95})
    centroid_shift: float = 1.0
    probability: float = 0.01
    eight_bit_probability: float = 0.05
    cam: float = 0.1
    site: SiteThresholds = field(default_factory=SiteThresholds)

    def to_json(self) -> dict[str, Any]:
        """The thresholds as written to ``engine.json``."""
        return asdict(self)


@dataclass(frozen=True)
class ParityFigure:
    """A measure of one region or finding, and the film (or the films) that gave it."""

    measure: Measure
    subject: str
    film: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value keeps to the limit; a value that is not a number does not."""
        return self.value >= self.limit if _MEASURES[self.measure][1] else self.value <= self.limit

    @property
    def sentence(self) -> str:
        """The figure as a person reads it."""
        title, large_is_good = _MEASURES[self.measure]
        bound = "least" if large_is_good else "most"
        return f"{title.format(self.subject)} is {self.value:.4f} on {self.film}, {bound} allowed {self.limit:g}"

    def worse_than(self, other: ParityFigure) -> bool:
        """Whether this value is further from the reference than ``other`` of the same measure."""
        return self.value < other.value if _MEASURES[self.measure][1] else self.value > other.value


@dataclass(frozen=True)
class ParityReport:
    """What the gate found for one member.

    ``figures`` holds one figure per measure and region or finding, the worst over the films.
    ``engine_failure`` is empty unless the engine could not process a film at all. ``site_set`` tells
    on which of the site's films an 8-bit engine was judged: ``films`` and ``digest``; empty for others.
    """

    member: str
    precision: str
    films: int
    figures: tuple[ParityFigure, ...]
    engine_failure: str = ""
    site_set: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the engine may be used."""
        return not self.engine_failure and bool(self.figures) and all(figure.passed for figure in self.figures)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Why the engine is refused, one phrase per reason; empty when it passed."""
        reasons = [self.engine_failure] if self.engine_failure else []
        return (*reasons, *(figure.sentence for figure in self.figures if not figure.passed))

    def to_json(self) -> dict[str, Any]:
        """The report as written to ``engine.json``."""
        figures = [
            {**asdict(figure), "value": round(figure.value, 6), "passed": figure.passed} for figure in self.figures
        ]
        return {
            "passed": self.passed,
            "sentences": list(self.sentences),
            "films": self.films,
            "figures": figures,
            **({"site_set": self.site_set} if self.site_set else {}),
        }


def check_parity(
    engine: Engine,
    member: Member,
    manifest: Manifest,
    directory: Path,
    thresholds: ParityThresholds | None = None,
) -> ParityReport:
    """Run the bundle's parity films through ``engine`` and compare with their references.

    A film is an npz file with ``<member>.input`` (channels, height, width) in half precision,
    ``<member>.probabilities`` ((regions, height, width) or (findings,)) and for classifiers
    ``<member>.cam`` (findings, h, w).

    Raises
    ------
    BundleError
        There are no parity films, or one lacks this member's arrays or has them in another shape.
    """
    if not manifest.parity_films:
        raise BundleError(
            f"Bundle {manifest.key} has no parity films, so no engine can be trusted: export it again with them."
        )
    limits = thresholds or ParityThresholds()
    if Precision(engine.precision).eight_bit:
        limits = replace(limits, probability=limits.eight_bit_probability)
    compare = _compare_masks if member.task == "segmentation" else _compare_findings
    worst: dict[tuple[Measure, str], ParityFigure] = {}
    failure = ""
    for name in manifest.parity_films:
        film = _read_film(directory / name, manifest, member)
        try:
            outputs = engine.run(film["input"][np.newaxis])
        except EngineError as error:
            failure = f"the engine failed on {name}: {error}"
            break
        for figure in compare(name, film, outputs, manifest, limits):
            known = worst.get((figure.measure, figure.subject))
            if known is None or figure.worse_than(known):
                worst[figure.measure, figure.subject] = figure
    return ParityReport(member.name, engine.precision, len(manifest.parity_films), tuple(worst.values()), failure)


def _compare_masks(
    film: str,
    reference: dict[str, FloatArray],
    outputs: dict[str, FloatArray],
    manifest: Manifest,
    limits: ParityThresholds,
) -> Iterator[ParityFigure]:
    probabilities = outputs["probabilities"][0]
    _same_shape(film, "probabilities", reference["probabilities"], probabilities)
    expected, found = reference["probabilities"].argmax(axis=0), probabilities.argmax(axis=0)
    for region in manifest.regions:
        truth, mask = expected == region.value, found == region.value
        limit = limits.region_dice.get(region.name, limits.dice)
        yield ParityFigure(Measure.DICE, region.name, film, dice(truth, mask), limit)
        if truth.any() and mask.any():
            shift = float(np.linalg.norm(_centroid(truth) - _centroid(mask)))
            yield ParityFigure(Measure.CENTROID_SHIFT, region.name, film, shift, limits.centroid_shift)


def _compare_findings(
    film: str,
    reference: dict[str, FloatArray],
    outputs: dict[str, FloatArray],
    manifest: Manifest,
    limits: ParityThresholds,
) -> Iterator[ParityFigure]:
    probabilities, cam = outputs["probabilities"][0], outputs["cam"][0]
    _same_shape(film, "probabilities", reference["probabilities"], probabilities)
    _same_shape(film, "cam", reference["cam"], cam)
    highest = float(np.abs(reference["cam"]).max()) or 1.0
    for index, finding in enumerate(manifest.findings):
        difference = abs(float(probabilities[index]) - float(reference["probabilities"][index]))
        yield ParityFigure(Measure.PROBABILITY, finding.finding, film, difference, limits.probability)
        activation = float(np.abs(cam[index] - reference["cam"][index]).max()) / highest
        yield ParityFigure(Measure.CAM, finding.finding, film, activation, limits.cam)


def _read_film(path: Path, manifest: Manifest, member: Member) -> dict[str, FloatArray]:
    names = ("input", "probabilities", *(("cam",) if member.task == "classification" else ()))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[f"{member.name}.{name}"], np.float32) for name in names}
    except KeyError as error:
        raise BundleError(
            f"Bundle {manifest.key}: parity film {path.name} lacks {error.args[0]}: export it again."
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(f"Bundle {manifest.key}: parity film {path.name} cannot be read: {error}.") from None


def _same_shape(film: str, name: str, reference: FloatArray, output: FloatArray) -> None:
    if reference.shape != output.shape:
        raise BundleError(
            f"Parity film {film} has {name} of shape {reference.shape}, the network gives {output.shape}: "
            "export the bundle again."
        )


def dice(truth: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]) -> float:
    """Dice of two masks, 0-1; two empty ones agree."""
    total = int(truth.sum()) + int(mask.sum())
    return 1.0 if total == 0 else 2.0 * int((truth & mask).sum()) / total


def _centroid(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    return np.argwhere(mask).mean(axis=0)
