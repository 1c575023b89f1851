"""A paper's table, row by row: one recipe, trained again with the changes of each cell, ours beside the paper's.

Every cell is a run of its own in a folder of the grid's; what is finished is not trained again, so that a grid
that was cut off, or one of whose cells failed, goes on when it is asked for again. Prepared films are shared. A grid
with folds or repeats trains each cell several times; one that compares nothing but what networks cost trains none.

Decided, since Novikov et al. (section IV-A) average the outputs of several networks and then threshold them "using
majority voting", which are two rules and of which the second decides nothing for two networks: an ensemble's masks are
those of the averaged outputs.

===================  ============================================================================
<cell>/              a run folder, with its evaluation in ``evaluation/test``
<cell>/fold-1/ ...   the same for each fold (``run-1/`` for each repeat)
<ensemble>/          the evaluation of averaged probabilities, one for each fold likewise
cache/               prepared films and saved copies; may be deleted afterwards
grid.md              the table, ours beside the paper's; names no film but one that stopped a cell
grid.csv             the same numbers for spreadsheets
grid.json            the same numbers for programs, with each cell's settings
grid.png             the same as a picture
jaccard-bins.png     regions: the share of the films by range of Jaccard
curves.png           regions: Dice by epoch on the validation films
training-curves.png  regions: the same beside that on the training films, where the recipe measures them
===================  ============================================================================
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.records import Dataset
from trainer.errors import RecipeError, RunError
from trainer.evaluation.evaluate import evaluate_runs
from trainer.evaluation.network_costs import network_costs
from trainer.grid_columns import COLUMNS, COST, REGION_COLUMNS, column_of, figure_of, over_trainings
from trainer.grid_result import PART, GridResult, GridRow
from trainer.recipe import GridTable, Recipe, load_recipe, nearest, recipe_names
from trainer.training.progress import TrainingProgress
from trainer.training.run_folder import Run, RunFolder
from trainer.training.train import train
from worker.bootstrap import REPLICATES
from worker.errors import CarinaError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Turn:
    """One of several trainings of a cell: the name of its folder (``""`` for the cell's own), and what it changes."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class _Done:
    """One training measured: its evaluation's summary and folder, facts, the run's ``metrics.csv``; None for none."""

    summary: Mapping[str, Any]
    facts: Mapping[str, Any]
    evaluation: Path | None = None
    history: Path | None = None


#: Gives what the trainings of a row gave.
_Work = Callable[[], list[_Done]]


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
        Columns of regions that ``data.regions`` among them leaves out are left out too.
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
    columns = _columns(recipe, grid, changes)
    turns = _turns(grid)
    recipes = {
        cell.label: [_recipe_of(reference, recipe, cell.label, {**cell.set, **changes}, turn) for turn in turns]
        for cell in grid.cells
    }
    if RunFolder(out).recipe.is_file():
        raise RunError(f"{out} is the folder of a single run: choose another one for the grid.")
    out.mkdir(parents=True, exist_ok=True)
    for label, own in recipes.items():
        if missing := _missing_checkpoint(own[0]):
            progress.say(f"{label} will fail. {missing}")
    cells = _Cells(
        recipes,
        turns,
        tuple(name for name in columns if _task_of(name) == COST),
        partial(
            train,
            dataset=dataset,
            resume=resume,
            progress=progress,
            devices=devices,
            workers=workers,
            cache=out / "cache",
        ),
        partial(evaluate_runs, part=PART, replicates=replicates, progress=progress.prepare),
        progress,
    )
    measure = cells.weigh if len(cells.costs) == len(columns) else cells.train
    work: list[tuple[GridRow, _Work]] = []
    for cell in grid.cells:
        folder = out / slug_of(cell.label)
        work.append((GridRow(cell.label, folder, cell.paper, cell.set), partial(measure, cell.label, folder)))
    for ensemble in grid.ensembles:
        folder = out / slug_of(ensemble.label)
        labels = ensemble.cells or tuple(recipes)
        work.append((GridRow(ensemble.label, folder, ensemble.paper), partial(cells.average, labels, folder)))
    rows: list[GridRow] = []
    for place, (row, do) in enumerate(work, 1):
        progress.say(f"{row.label}, {place} of {len(work)}")
        rows.append(_attempt(row, do, columns, progress))
        result = GridResult(recipe, grid, columns, out, dataset.name, changes, tuple(rows))
        result.write()
    return result


@dataclass(frozen=True)
class _Cells:
    """Trains, measures and averages cells, each by its label.

    ``recipes`` has one for each of ``turns``; ``costs`` are columns of what networks cost; ``fit`` and ``evaluate`` are
    :func:`trainer.training.train.train` and :func:`trainer.evaluation.evaluate.evaluate_runs` but for run and folder.
    ``runs`` are those finished so far.
    """

    recipes: Mapping[str, Sequence[Recipe]]
    turns: Sequence[_Turn]
    costs: Sequence[str]
    fit: Callable[..., Run]
    evaluate: Callable[..., dict[str, Any]]
    progress: TrainingProgress
    runs: dict[str, list[Run]] = field(default_factory=dict)

    def train(self, label: str, folder: Path) -> list[_Done]:
        done, runs = [], []
        for turn, recipe in zip(self.turns, self.recipes[label], strict=True):
            if missing := _missing_checkpoint(recipe):
                raise RecipeError(missing)
            if turn.name:
                self.progress.say(f"{label}, {turn.name}")
            place = folder / turn.name
            evaluation = place / "evaluation" / PART
            run = self.fit(recipe, out=place)
            summary = self.evaluate([run], out=evaluation)
            if self.costs:
                figures = {**summary["figures"], **network_costs(recipe, place / "member.onnx")}
                summary = {**summary, "figures": figures}
            runs.append(run)
            done.append(_Done(summary, run.facts, evaluation, place / "metrics.csv"))
        self.runs[label] = runs
        return done

    def weigh(self, label: str, folder: Path) -> list[_Done]:
        figures = network_costs(self.recipes[label][0], folder / "member.onnx")
        return [_Done({"figures": figures, "films": 0}, {})]

    def average(self, labels: Sequence[str], folder: Path) -> list[_Done]:
        if failed := [label for label in labels if label not in self.runs]:
            raise RunError(f"The average needs every cell, and {', '.join(failed)} failed.")
        done = []
        for number, turn in enumerate(self.turns):
            place = folder / turn.name
            summary = self.evaluate([self.runs[label][number] for label in labels], out=place)
            done.append(_Done(summary, {}, place))
        return done


def slug_of(label: str) -> str:
    """A cell's folder, and the end of its run's name: ``"w2-cce*"`` is ``"w2-cce-augmented"``."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("*", " augmented")).strip("-")


def _attempt(row: GridRow, work: _Work, columns: Sequence[str], progress: TrainingProgress) -> GridRow:
    """The row with its figures, or with the reason why there are none."""
    try:
        done = work()
    except CarinaError as error:
        reason = str(error)
    except Exception as error:  # the other cells shall not be lost to one, whatever it died of
        _LOG.exception("%s failed", row.label)
        reason = f"{type(error).__name__}: {error}"
    else:
        return _measured(row, done, columns)
    progress.say(f"{row.label} failed: {reason}")
    return replace(row, failure=reason)


def _measured(row: GridRow, done: Sequence[_Done], columns: Sequence[str]) -> GridRow:
    films = [each.summary["films"] for each in done]
    # Films that show no chest enter no figure.
    chests = [each.summary["films"] - each.summary.get("no_chest", {}).get("films", 0) for each in done]
    figures: dict[str, Mapping[str, Any]] = {}
    for name in columns:
        found = [figure for each in done if (figure := figure_of(each.summary, name)) is not None]
        if len(found) == len(done):
            figures[name] = found[0] if len(found) == 1 else over_trainings(found, chests)
    unscored = [name for name, region in done[0].summary.get("regions", {}).items() if not region["scored"]]
    facts = {key: sum(each.facts[key] for each in done) for key in ("epochs", "seconds") if key in done[0].facts}
    return replace(
        row,
        figures=figures,
        facts={"films": sum(films), "not_scored": unscored, **facts},
        evaluations=tuple(each.evaluation for each in done if each.evaluation),
        histories=tuple(each.history for each in done if each.history),
    )


def _turns(grid: GridTable) -> list[_Turn]:
    """The trainings of every cell."""
    if grid.folds:
        folds = range(grid.folds)
        return [_Turn(f"fold-{fold + 1}", {"data.split.folds": grid.folds, "data.split.fold": fold}) for fold in folds]
    if grid.repeats > 1:
        seeds = range(1, grid.repeats + 1)
        return [_Turn(f"run-{seed}", {"data.split.seed": seed, "training.seed": seed}) for seed in seeds]
    return [_Turn("", {})]


def _checked_grid(recipe: Recipe, changes: Mapping[str, Any]) -> GridTable:
    grid = recipe.grid
    if grid is None:
        grids = [name for name in recipe_names() if load_recipe(name).grid]
        raise RecipeError(f"Recipe {recipe.name} has no grid: train it without --grid, or take {', '.join(grids)}.")
    labels = [cell.label for cell in grid.cells]
    every = [*labels, *(ensemble.label for ensemble in grid.ensembles)]
    slugs = [slug_of(label) for label in every]
    for place, (slug, label) in enumerate(zip(slugs, every, strict=True)):
        if not slug or slug in (*slugs[:place], "cache"):
            raise RecipeError(f"Recipe {recipe.name}: the cell {label!r} needs a label of its own.")
    for ensemble in grid.ensembles:
        for label in ensemble.cells:
            if label not in labels:
                raise RecipeError(
                    f"Recipe {recipe.name}: {ensemble.label} has no cell {label!r}{nearest(label, labels)}."
                )
    own = [(cell.label, key) for cell in grid.cells for key in cell.set]
    own += [(turn.name, key) for turn in _turns(grid) for key in turn.changes]
    for label, set_by_it in own:
        for key in changes:
            if set_by_it == key or set_by_it.startswith(f"{key}."):
                raise RecipeError(
                    f"{key} is what the cells of {recipe.name} differ in ({label} sets it): "
                    "do not set it for all of them; write a recipe with a grid of your own instead."
                )
    return grid


def _columns(recipe: Recipe, grid: GridTable, changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The grid's columns, those left out whose region ``changes`` took away."""
    regions = recipe.data.regions
    possible = [name for name, column in COLUMNS.items() if column.task in (recipe.task, COST)]
    possible += [f"{region}.{number}" for region in regions for number in REGION_COLUMNS]
    papers = [*(cell.paper for cell in grid.cells), *(ensemble.paper for ensemble in grid.ensembles)]
    printed = (name for paper in papers for name in paper)
    tested = (f"{region}.jaccard" for region in (grid.significance.regions if grid.significance else ()))
    for names, known in ((grid.columns, possible), (printed, grid.columns), (tested, possible)):
        for name in names:
            taken_away = "data.regions" in changes and column_of(name) is not None and _task_of(name) == recipe.task
            if name not in known and not taken_away:
                raise RecipeError(f"Recipe {recipe.name}: its grid has no column {name!r}{nearest(name, known)}.")
    chosen = tuple(name for name in grid.columns if name in possible)
    if not chosen:
        raise RecipeError(
            f"Recipe {recipe.name}: no column of its grid is left with data.regions = {', '.join(regions)}; "
            "write a recipe with a grid of your own instead."
        )
    return chosen


def _task_of(name: str) -> str:
    column = column_of(name)
    return column.task if column else ""


def _recipe_of(reference: str | Path, recipe: Recipe, label: str, changes: Mapping[str, Any], turn: _Turn) -> Recipe:
    named = {"name": f"{recipe.name}-{slug_of(label)}", "grid": None}
    return load_recipe(reference, {**changes, **turn.changes, **named})


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
