"""A paper's table, row by row: one recipe, trained again with the changes of each cell, ours beside the paper's.

Every cell is a run of its own in a folder of the grid's; what is finished is not trained again, so that a grid
that was cut off, or one of whose cells failed, goes on when it is asked for again. Prepared films are shared.

=============  ==============================================================================
<cell>/        a run folder, with its evaluation in ``evaluation/test``
ensemble/      the evaluation of all cells' averaged probabilities, where the grid asks for it
cache/         prepared films and saved copies; may be deleted afterwards
grid.md        the table, ours beside the paper's; names no film but one that stopped a cell
grid.csv       the same numbers for spreadsheets
grid.json      the same numbers for programs, with each cell's settings
grid.png       the same as a picture
=============  ==============================================================================
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.records import Dataset
from trainer.errors import RecipeError, RunError
from trainer.evaluation.evaluate import evaluate_run, evaluate_runs
from trainer.grid_result import COLUMNS, ENSEMBLE, PART, GridResult, GridRow
from trainer.recipe import GridCell, GridTable, Recipe, load_recipe, nearest, recipe_names
from trainer.training.progress import TrainingProgress
from trainer.training.run_folder import Run, RunFolder
from trainer.training.train import train
from worker.bootstrap import REPLICATES
from worker.errors import CarinaError

_LOG = logging.getLogger(__name__)

#: Gives a row's evaluation summary and facts about its training.
_Work = Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]


def run_grid(
    reference: str | Path,
    dataset: Dataset,
    out: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: TrainingProgress | None = None,
    devices: int = 1,
    workers: int | None = None,
    replicates: int = REPLICATES,
) -> GridResult:
    """Train and measure every cell of a recipe's grid; the tables are written anew after each.

    Parameters
    ----------
    reference
        The recipe, by name or file: see :func:`trainer.recipe.load_recipe`.
    dataset
        Films and their truth, the same for every cell.
    out
        Folder for everything: see above.
    changes
        Dotted key → value for all cells. What the cells themselves set may not be among them: their labels would lie.
    resume
        False trains every cell anew.
    progress, devices, workers
        As for :func:`trainer.training.train.train`.
    replicates
        Bootstrap replicates of every interval.

    Returns
    -------
    The rows. Cells that could not be trained or measured have a ``failure`` and do not stop the others.

    Raises
    ------
    RecipeError
        The recipe has no grid, a cell's settings are wrong, or the grid names a column that evaluation does not give
        (the nearest is named).
    RunError
        ``out`` is the folder of a run.
    KeyboardInterrupt
        The person said so; the same call goes on.
    """
    progress, changes = progress or TrainingProgress(), changes or {}
    recipe = load_recipe(reference, changes)
    grid = _checked_grid(recipe, changes)
    recipes = {cell.label: _recipe_of(reference, recipe, cell, changes) for cell in grid.cells}
    if RunFolder(out).recipe.is_file():
        raise RunError(f"{out} is the folder of a single run: choose another one for the grid.")
    out.mkdir(parents=True, exist_ok=True)
    for label, own in recipes.items():
        if missing := _missing_checkpoint(own):
            progress.say(f"{label} will fail. {missing}")
    fit = partial(
        train,
        dataset=dataset,
        resume=resume,
        progress=progress,
        devices=devices,
        workers=workers,
        cache=out / "cache",
    )
    runs: list[Run] = []
    rows: list[GridRow] = []

    def train_cell(own: Recipe, folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        if missing := _missing_checkpoint(own):
            raise RecipeError(missing)
        run = fit(own, out=folder)
        runs.append(run)
        return evaluate_run(run, PART, replicates=replicates, progress=progress.prepare), run.facts

    def average(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        if failed := [row.label for row in rows if row.failure]:
            raise RunError(f"The average needs every cell, and {', '.join(failed)} failed.")
        return evaluate_runs(runs, PART, folder, replicates=replicates, progress=progress.prepare), {}

    work: list[tuple[GridRow, _Work]] = []
    for cell in grid.cells:
        folder = out / slug_of(cell.label)
        work.append(
            (GridRow(cell.label, folder, cell.paper, cell.set), partial(train_cell, recipes[cell.label], folder))
        )
    if grid.ensemble:
        folder = out / slug_of(ENSEMBLE)
        work.append((GridRow(ENSEMBLE, folder, grid.ensemble), partial(average, folder)))
    for place, (row, do) in enumerate(work, 1):
        progress.say(f"{row.label}, {place} of {len(work)}")
        rows.append(_attempt(row, do, grid.columns, progress))
        result = GridResult(recipe, grid, out, dataset.name, changes, tuple(rows))
        result.write()
    return result


def slug_of(label: str) -> str:
    """A cell's folder, and the end of its run's name: ``"w2-cce*"`` is ``"w2-cce-augmented"``."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("*", " augmented")).strip("-")


