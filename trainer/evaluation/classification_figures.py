"""Figures 4 and 5 of the classifier paper, and reliability curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from schema.findings import Finding, title
from trainer.evaluation.classification import Calibration, ClassificationScores, Performance
from trainer.evaluation.drawing import PALETTE, canvas, grey, save
from trainer.evaluation.subjects import Evaluation, predict
from trainer.evaluation.tables import with_interval
from worker.metrics import operation, roc_curve
from worker.results.overlay import draw_heatmap

ROC = "roc.png"
CALIBRATION = "calibration.png"
CAM = "cam.png"

#: Findings with a heat map, besides one film without findings: Figure 5 A-C and D.
_SHOWN_FINDINGS = 3


def draw_roc(scores: ClassificationScores, result: Performance, path: Path) -> str:
    """Figure 4: the ROC curve of every finding, with its area and the operating point."""
    figure, axes = _panels(len(scores.known), 2.7)
    intervals = result.auroc.intervals()
    for axis, k in zip(axes, scores.known, strict=True):
        known = ~np.isnan(scores.labels[:, k])
        truth, values = scores.labels[known, k] == 1.0, scores.scores[known, k]
        curve = roc_curve(truth, values)
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.7, linestyle=":")
        axis.plot(curve.false_positive_rate, curve.true_positive_rate, color=_colour(k), linewidth=1.6)
        if not np.isnan(result.thresholds[k]):
            point = operation(truth, values, result.thresholds[k])
            axis.plot(1.0 - point.specificity, point.sensitivity, "o", color="black", markersize=4)
        axis.set_title(f"{title(scores.findings[k])}\nAUROC {with_interval(intervals[k])}", fontsize=8)
        _square(axis, "1 - specificity", "sensitivity")
    return save(figure, path)


def draw_calibration(scores: ClassificationScores, curves: Mapping[int, Calibration], path: Path) -> str:
    """Reliability curves: the share of positives against the mean probability of each bin.

    Points grow with the films in the bin.
    """
    figure, axes = _panels(len(curves), 2.7)
    for axis, (k, curve) in zip(axes, curves.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=0.7, linestyle=":")
        axis.plot(curve.probability, curve.observed, color=_colour(k), linewidth=1.0)
        sizes = 8 + 90 * curve.films / max(1, curve.films.max())
        axis.scatter(curve.probability, curve.observed, s=sizes, color=_colour(k), zorder=3)
        axis.set_title(f"{title(scores.findings[k])}\ncalibration error {curve.error:.3f}", fontsize=8)
        _square(axis, "mean probability", "share of positives")
    return save(figure, path)


def films_to_show(scores: ClassificationScores, areas: Sequence[float]) -> list[tuple[int, int]]:
    """(row, finding) of a few films: the surest true positives, and one film without findings.

    The three findings of greatest area each give the positive film with the highest probability that
    was not taken yet.
    """
    order = sorted((k for k in scores.known if not np.isnan(areas[k])), key=lambda k: -areas[k])
    diseases = [k for k in order if scores.findings[k] != Finding.NO_FINDING][:_SHOWN_FINDINGS]
    healthy = [k for k in order if scores.findings[k] == Finding.NO_FINDING]
    chosen: list[tuple[int, int]] = []
    for k in [*diseases, *healthy]:
        taken = {row for row, _ in chosen}
        free = [row for row in np.flatnonzero(scores.labels[:, k] == 1.0) if int(row) not in taken]
        if free:
            chosen.append((int(max(free, key=lambda row: scores.scores[row, k])), k))
    return chosen


def draw_heatmaps(
    evaluation: Evaluation, scores: ClassificationScores, chosen: Sequence[tuple[int, int]], path: Path
) -> str:
    """Figure 5: films above, the same films with their class activation map below, scaled as at night."""
    rows = [row for row, _ in chosen]
    figure = canvas(2.6 * len(chosen), 5.8)
    axes = figure.subplots(2, len(chosen), squeeze=False)
    predicted = predict(evaluation, rows, "drawing films")
    for column, ((row, k), film) in enumerate(zip(chosen, predicted, strict=True)):
        assert film.heatmap is not None
        picture = grey(evaluation.films, row)
        axes[0, column].imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes[1, column].imshow(draw_heatmap(picture, film.heatmap.maps[k]))
        axes[0, column].set_title(f"{chr(ord('A') + column)}: {title(scores.findings[k])}", fontsize=9)
        axes[1, column].set_xlabel(f"probability {scores.scores[row, k]:.2f}", fontsize=9)
        for axis in axes[:, column]:
            axis.set(xticks=[], yticks=[])
    return save(figure, path)


def _panels(count: int, side: float) -> tuple[Figure, list[Axes]]:
    columns = min(5, max(1, count))
    rows = -(-max(1, count) // columns)
    figure = canvas(side * columns, (side + 0.3) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, list(axes[:count])


def _square(axis: Axes, across: str, up: str) -> None:
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(up, fontsize=8)
    axis.tick_params(labelsize=7)


def _colour(k: int) -> str:
    return PALETTE[k % len(PALETTE)]
