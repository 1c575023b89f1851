"""What a search found: its trials in words, numbers and a picture, and the best settings as a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from trainer.evaluation.drawing import PALETTE, canvas, save
from trainer.evaluation.tables import NOTHING, RESEARCH_USE, markdown, number, write_csv, write_json
from trainer.recipe import Recipe, SearchTable
from trainer.training.recipe_file import write_recipe

BEST = "best.toml"

#: How the figures that a search may maximise are called.
OBJECTIVES: Mapping[str, str] = {
    "foreground_jaccard": "mean Jaccard without background",
    "foreground_dice": "mean Dice without background",
    "mean_jaccard": "mean Jaccard",
    "mean_dice": "mean Dice",
    "mean_auroc": "mean AUROC",
}


@dataclass(frozen=True)
class Trial:
    """One combination of settings.

    Attributes
    ----------
    number
        From 1, in the study's order.
    settings
        Dotted key → what was chosen.
    value
        The mean over the folds, None where the trial failed.
    folds
        The objective of each fold.
    failure
        Why there is no value; ``""`` where there is.
    folder
        Name of the folder with a run for each fold.
    """

    number: int
    settings: Mapping[str, Any]
    value: float | None
    folds: tuple[float, ...]
    failure: str
    folder: str


@dataclass(frozen=True)
class SearchResult:
    """A search so far; ``best_recipe`` is the recipe with the best settings, None before a trial is done."""

    recipe: Recipe
    table: SearchTable
    folder: Path
    data: str
    changes: Mapping[str, Any]
    trials: tuple[Trial, ...]
    best_recipe: Recipe | None = None

    @property
    def best(self) -> Trial | None:
        """The trial with the highest value, the first of equals."""
        done = [trial for trial in self.trials if trial.value is not None]
        return max(done, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)

    def with_recipe(self, recipe: Recipe) -> SearchResult:
        """The same with the best settings as a recipe."""
        return replace(self, best_recipe=recipe)

    def as_table(self) -> str:
        """The trials in Markdown, the best first and the failed last."""
        keys = self._keys
        order = sorted(self.trials, key=lambda trial: (trial.value is None, -(trial.value or 0.0), trial.number))
        rows = [
            [
                trial.number,
                *(_shown(trial.settings.get(key)) for key in keys),
                NOTHING if trial.value is None else number(trial.value),
                " ".join(number(fold) for fold in trial.folds) or "failed",
            ]
            for trial in order
        ]
        return markdown(["trial", *(f"`{key}`" for key in keys), OBJECTIVES[self.table.objective], "folds"], rows)

    def write(self) -> None:
        """Write ``search.md``, ``search.csv``, ``search.json``, ``search.png`` and ``best.toml``."""
        keys = self._keys
        headers = ["trial", *keys, self.table.objective]
        headers += [f"fold_{fold + 1}" for fold in range(self.table.folds)] + ["folder", "failure"]
        empty = [None] * self.table.folds
        write_csv(
            self.folder / "search.csv",
            headers,
            [
                [
                    trial.number,
                    *(trial.settings.get(key) for key in keys),
                    trial.value,
                    *(trial.folds or empty),
                    trial.folder,
                    trial.failure,
                ]
                for trial in self.trials
            ],
        )
        write_json(self.folder / "search.json", self._summary())
        changed = ", ".join(f"`{key}` = `{value}`" for key, value in self.changes.items())
        blocks = [
            f"# Search: {self.recipe.description}",
            f"**{RESEARCH_USE}**",
            f"Recipe `{self.recipe.name}`, data `{self.data}`. Each trial is trained in {self.table.folds} folds; what "
            f"counts is the mean over the folds of the films left out: {OBJECTIVES[self.table.objective]}.",
            *([f"Other than in the recipe, for all trials: {changed}."] if changed else []),
            self.as_table(),
            *(f"Trial {trial.number} failed: {trial.failure}" for trial in self.trials if trial.failure),
        ]
        if self.best is not None and self.best_recipe is not None:
            partial = self.folder / f"{BEST}.part"
            write_recipe(self.best_recipe, partial)
            partial.replace(self.folder / BEST)
            blocks.append(f"![Worth of each trial by setting]({self._draw(self.folder / 'search.png')})")
            blocks.append(
                f"The best settings are in `{BEST}`: train them with `carina train`, on films the search has not "
                "seen where you have any. The figure of the best of many trials flatters."
            )
        (self.folder / "search.md").write_text("\n\n".join(blocks) + "\n", "utf-8")

    @property
    def _keys(self) -> list[str]:
        return [*self.table.choices, *self.table.ranges]

    def _summary(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.name,
            "data": self.data,
            "changes": self.changes,
            "objective": self.table.objective,
            "folds": self.table.folds,
            "trials": [vars(trial) for trial in self.trials],
            "best": vars(self.best) if self.best else None,
            "research_use": RESEARCH_USE,
        }

    def _draw(self, path: Path) -> str:
        """Worth by each number searched, coloured by the first choice, and the best so far by trial."""
        done = [trial for trial in self.trials if trial.value is not None]
        colouring = next(iter(self.table.choices), "")
        figure = canvas(4.6 * (1 + len(self.table.ranges)), 3.6)
        *panels, last = figure.subplots(1, 1 + len(self.table.ranges), squeeze=False)[0]
        for axis, (key, span) in zip(panels, self.table.ranges.items(), strict=True):
            for colour, (name, some) in zip(PALETTE, _by(done, colouring).items(), strict=False):
                axis.plot(
                    [trial.settings[key] for trial in some],
                    [trial.value for trial in some],
                    "o",
                    color=colour,
                    label=name,
                )
            axis.set(xlabel=key, ylabel=OBJECTIVES[self.table.objective], xscale="log" if span.log else "linear")
            axis.grid(alpha=0.3)
            if colouring:
                axis.legend(fontsize=8)
        _history(last, done)
        return save(figure, path)


def _history(axis: Axes, done: list[Trial]) -> None:
    numbers = [trial.number for trial in done]
    values = np.array([trial.value for trial in done], np.float64)
    axis.plot(numbers, values, "o", color="#999999", label="trial")
    axis.step(numbers, np.maximum.accumulate(values), where="post", color=PALETTE[0], label="best so far")
    axis.set(xlabel="trial")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _by(trials: list[Trial], key: str) -> dict[str, list[Trial]]:
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(str(trial.settings.get(key, "")), []).append(trial)
    return groups


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
