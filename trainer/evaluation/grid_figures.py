"""Figures that lay the models of a grid beside each other (Novikov et al., Figures 5 and 6; Maga, Figure 6)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from schema.regions import REGION_BY_NAME
from trainer.evaluation.drawing import PALETTE, canvas, save

BINS = "jaccard-bins.png"
CURVES = "curves.png"
TRAINING_CURVES = "training-curves.png"

FloatArray = npt.NDArray[np.float64]
#: One training's ``metrics.csv``: column → a value for each epoch.
History = Mapping[str, FloatArray]

#: The ranges of Figure 6: all that is poor is one of them.
EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_PREFIX, _TRAINING = "dice_", "train_dice_"
_COLUMNS = 3


def read_history(metrics: Path) -> dict[str, FloatArray]:
    """The columns of a run's ``metrics.csv``."""
    with metrics.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {name: np.array([float(row[name]) for row in rows]) for name in (rows[0] if rows else {})}


def shares(jaccards: Sequence[float]) -> FloatArray:
    """Per cent of the films in each range between :data:`EDGES`, the upper edge of the last included.

    Films without a Jaccard do not count; NaN everywhere without films.
    """
    values = np.asarray(jaccards, np.float64)
    counts, _ = np.histogram(values[~np.isnan(values)], bins=EDGES)
    total = counts.sum()
    return 100 * counts / total if total else np.full(len(counts), np.nan)


def draw_bins(cells: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> str:
    """Novikov's Figure 6: the share of the films in each range of Jaccard, a bar for each cell, a panel a region.

    ``cells`` maps a label to region → Jaccards of the films.
    """
    regions = list(next(iter(cells.values())))
    columns = min(_COLUMNS, len(regions))
    rows = -(-len(regions) // columns)
    figure = canvas(4.6 * columns, 3.2 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    places = np.arange(len(EDGES) - 1)
    width = 0.8 / len(cells)
    for axis, region in zip(panels, regions, strict=False):
        for number, (label, by_region) in enumerate(cells.items()):
            axis.bar(
                places + (number + 0.5) * width - 0.4,
                shares(by_region[region]),
                width,
                color=PALETTE[number % len(PALETTE)],
                label=label,
            )
        axis.set_xticks(places, [f"{low:g}-{high:g}" for low, high in pairwise(EDGES)], fontsize=8)
        axis.set(title=_title(region), xlabel="Jaccard", ylabel="% of the films", ylim=(0, 100))
        axis.grid(axis="y", alpha=0.3)
    _hide(panels[len(regions) :])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return save(figure, path)


def draw_curves(cells: Mapping[str, Sequence[History]], path: Path) -> str:
    """Novikov's Figure 5: validation Dice by epoch, a line for each cell, a row of panels for each region.

    The left panel has all epochs, the right one the last fifth of them. Several trainings of a cell are shown by their
    mean (bold) and standard deviation (shaded). The paper draws Jaccards; decided: Dice, which a training keeps anyway.
    """
    regions = regions_in(cells)
    figure = canvas(10.0, 2.8 * len(regions) + 0.8)
    panels = figure.subplots(len(regions), 2, squeeze=False)
    for line, region in zip(panels, regions, strict=True):
        last = 0
        column = f"{_PREFIX}{region}"
        for number, (label, histories) in enumerate(cells.items()):
            if not all(column in history for history in histories):
                continue
            mean, spread = _over(histories, column)
            last = max(last, len(mean))
            for axis in line:
                _band(axis, mean, spread, PALETTE[number % len(PALETTE)], label)
        line[0].set(title=f"{_title(region)}, all epochs", ylabel="validation Dice", ylim=(-0.02, 1.02))
        line[1].set(title="the last fifth", xlim=(max(1.0, 0.8 * last), max(last, 2)))
        _fit_height(line[1], cells, column, max(1, round(0.8 * last)))
    for axis in panels[-1]:
        axis.set_xlabel("epoch")
    shown: dict[str, Artist] = {}
    for line in panels:
        handles, labels = line[0].get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return save(figure, path)


def draw_training_curves(cells: Mapping[str, Sequence[History]], path: Path) -> str:
    """Maga's Figure 6: Dice on training and validation films by epoch, a panel for each cell.

    The mean over the regions but background; several trainings by their mean and standard deviation. Needs
    ``training.training_metrics`` of the recipe.
    """
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    figure = canvas(4.2 * columns, 2.8 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis, (label, histories) in zip(panels, cells.items(), strict=False):
        for prefix, colour, words in ((_TRAINING, "tab:blue", "training"), (_PREFIX, "tab:orange", "validation")):
            merged = [_mean_of(history, prefix) for history in histories]
            _band(axis, *_over(merged, ""), colour, words)
        axis.set(title=label, ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    _hide(panels[len(cells) :])
    panels[0].set(ylabel="Dice")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return save(figure, path)


def has_training_curves(cells: Mapping[str, Sequence[History]]) -> bool:
    """Whether every training measured its own films too."""
    return bool(cells) and all(
        any(name.startswith(_TRAINING) for name in history) for histories in cells.values() for history in histories
    )


def regions_in(cells: Mapping[str, Sequence[History]]) -> list[str]:
    """The regions that any training measured, background left out."""
    columns = [name for histories in cells.values() for history in histories for name in history]
    named = [name.removeprefix(_PREFIX) for name in columns if name.startswith(_PREFIX)]
    return [name for name in dict.fromkeys(named) if name != "background"]


def _mean_of(history: History, prefix: str) -> dict[str, FloatArray]:
    columns = [name for name in history if name.startswith(prefix) and name != f"{prefix}background"]
    values = np.stack([history[name] for name in columns])
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    return {"": np.divide(total, count, out=np.full(values.shape[1], np.nan), where=count > 0)}


def _over(histories: Sequence[History], column: str) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation over the trainings, as far as all of them went."""
    epochs = min(len(history[column]) for history in histories)
    values = np.stack([history[column][:epochs] for history in histories])
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(epochs)
    return values.mean(axis=0), spread


def _band(axis: Axes, mean: FloatArray, spread: FloatArray, colour: str, label: str) -> None:
    epochs = np.arange(1, len(mean) + 1)
    axis.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    axis.plot(epochs, mean, color=colour, linewidth=1.8, label=label, marker="." if len(mean) == 1 else "")
    axis.grid(alpha=0.3)


def _fit_height(axis: Axes, cells: Mapping[str, Sequence[History]], column: str, begin: int) -> None:
    """Show what the last epochs reach, and nothing below."""
    every = [history for histories in cells.values() for history in histories if column in history]
    ends = [history[column][begin - 1 :] for history in every]
    values = np.concatenate(ends) if ends else np.array([])
    values = values[~np.isnan(values)]
    if values.size:
        axis.set_ylim(max(0.0, float(values.min()) - 0.02), min(1.02, float(values.max()) + 0.02))


def _title(region: str) -> str:
    return REGION_BY_NAME[region].title if region in REGION_BY_NAME else region.replace("_", " ")


def _hide(panels: npt.NDArray[np.object_]) -> None:
    for axis in panels:
        axis.set_visible(False)
