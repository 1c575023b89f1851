"""How good is a result: overlap, surface distance, ranking and agreement.

One implementation for the trainer's evaluation and the monitor. A number that cannot be
computed (an empty region, a single class) is NaN, never 0 or 1: average with ``nanmean``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from schema.regions import RegionDefinition

LabelMap = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Vector = npt.NDArray[np.float64]

# Overlap


@dataclass(frozen=True)
class Overlap:
    """Dice and Jaccard coefficients of one region (0-1); NaN when it is in neither map."""

    dice: float
    jaccard: float


def confusion_matrix(truth: npt.NDArray[np.integer], prediction: npt.NDArray[np.integer], classes: int) -> Vector:
    """Counts of shape (classes, classes), rows truth, columns prediction.

    Works on label maps, class lists and stacks of either; values are 0 to ``classes`` - 1.

    Raises
    ------
    ValueError
        The shapes differ or a value is out of range.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}")
    pairs = truth.astype(np.int64).ravel() * classes + prediction.astype(np.int64).ravel()
    if pairs.size and (min(truth.min(), prediction.min()) < 0 or max(truth.max(), prediction.max()) >= classes):
        raise ValueError(f"values must lie between 0 and {classes - 1}")
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.float64)


def region_overlaps(truth: LabelMap, prediction: LabelMap, regions: Sequence[RegionDefinition]) -> dict[str, Overlap]:
    """Overlap of every region by name, background included, on label maps of one shape."""
    counts = confusion_matrix(truth, prediction, max(region.value for region in regions) + 1)
    both = counts.diagonal()
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    overlaps = {}
    for region in regions:
        common, union = both[region.value], either[region.value]
        overlaps[region.name] = Overlap(_ratio(2.0 * common, union + common), _ratio(common, union))
    return overlaps


def overlap(truth: Mask, prediction: Mask) -> Overlap:
    """Overlap of two masks of one shape."""
    common = float(np.count_nonzero(truth & prediction))
    union = float(np.count_nonzero(truth | prediction))
    return Overlap(_ratio(2.0 * common, union + common), _ratio(common, union))


def pixel_accuracy(truth: LabelMap, prediction: LabelMap) -> float:
    """Proportion of pixels with the right label (Holste et al., section 2.3)."""
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}")
    return float(np.mean(truth == prediction))


# Distances


@dataclass(frozen=True)
class SurfaceDistance:
    """Distances between two outlines, in the unit of the spacing; NaN when a mask is empty.

    ``mean`` is the mean of the two directed mean distances (MedPy's assd), ``percentile95``
    the 95th percentile over both directions together (hd95), ``maximum`` the Hausdorff distance.
    """

    mean: float
    percentile95: float
    maximum: float


def surface_distance(truth: Mask, prediction: Mask, spacing: tuple[float, float] = (1.0, 1.0)) -> SurfaceDistance:
    """Symmetric surface distances of two masks of shape (height, width).

    ``spacing`` is (row, column), for instance millimetres of a grid pixel; 1 gives pixels.
    The surface is every mask pixel with a 4-neighbour outside the mask or the picture.
    """
    surfaces = surface(truth), surface(prediction)
    if not surfaces[0].any() or not surfaces[1].any():
        return SurfaceDistance(np.nan, np.nan, np.nan)
    there = _distances(surfaces[0], surfaces[1], spacing)
    back = _distances(surfaces[1], surfaces[0], spacing)
    both = np.concatenate([there, back])
    return SurfaceDistance(
        mean=float((there.mean() + back.mean()) / 2.0),
        percentile95=float(np.percentile(both, 95)),
        maximum=float(both.max()),
    )


def surface(mask: Mask) -> Mask:
    """The mask's outermost pixels, 4-connected erosion with the picture's rim as outside."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inner = cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=(0.0,))
    return mask & (inner == 0)


def centroid_distance(truth: Mask, prediction: Mask, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """Distance between two masks' centroids, as for the carina; NaN when a mask is empty."""
    if not truth.any() or not prediction.any():
        return float("nan")
    difference = np.argwhere(truth).mean(axis=0) - np.argwhere(prediction).mean(axis=0)
    return float(np.hypot(difference[0] * spacing[0], difference[1] * spacing[1]))