def _attempt(row: GridRow, work: _Work, columns: Sequence[str], progress: TrainingProgress) -> GridRow:
    """The row with its figures, or with the reason why there are none."""
    try:
        summary, facts = work()
    except CarinaError as error:
        reason = str(error)
    except Exception as error:  # the other cells shall not be lost to one, whatever it died of
        _LOG.exception("%s failed", row.label)
        reason = f"{type(error).__name__}: {error}"
    else:
        figures = {name: summary["figures"][name] for name in columns if name in summary["figures"]}
        kept = {key: facts[key] for key in ("epochs", "seconds") if key in facts}
        unscored = [name for name, region in summary.get("regions", {}).items() if not region["scored"]]
        return replace(row, figures=figures, facts={"films": summary["films"], "not_scored": unscored, **kept})
    progress.say(f"{row.label} failed: {reason}")
    return replace(row, failure=reason)


def _checked_grid(recipe: Recipe, changes: Mapping[str, Any]) -> GridTable:
    grid = recipe.grid
    if grid is None:
        grids = [name for name in recipe_names() if load_recipe(name).grid]
        raise RecipeError(f"Recipe {recipe.name} has no grid: train it without --grid, or take {', '.join(grids)}.")
    possible = [name for name, column in COLUMNS.items() if column.task == recipe.task]
    printed = (name for paper in (grid.ensemble, *(cell.paper for cell in grid.cells)) for name in paper)
    for names, known in ((grid.columns, possible), (printed, grid.columns)):
        for name in names:
            if name not in known:
                raise RecipeError(f"Recipe {recipe.name}: its grid has no column {name!r}{nearest(name, known)}.")
    slugs = [slug_of(cell.label) for cell in grid.cells]
    for place, (slug, cell) in enumerate(zip(slugs, grid.cells, strict=True)):
        if not slug or slug in (*slugs[:place], "cache", slug_of(ENSEMBLE)):
            raise RecipeError(f"Recipe {recipe.name}: the cell {cell.label!r} needs a label of its own.")
        for key in changes:
            if any(own == key or own.startswith(f"{key}.") for own in cell.set):
                raise RecipeError(
                    f"{key} is what the cells of {recipe.name} differ in ({cell.label} sets it): "
                    "do not set it for all of them; write a recipe with a grid of your own instead."
                )
    return grid


def _recipe_of(reference: str | Path, recipe: Recipe, cell: GridCell, changes: Mapping[str, Any]) -> Recipe:
    named = {"name": f"{recipe.name}-{slug_of(cell.label)}", "grid": None}
    return load_recipe(reference, {**cell.set, **changes, **named})


def _missing_checkpoint(recipe: Recipe) -> str:
    """What to say when the weights a recipe starts from are not there; ``""`` when they are."""
    path = recipe.network.checkpoint
    if not path or Path(path).exists():
        return ""
    return (
        f"network.checkpoint: there is no {path}. Nothing is ever fetched: put weights of yours for "
        f"{recipe.network.name} there (for adult weights the folder of a run of densenet121-adult will do), or copy "
        "the recipe and name them in its cell."
    )
