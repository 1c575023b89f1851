"""Figures 2 and 3 of Holste et al. for one model: films with their masks, and how Dice is spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.patches import Patch

from schema.regions import Region
from trainer.evaluation.drawing import canvas, grey, save
from trainer.evaluation.segmentation import SegmentationScores
from trainer.evaluation.subjects import Evaluation, predict
from worker.results.overlay import draw_regions

SPREAD = "dice.png"
COMPARISON = "comparison.png"


def draw_spread(scores: SegmentationScores, path: Path) -> str:
    """Figure 3: histogram of the films' mean Dice with its mean (red, dashed), and box plots by region.

    Only regions that are scored; a film without the region is left out of its box.
    """
    figure = canvas(8.5, 8.0)
    above, below = figure.subplots(2, 1)
    means = scores.mean_dice[~np.isnan(scores.mean_dice)]
    above.hist(means, bins=np.linspace(0, 1, 41), color="#5b8db8", edgecolor="white", linewidth=0.5)
    average = float(means.mean()) if means.size else float("nan")
    above.axvline(average, color="red", linestyle="--", label=f"mean {average:.3f}")
    above.set(xlabel="mean Dice of a film", ylabel="films", xlim=(min(0.5, *means) if means.size else 0, 1.0))
    above.legend(loc="upper left", frameon=False)
    shown = np.flatnonzero(scores.scored).tolist()
    columns = [scores.overlaps.dice[:, place] for place in shown]
    below.boxplot(
        [column[~np.isnan(column)] for column in columns],
        tick_labels=[scores.regions[place].title.replace(" ", "\n") for place in shown],
        medianprops={"color": "tab:orange", "linewidth": 1.8},
        flierprops={"marker": "o", "markersize": 3},
    )
    below.set(ylabel="Dice", ylim=(-0.03, 1.03))
    below.tick_params(axis="x", labelsize=8)
    below.grid(axis="y", alpha=0.3)
    return save(figure, path)


def ranked_films(scores: SegmentationScores) -> list[tuple[str, int]]:
    """The best, the median and the worst film by mean Dice, as places among the measured; none without films."""
    means = scores.mean_dice
    order = np.argsort(means)[: int((~np.isnan(means)).sum())]
    if not len(order):
        return []
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    return [(what, int(place)) for what, place in chosen.items()]


def draw_comparison(
    evaluation: Evaluation, scores: SegmentationScores, chosen: Sequence[tuple[str, int]], path: Path
) -> str:
    """Figure 2: film, truth and raw prediction of the ``chosen`` films, the mean Dice beneath."""
    films = evaluation.films
    assert films.labels is not None
    regions = evaluation.subject.manifest.region_definitions
    rows = [int(scores.rows[place]) for _, place in chosen]
    height, width = scores.grid
    figure = canvas(9.0, 3.0 * len(chosen) * height / width + 1.0)
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    predicted = predict(evaluation, rows, "drawing films")
    for line, (what, place), row, film in zip(axes, chosen, rows, predicted, strict=True):
        assert film.segmentation is not None
        picture = grey(films, row)
        line[0].imshow(picture, cmap="gray", vmin=0, vmax=255)
        line[1].imshow(draw_regions(picture, films.label_map(row), regions))
        line[2].imshow(draw_regions(picture, film.segmentation.raw, regions))
        line[0].set_ylabel(what, fontsize=11)
        line[2].set_xlabel(f"mean Dice {scores.mean_dice[place]:.3f}")
        for axis in line:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("film", "truth", "prediction"), strict=True):
        axis.set_title(title, fontsize=11)
    patches = [
        Patch(color=np.array(region.colour) / 255.0, label=region.title)
        for region in regions
        if region.name != Region.BACKGROUND
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return save(figure, path)
