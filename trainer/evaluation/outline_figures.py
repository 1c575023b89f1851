"""Outlines of truth and prediction (Novikov et al., Figure 7), and maps of probability (Wang et al.)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schema.regions import Region
from trainer.evaluation.drawing import canvas, grey, save
from trainer.evaluation.segmentation import FilmTruth, SegmentationScores, region_masks
from trainer.evaluation.subjects import Evaluation, predict
from trainer.evaluation.tables import number
from worker.metrics import surface

OUTLINES = "outlines.png"
PROBABILITIES = "probabilities.png"

#: sRGB of the truth's outline, of what was found, and of where both run.
TRUTH, FOUND, BOTH = (0, 200, 0), (230, 0, 0), (255, 230, 0)
_PER_ROW = 3


def draw_outlines(
    evaluation: Evaluation, scores: SegmentationScores, chosen: Sequence[tuple[str, int]], path: Path
) -> str:
    """Figure 7: the ``chosen`` films with the outlines of the truth (green), the prediction (red) and both (yellow).

    A white box has the Jaccard of each region. ``chosen`` are titles and places among the measured films; background
    and regions that are not scored are not drawn.
    """
    films, regions = evaluation.films, scores.regions
    rows = [int(scores.rows[place]) for _, place in chosen]
    shown = [place for place, region in enumerate(regions) if region.name != Region.BACKGROUND and scores.scored[place]]
    height, width = scores.grid
    lines = -(-len(chosen) // _PER_ROW)
    figure = canvas(4.2 * min(_PER_ROW, len(chosen)), 4.2 * lines * height / width + 0.3)
    axes = figure.subplots(lines, min(_PER_ROW, len(chosen)), squeeze=False).ravel()
    predicted = predict(evaluation, rows, "drawing outlines")
    for axis, (what, place), row, film in zip(axes, chosen, rows, predicted, strict=False):
        masks = region_masks(film, FilmTruth.of(films, row), regions, scores.threshold)
        pairs = [pair for number_of, pair in enumerate(masks) if pair and number_of in shown]
        axis.imshow(outlined(grey(films, row), pairs))
        box = [f"{regions[each].title}: {number(float(scores.overlaps.jaccard[place, each]), 2)}" for each in shown]
        axis.text(
            0.02,
            0.98,
            "\n".join(box),
            transform=axis.transAxes,
            va="top",
            fontsize=7,
            bbox={"facecolor": "white", "pad": 2},
        )
        axis.set_title(what, fontsize=10)
    for axis in axes:
        axis.axis("off")
    return save(figure, path)


def outlined(
    picture: npt.NDArray[np.uint8], pairs: Sequence[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]
) -> npt.NDArray[np.uint8]:
    """A grey picture (H, W) in colour with the outlines of true and found masks of each region on it."""
    drawn = np.repeat(picture[..., None], 3, axis=2)
    true = np.zeros(picture.shape, np.bool_)
    found = np.zeros(picture.shape, np.bool_)
    for truth, prediction in pairs:
        true |= surface(truth)
        found |= surface(prediction)
    for where, colour in ((true & ~found, TRUTH), (found & ~true, FOUND), (true & found, BOTH)):
        drawn[where] = colour
    return drawn


def draw_probabilities(evaluation: Evaluation, scores: SegmentationScores, place: int, path: Path) -> str:
    """The probability of each region on one film, a panel for each; bright is probable.

    ``place`` is that of the film among the measured ones.
    """
    row = int(scores.rows[place])
    (film,) = predict(evaluation, [row], "drawing probabilities")
    shown = [place for place, region in enumerate(scores.regions) if region.name != Region.BACKGROUND]
    figure = canvas(2.6 * (1 + len(shown)), 3.0)
    first, *others = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    first.imshow(grey(evaluation.films, row), cmap="gray", vmin=0, vmax=255)
    first.set_title("film", fontsize=9)
    for axis, each in zip(others, shown, strict=True):
        picture = axis.imshow(film.output.probabilities[each], cmap="inferno", vmin=0, vmax=1)
        axis.set_title(scores.regions[each].title, fontsize=9)
    for axis in (first, *others):
        axis.set(xticks=[], yticks=[])
    figure.colorbar(picture, ax=others, shrink=0.7)
    return save(figure, path)
