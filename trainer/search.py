"""A Bayesian search of a recipe's settings by cross-validation, with Optuna (Wang et al., "Hyper-parameters").

"Hyper-parameters are selected by cross validation, integrated with Bayesian optimization; the best combination is
chosen based on mean IoU across all folds." Each trial takes settings that the trials before it make promising, trains
the recipe with them once for each fold, and is worth the mean over the folds of one figure of the films left out.

The poster does not say by which Bayesian method. Decided: Optuna's tree-structured Parzen estimator (Bergstra et al.
2011), which chooses names and numbers alike. A trial whose training failed counts as failed and is not asked for again.

What was tried is kept in SQL through SQLAlchemy: in ``study.db`` of the search's folder, or in a database of yours. A
search that was cut off goes on when it is asked for again: finished trials and folds are kept, and the trial that was
at work is finished first.

===============  ============================================================================
study.db         the study (SQLite), unless it is kept elsewhere
<trial>/fold-1/  a run folder for each fold, the trial's name made of its settings
cache/           prepared films and saved copies; may be deleted afterwards
search.md        every trial in words, the best first
search.csv       the same numbers for spreadsheets
search.json      the same for programs
search.png       worth by setting, and the best so far
best.toml        the recipe with the best settings, to be trained with ``carina train``
===============  ============================================================================
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from trainer.data.records import Dataset
from trainer.errors import RecipeError, RunError
from trainer.evaluation.evaluate import evaluate_run
from trainer.recipe import Recipe, SearchTable, load_recipe, recipe_names
from trainer.search_result import SearchResult, Trial
from trainer.training.progress import TrainingProgress
from trainer.training.run_folder import RunFolder, locked
from trainer.training.train import train
from worker.bootstrap import REPLICATES
from worker.errors import CarinaError

#: Measured on the films that a fold leaves out.
PART = "test"
STUDY = "study.db"
_LOCK = "search.lock"

_SPACE = "space"
_REASON, _FOLDS = "reason", "folds"


def run_search(
    reference: str | Path,
    dataset: Dataset,
    out: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    trials: int = 0,
    study: str = "",
    progress: TrainingProgress | None = None,
    devices: int = 1,
    workers: int | None = None,
    replicates: int = REPLICATES,
) -> SearchResult:
    """Search, or go on searching, until the recipe's number of trials is done; tables are written anew after each.

    Parameters
    ----------
    reference
        A recipe with a ``[search]``, by name or file.
    dataset
        Films and their truth.
    out
        Folder for everything: see above.
    changes
        Dotted key → value for all trials; what is searched may not be among them.
    trials
        In all, counting those done before; the recipe's own number if 0.
    study
        URL of the database for the study, as SQLAlchemy writes it; ``study.db`` in ``out`` if empty. Optuna makes its
        own tables there. The study is called as the recipe and the folder ``out``.
    progress, devices, workers
        As for :func:`trainer.training.train.train`.
    replicates
        Bootstrap replicates of the folds' evaluations.

    Raises
    ------
    RecipeError
        The recipe has no search, or a setting of it is wrong or set by ``changes`` too.
    RunError
        ``out`` is the folder of a run, another process searches there, the study was begun with another search, or
        its database cannot be used.
    KeyboardInterrupt
        The person said so; the same call goes on.
    """
    progress, changes = progress or TrainingProgress(), changes or {}
    recipe = load_recipe(reference, changes)
    table = _checked(reference, recipe, changes)
    if RunFolder(out).recipe.is_file():
        raise RunError(f"{out} is the folder of a single run: choose another one for the search.")
    out.mkdir(parents=True, exist_ok=True)
    name = f"{recipe.name} in {out.resolve().name}"
    wanted = trials or table.trials
    # A second process would take the trial that the first is at for one that was cut off.
    with locked(out / _LOCK):
        kept = _open_study(study or f"sqlite:///{(out / STUDY).resolve()}", name, recipe, table)
        searcher = _Searcher(
            reference, recipe, table, dataset, out, changes, kept, progress, devices, workers, replicates
        )
        searcher.finish_what_was_cut_off()
        while searcher.tried < wanted:
            progress.say(f"Trial {searcher.tried + 1} of {wanted}")
            searcher.next_trial()
            searcher.result().write()
        result = searcher.result()
        result.write()
    return result


@dataclass
class _Searcher:
    reference: str | Path
    recipe: Recipe
    table: SearchTable
    dataset: Dataset
    out: Path
    changes: Mapping[str, Any]
    study: optuna.Study
    progress: TrainingProgress
    devices: int
    workers: int | None
    replicates: int

    @property
    def tried(self) -> int:
        """Trials that ended, well or not."""
        return len(_ended(self.study))

    def finish_what_was_cut_off(self) -> None:
        """A trial that a killed process left at work is begun again with the same settings; its folds are kept."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                self.study.enqueue_trial(trial.params)

    def next_trial(self) -> None:
        """Choose settings, train and measure every fold, tell the study."""
        # Seeded anew each time: a search that goes on chooses what it would have chosen.
        self.study.sampler = optuna.samplers.TPESampler(seed=self.table.seed + self.tried, multivariate=True)
        trial = self.study.ask()
        settings = _suggested(trial, self.table)
        self.progress.say(", ".join(f"{key} = {value}" for key, value in settings.items()))
        try:
            values = [self._fold(settings, fold) for fold in range(self.table.folds)]
        except CarinaError as error:
            self.progress.say(f"The trial failed: {error}")
            trial.set_user_attr(_REASON, str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr(_FOLDS, values)
        self.study.tell(trial, fmean(values))

    def _fold(self, settings: Mapping[str, Any], fold: int) -> float:
        place = self.out / folder_of(settings) / f"fold-{fold + 1}"
        own = self._recipe({**settings, "data.split.folds": self.table.folds, "data.split.fold": fold})
        run = train(
            own,
            self.dataset,
            place,
            progress=self.progress,
            devices=self.devices,
            workers=self.workers,
            cache=self.out / "cache",
        )
        summary = evaluate_run(run, PART, replicates=self.replicates, progress=self.progress.prepare)
        value = summary["figures"][self.table.objective]["value"]
        if value is None:
            raise RunError(f"{place} has no {self.table.objective}: nothing of its films could be measured.")
        return float(value)

    def _recipe(self, settings: Mapping[str, Any]) -> Recipe:
        own = {"name": self.recipe.name, "search": None, "bundle": None}
        return load_recipe(self.reference, {**self.changes, **settings, **own})

    def result(self) -> SearchResult:
        """All trials so far."""
        trials = tuple(_as_trial(trial) for trial in _ended(self.study))
        done = SearchResult(self.recipe, self.table, self.out, self.dataset.name, dict(self.changes), trials)
        best = done.best
        return done if best is None else done.with_recipe(self._recipe(best.settings))


def folder_of(settings: Mapping[str, Any]) -> str:
    """The folder of a trial, the same for the same settings."""
    text = json.dumps(dict(settings), sort_keys=True)
    return f"trial-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _suggested(trial: optuna.Trial, table: SearchTable) -> dict[str, Any]:
    chosen: dict[str, Any] = {key: trial.suggest_categorical(key, options) for key, options in table.choices.items()}
    for key, span in table.ranges.items():
        chosen[key] = trial.suggest_float(key, span.low, span.high, log=span.log)
    return chosen


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were finished, or failed for a reason; one that was only cut off is not among them."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in ended if trial.state == TrialState.COMPLETE or _REASON in trial.user_attrs]


def _as_trial(trial: FrozenTrial) -> Trial:
    return Trial(
        number=trial.number + 1,
        settings=dict(trial.params),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        folds=tuple(trial.user_attrs.get(_FOLDS, ())),
        failure=str(trial.user_attrs.get(_REASON, "")),
        folder=folder_of(trial.params),
    )


def _open_study(url: str, name: str, recipe: Recipe, table: SearchTable) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    optuna.logging.disable_default_handler()
    space = {"choices": table.choices, "ranges": table.ranges, "objective": table.objective, "folds": table.folds}
    words = json.dumps(
        {key: value if not isinstance(value, Mapping) else _plain(value) for key, value in space.items()},
        sort_keys=True,
    )
    try:
        storage = optuna.storages.RDBStorage(url)
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"The study of {recipe.name} cannot be kept in its database: {reason}") from None
    if study.user_attrs.setdefault(_SPACE, words) != words:
        raise RunError(
            f"The study {name!r} was begun with another search: give the same recipe and settings, or another folder."
        )
    study.set_user_attr(_SPACE, words)
    return study


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.model_dump() if hasattr(value, "model_dump") else list(value) for key, value in settings.items()}


def _checked(reference: str | Path, recipe: Recipe, changes: Mapping[str, Any]) -> SearchTable:
    """The recipe's search, every choice of which makes a recipe."""
    table = recipe.search
    if table is None:
        searches = [name for name in recipe_names() if load_recipe(name).search]
        raise RecipeError(f"Recipe {recipe.name} has no search: train it, or take {', '.join(searches)}.")
    searched: dict[str, tuple[Any, ...]] = {**table.choices}
    searched |= {key: (span.low, span.high) for key, span in table.ranges.items()}
    for key, values in searched.items():
        for changed in changes:
            if key == changed or key.startswith(f"{changed}."):
                raise RecipeError(f"{changed} is what {recipe.name} searches: do not set it.")
        for value in values:
            load_recipe(reference, {**changes, key: value})
    return table