def _distances(source: Mask, target: Mask, spacing: tuple[float, float]) -> Vector:
    """From each pixel of ``source`` to the nearest of ``target``."""
    if spacing[0] == spacing[1]:
        away = cv2.distanceTransform((~target).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return away[source].astype(np.float64) * spacing[0]
    # The distance transform knows square pixels only; outlines are few enough to compare all.
    points = [(np.argwhere(surface_) * spacing).astype(np.float32) for surface_ in (source, target)]
    distances, _ = cv2.batchDistance(points[0], points[1], cv2.CV_32F, normType=cv2.NORM_L2, K=1)
    return distances[:, 0].astype(np.float64)


# Ranking


def auroc(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties one half.

    Both arrays have shape (films,). NaN unless both classes are there.
    """
    positive, negative = _split(labels, scores)
    if not positive.size or not negative.size:
        return float("nan")
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).mean() / (2.0 * negative.size))


@dataclass(frozen=True)
class RocCurve:
    """Points of the curve, thresholds falling; a film is positive from the threshold on.

    The first point is (0, 0) at threshold infinity, the last (1, 1) at the lowest score.
    """

    false_positive_rate: Vector
    true_positive_rate: Vector
    thresholds: Vector


def roc_curve(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> RocCurve:
    """The ROC curve with one point per distinct score; rates of an absent class are NaN."""
    positive, negative = _split(labels, scores)
    distinct = np.unique(np.concatenate([positive, negative]))
    thresholds = np.concatenate([distinct, [np.inf]])[::-1]
    rates = []
    for group in (negative, positive):
        above = group.size - np.searchsorted(np.sort(group), thresholds, side="left")
        rates.append(above / group.size if group.size else np.full(thresholds.shape, np.nan))
    return RocCurve(rates[0], rates[1], thresholds)


def youden_threshold(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """The score with the greatest sensitivity + specificity - 1; of equal ones the highest.

    A film counts as positive from it on. NaN unless both classes are there.
    """
    curve = roc_curve(labels, scores)
    gain = (curve.true_positive_rate - curve.false_positive_rate)[1:]
    if not gain.size or np.isnan(gain).any():
        return float("nan")
    # Rates that are equal as fractions may differ in their last bit: that must not decide.
    return float(curve.thresholds[1:][np.argmax(np.round(gain, 12))])


def average_precision(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float:
    """Precision at each distinct score, weighted by the recall that it adds; NaN without a positive."""
    positive, negative = _split(labels, scores)
    if not positive.size:
        return float("nan")
    falling = np.unique(positive)[::-1]
    found = positive.size - np.searchsorted(np.sort(positive), falling, side="left")
    alarms = negative.size - np.searchsorted(np.sort(negative), falling, side="left")
    return float((np.diff(found, prepend=0) / positive.size * found / (found + alarms)).sum())


# Probabilities


def brier_score(labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating]) -> float:
    """Mean squared distance of the probabilities (0-1) from what was true, 0 or 1 (Brier 1950); NaN without films."""
    positive, negative = _split(labels, probabilities)
    return _ratio(float(((1.0 - positive) ** 2).sum() + (negative**2).sum()), positive.size + negative.size)


@dataclass(frozen=True)
class Calibration:
    """Logistic regression of the truth on the probabilities' logits (Cox 1958): 1 and 0 where they are right.

    A slope below 1 says that probabilities are too extreme, above 1 too timid. An intercept below 0 says that
    they are too high on the whole. NaN where there is no such line: one class alone, all probabilities
    alike, or a threshold that parts the classes without error.
    """

    slope: float
    intercept: float


def calibration(labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating]) -> Calibration:
    """How far probabilities (0-1) can be taken at their word; 0 and 1 count as a millionth away from it."""
    positive, negative = _split(labels, probabilities)
    none = Calibration(float("nan"), float("nan"))
    if not positive.size or not negative.size or _part(positive, negative):
        return none
    truth = np.repeat([1.0, 0.0], [positive.size, negative.size])
    chance = np.clip(np.concatenate([positive, negative]), 1e-6, 1.0 - 1e-6)
    design = np.stack([np.log(chance / (1.0 - chance)), np.ones_like(chance)], axis=1)
    weights = np.array([0.0, np.log(positive.size / negative.size)])
    for _ in range(100):
        fitted = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -700.0, 700.0)))
        curvature = (design * (fitted * (1.0 - fitted))[:, None]).T @ design
        try:
            step = np.linalg.solve(curvature, design.T @ (truth - fitted))
        except np.linalg.LinAlgError:
            return none
        # Newton's steps may leap over the top where the line is steep.
        weights += step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < 1e-9:
            return Calibration(float(weights[0]), float(weights[1]))
    return none


def _part(positive: Vector, negative: Vector) -> bool:
    """Whether some score parts the two, so that the steepest line is the best one."""
    return bool(positive.min() >= negative.max() or negative.min() >= positive.max())


# At a threshold


@dataclass(frozen=True)
class Operation:
    """Counts and rates at one threshold; rates are NaN where their denominator is 0."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def sensitivity(self) -> float:
        """Share of the positives that were found."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """Share of the negatives that were left alone."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def precision(self) -> float:
        """Share of those called positive that are."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision."""
        found = 2 * self.true_positives
        return _ratio(found, found + self.false_positives + self.false_negatives)


def operation(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], threshold: float) -> Operation:
    """What happens when a film is positive from ``threshold`` on."""
    positive, negative = _split(labels, scores)
    found, alarmed = int((positive >= threshold).sum()), int((negative >= threshold).sum())
    return Operation(found, alarmed, negative.size - alarmed, positive.size - found)


# Agreement


def agreement(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> float:
    """Share of films on which two readers chose the same class; NaN without films."""
    if first.shape != second.shape:
        raise ValueError(f"readers gave {first.size} and {second.size} answers")
    return _ratio(float(np.count_nonzero(first == second)), first.size)


def cohen_kappa(first: npt.NDArray[np.integer], second: npt.NDArray[np.integer]) -> float:
    """Agreement beyond chance of two readers (Cohen 1960), classes as integers from 0.

    1 is perfect, 0 chance. NaN without films, or when both always chose one same class.
    """
    if not first.size:
        return float("nan")
    counts = confusion_matrix(first, second, int(max(first.max(), second.max())) + 1)
    observed = counts.trace() / counts.sum()
    expected = float(counts.sum(axis=0) @ counts.sum(axis=1)) / counts.sum() ** 2
    return _ratio(observed - expected, 1.0 - expected)


def _split(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> tuple[Vector, Vector]:
    """Scores of the positives and of the negatives."""
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels of shape {labels.shape} and scores of shape {scores.shape} do not pair")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    truth = labels.astype(bool)
    return scores[truth].astype(np.float64), scores[~truth].astype(np.float64)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
