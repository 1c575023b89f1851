"""How sure are areas under ROC curves, and is one larger than another on the same films?

The covariance of areas by DeLong, DeLong and Clarke-Pearson (Biometrics 1988, 44:837). With ``clusters``, several
films of a patient count as one witness (Obuchowski, Biometrics 1997, 53:567); where every patient has one film the
two are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from worker.bootstrap import Interval

FloatArray = npt.NDArray[np.float64]

_NORMAL = NormalDist()
_Z95 = _NORMAL.inv_cdf(0.975)


@dataclass(frozen=True)
class Difference:
    """By how much one area exceeds another, with its 95 % interval and the two-sided p-value of no difference.

    NaN where it cannot be computed.
    """

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Areas:
    """Areas of K scores on the same films.

    Attributes
    ----------
    values
        (K,), 0-1; ties count one half. NaN unless both classes are there.
    covariance
        (K, K); NaN with fewer than two patients of a class.
    """

    values: FloatArray
    covariance: FloatArray

    def interval(self, score: int = 0) -> Interval:
        """The area of a score with its symmetric 95 % interval, cut off at 0 and 1."""
        value, spread = float(self.values[score]), _Z95 * self.standard_error(score)
        if math.isnan(spread):
            return Interval(value, math.nan, math.nan, 0)
        return Interval(value, max(0.0, value - spread), min(1.0, value + spread), 0)

    def standard_error(self, score: int = 0) -> float:
        """Standard error of the area of a score."""
        return math.sqrt(max(0.0, float(self.covariance[score, score]))) if self._known(score) else math.nan

    def difference(self, first: int, second: int) -> Difference:
        """By how much the area of ``first`` exceeds that of ``second``."""
        value = float(self.values[first] - self.values[second])
        if not (self._known(first) and self._known(second)):
            return Difference(value, math.nan, math.nan, math.nan)
        variance = (
            self.covariance[first, first] + self.covariance[second, second] - 2.0 * self.covariance[first, second]
        )
        error = math.sqrt(max(0.0, float(variance)))
        # Scores that order the films alike differ by nothing at all.
        if error < 1e-12:
            return Difference(value, value, value, 1.0 if abs(value) < 1e-12 else 0.0)
        p_value = 2.0 * _NORMAL.cdf(-abs(value) / error)
        return Difference(value, value - _Z95 * error, value + _Z95 * error, p_value)

    def _known(self, score: int) -> bool:
        return not math.isnan(float(self.covariance[score, score]))


def areas(labels: npt.ArrayLike, scores: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> Areas:
    """The areas of K scores and how they vary together.

    Parameters
    ----------
    labels
        (films,): 1 or True positive, 0 or False negative.
    scores
        (films,) or (films, K), finite, higher for positive.
    clusters
        (films,): whose film each is; None: every film stands for itself.

    Raises
    ------
    ValueError
        Shapes differ or a score is not finite.
    """
    positive = np.asarray(labels).astype(bool)
    values = np.asarray(scores, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if positive.ndim != 1 or values.ndim != 2 or len(positive) != len(values):
        raise ValueError(f"labels of shape {positive.shape} and scores of shape {values.shape} do not pair")
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    kinds = values.shape[1]
    unknown = np.full((kinds, kinds), np.nan)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return Areas(np.full(kinds, np.nan), unknown)
    patients = np.arange(len(positive)) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    above = np.stack([_share_below(values[positive, k], values[~positive, k]) for k in range(kinds)], axis=1)
    under = np.stack([1.0 - _share_below(values[~positive, k], values[positive, k]) for k in range(kinds)], axis=1)
    means = above.mean(axis=0)
    found = _by_patient(above - means, patients[positive], patients)
    cleared = _by_patient(under - means, patients[~positive], patients)
    with_positive, with_negative = (len(np.unique(patients[which])) for which in (positive, ~positive))
    every = len(np.unique(patients))
    if min(with_positive, with_negative) < 2:
        return Areas(means, unknown)
    covariance = (
        (found.T @ found) * (with_positive / (with_positive - 1)) / positives**2
        + (cleared.T @ cleared) * (with_negative / (with_negative - 1)) / negatives**2
        + (found.T @ cleared + cleared.T @ found) * (every / (every - 1)) / (positives * negatives)
    )
    return Areas(means, covariance)


def _share_below(scores: FloatArray, others: FloatArray) -> FloatArray:
    """Share of ``others`` that lie below each score, ties one half."""
    ordered = np.sort(others)
    both = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return np.asarray(both / (2.0 * len(others)), np.float64)


def _by_patient(components: FloatArray, whose: npt.NDArray[np.intp], patients: npt.NDArray[np.intp]) -> FloatArray:
    sums = np.zeros((int(patients.max()) + 1, components.shape[1]))
    np.add.at(sums, whose, components)
    return sums
