"""How well are findings told on some films? Numbers and their 95 % intervals, from arrays alone.

Intervals are those of 10,000 bootstrap replicates of patients (:mod:`worker.bootstrap`); the area has DeLong's besides
(:mod:`worker.delong`). Where fewer than :data:`LEAST_PATIENTS` patients have the finding, or lack it, no number is
given: it would be read as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker.bootstrap import REPLICATES, Interval, means, performances
from worker.delong import areas
from worker.metrics import brier_score, calibration, youden_threshold

FloatArray = npt.NDArray[np.float64]

#: So many patients with the finding, and so many without it, are needed for a number.
LEAST_PATIENTS = 20
#: Raised when the same films would give other numbers: they are then computed anew.
VERSION = 1


@dataclass(frozen=True)
class Performance:
    """A finding on some films, as the columns of ``auc_tracking`` are called; None where there is no such number."""

    positives: int
    negatives: int
    patients: int
    too_few: bool
    replicates: int
    threshold: float | None
    auroc: float | None = None
    auroc_low: float | None = None
    auroc_high: float | None = None
    delong_low: float | None = None
    delong_high: float | None = None
    average_precision: float | None = None
    average_precision_low: float | None = None
    average_precision_high: float | None = None
    sensitivity: float | None = None
    sensitivity_low: float | None = None
    sensitivity_high: float | None = None
    specificity: float | None = None
    specificity_low: float | None = None
    specificity_high: float | None = None
    f1: float | None = None
    f1_low: float | None = None
    f1_high: float | None = None
    youden_threshold: float | None = None
    brier: float | None = None
    calibration_slope: float | None = None
    calibration_intercept: float | None = None

    def to_row(self) -> dict[str, Any]:
        """As values of columns."""
        return asdict(self)


@dataclass(frozen=True)
class Counts:
    """Films and patients of a finding."""

    positives: int
    negatives: int
    patients: int
    positive_patients: int
    negative_patients: int

    @property
    def too_few(self) -> bool:
        """Whether no number is given."""
        return min(self.positive_patients, self.negative_patients) < LEAST_PATIENTS


def count(labels: npt.NDArray[np.floating], patients: npt.NDArray[Any]) -> Counts:
    """Count a finding; ``labels`` (films,) are 1, 0 or NaN where they are not known."""
    positive, negative = labels == 1.0, labels == 0.0
    return Counts(
        int(positive.sum()),
        int(negative.sum()),
        len(np.unique(patients[positive | negative])),
        len(np.unique(patients[positive])),
        len(np.unique(patients[negative])),
    )


def performance(
    labels: FloatArray,
    scores: FloatArray,
    thresholds: Sequence[float],
    patients: npt.NDArray[Any],
    *,
    replicates: int = REPLICATES,
    seed: int = 1,
) -> list[Performance]:
    """Each finding's numbers.

    Parameters
    ----------
    labels
        (films, findings): 1, 0, or NaN where it is not known.
    scores
        (films, findings): probabilities, finite.
    thresholds
        Of each finding, the bundle's.
    patients
        (films,): equal for films of one patient.
    """
    counts = [count(labels[:, k], patients) for k in range(labels.shape[1])]
    enough = [k for k, each in enumerate(counts) if not each.too_few]
    tables: dict[str, tuple[Interval, ...]] = {}
    if enough:
        limits = [thresholds[k] for k in enough]
        drawn = performances(
            labels[:, enough], scores[:, enough], limits, clusters=patients, replicates=replicates, seed=seed
        )
        tables = {name: bootstrap.intervals() for name, bootstrap in drawn.items()}
    found = []
    for k, each in enumerate(counts):
        numbers: dict[str, float | None] = {}
        if not each.too_few:
            for name, intervals in tables.items():
                numbers |= _columns(name, intervals[enough.index(k)])
            numbers |= _others(labels[:, k], scores[:, k], patients)
        found.append(
            Performance(
                each.positives, each.negatives, each.patients, each.too_few, replicates,
                _number(thresholds[k]), **numbers,
            )
        )  # fmt: skip
    return found


def _others(labels: FloatArray, scores: FloatArray, patients: npt.NDArray[Any]) -> dict[str, float | None]:
    known = ~np.isnan(labels)
    truth, chance = labels[known] == 1.0, scores[known]
    delong = areas(truth, chance, patients[known]).interval()
    line = calibration(truth, chance)
    return {
        "delong_low": _number(delong.low),
        "delong_high": _number(delong.high),
        "youden_threshold": _number(youden_threshold(truth, chance)),
        "brier": _number(brier_score(truth, chance)),
        "calibration_slope": _number(line.slope),
        "calibration_intercept": _number(line.intercept),
    }


def paired(labels: FloatArray, first: FloatArray, second: FloatArray, patients: npt.NDArray[Any]) -> dict[str, Any]:
    """Two bundles' areas of one finding on the same films, as the columns of ``auc_comparison`` are called.

    Arrays are (films,); the difference is ``second`` less ``first``, with DeLong's interval and p-value.
    """
    known = ~np.isnan(labels)
    each = count(labels, patients)
    row: dict[str, Any] = {
        "positives": each.positives,
        "negatives": each.negatives,
        "patients": each.patients,
        "too_few": each.too_few,
        **dict.fromkeys(("auroc", "candidate_auroc", "difference", "difference_low", "difference_high", "p_value")),
    }
    if each.too_few:
        return row
    both = areas(labels[known] == 1.0, np.stack([first[known], second[known]], axis=1), patients[known])
    gain = both.difference(1, 0)
    return row | {
        "auroc": _number(float(both.values[0])),
        "candidate_auroc": _number(float(both.values[1])),
        "difference": _number(gain.value),
        "difference_low": _number(gain.low),
        "difference_high": _number(gain.high),
        "p_value": _number(gain.p_value),
    }


def mean_dice(dice: FloatArray, patients: npt.NDArray[Any], *, replicates: int = REPLICATES) -> list[dict[str, Any]]:
    """Mean Dice coefficient of each region, as the columns of ``dice_tracking`` are called.

    ``dice`` is (films, regions), NaN where neither the result nor the reader has the region.
    """
    intervals = means(dice, clusters=patients, replicates=replicates).intervals()
    rows = []
    for region, interval in enumerate(intervals):
        known = ~np.isnan(dice[:, region])
        several = len(np.unique(patients[known]))
        too_few = several < LEAST_PATIENTS
        rows.append(
            {
                "films": int(known.sum()),
                "patients": several,
                "too_few": too_few,
                "replicates": replicates,
                **({f"dice{end}": None for end in ("", "_low", "_high")} if too_few else _columns("dice", interval)),
            }
        )
    return rows


def _columns(name: str, interval: Interval) -> dict[str, float | None]:
    return {
        name: _number(interval.value),
        f"{name}_low": _number(interval.low),
        f"{name}_high": _number(interval.high),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
