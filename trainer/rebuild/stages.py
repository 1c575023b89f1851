"""The stages of a rebuild, each of which may be done again: what is there already is kept."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schema.bundle import BundleError, Manifest, read_manifest
from schema.database import Database
from trainer.data.records import Dataset
from trainer.data.splits import split
from trainer.export.contents import PACKAGED, bundle_table
from trainer.export.package import package
from trainer.rebuild.comparison import Side, compare
from trainer.rebuild.films import all_films, choose_films, judging_films
from trainer.rebuild.folder import RebuildFolder, read_json, write_json
from trainer.rebuild.ledger import Rebuild
from trainer.rebuild.request import Request
from trainer.recipe import BundleTable
from trainer.training.progress import TrainingProgress
from trainer.training.run_folder import Run, RunFolder, load_run
from trainer.training.train import train
from worker.inference.bundles import load_bundle
from worker.inference.registry import add_bundle, bundle_folder, find_bundle, record_engine
from worker.settings import Settings

ACTOR = "carina rebuild"


@dataclass
class Work:
    """What the stages work with.

    ``champion`` is what the candidate is compared with: the bundle in service when the rebuild began. ``replicates``
    of every bootstrap.
    """

    settings: Settings
    database: Database
    request: Request
    row: Rebuild
    progress: TrainingProgress
    replicates: int

    @property
    def folder(self) -> RebuildFolder:
        """Where everything lies."""
        return RebuildFolder(self.row.folder)

    @property
    def version(self) -> str:
        """The bundle's: the day the rebuild began, and its number."""
        return f"{self.row.started_at:%Y%m%d}.{self.row.id}"

    @cached_property
    def films(self) -> Dataset:
        """All films, before a recipe chooses from them."""
        return all_films(self.database, self.settings, self.request, self.folder)

    @cached_property
    def champion(self) -> Side:
        """The bundle in service when this rebuild began."""
        entry = find_bundle(self.database, self.settings, self.row.champion)
        directory = bundle_folder(self.settings, entry.sha256)
        return Side(directory, read_manifest(directory))

    @property
    def runs(self) -> list[Run]:
        """The finished trainings."""
        return [load_run(self.folder.run(recipe.name)) for recipe in self.request.recipes]


#: Does a stage; what it returns joins the row's results.
Stage = Callable[[Work], dict[str, Any]]


def films(work: Work) -> dict[str, Any]:
    """Choose films, and see that every recipe could learn from them before hours are spent."""
    choose_films(work.database, work.settings, work.row, work.request, work.folder)
    parts: dict[str, dict[str, int]] = {}
    for recipe in work.request.recipes:
        usable = work.films.for_recipe(recipe)
        chosen = split(usable.records, recipe.data.split)
        parts[recipe.name] = {part: len(chosen.part(part)) for part in ("train", "validation", "test")}
    return {"films": parts}


def training(work: Work) -> dict[str, Any]:
    """Train every recipe, or go on."""
    for recipe in work.request.recipes:
        train(recipe, work.films, work.folder.run(recipe.name), progress=work.progress, cache=work.folder.cache)
    return {"epochs": {run.recipe.name: run.facts["epochs"] for run in work.runs}}


def packaging(work: Work) -> dict[str, Any]:
    """Write the bundle."""
    manifest = _manifest(work.folder.bundle)
    if manifest is None:
        manifest = package(
            work.runs,
            work.folder.bundle,
            bundle=_bundle_table(work),
            variants=("int8",) if work.request.int8 else (),
            replicates=work.replicates,
            progress=work.progress.prepare,
        )
    return {"bundle": manifest.key}


def evaluation(work: Work) -> dict[str, Any]:
    """Measure candidate and champion on the films held out."""
    candidate = Side(work.folder.bundle, read_manifest(work.folder.bundle))
    names = {name for run in work.runs for name in _test_names(run)}
    judged_on = judging_films(work.films, work.request, names, work.folder.path)
    comparison = compare(
        candidate,
        work.champion,
        judged_on,
        work.folder,
        replicates=work.replicates,
        progress=work.progress.prepare,
    )
    write_json(work.folder.comparison, comparison)
    return {"comparison": read_json(work.folder.comparison)}


def engines(work: Work) -> dict[str, Any]:
    """Compile the bundle for this machine, into the cache that workers read; the parity gate decides."""
    settings = work.settings
    loaded = load_bundle(work.folder.bundle, home=settings.home, backend=settings.backend, precision=settings.precision)
    try:
        described = {"engine": loaded.engine_description, "notes": list(loaded.notes), "parity": loaded.parity}
    finally:
        loaded.close()
    write_json(work.folder.engines, described)
    return {"engine": described["engine"]}


def registration(work: Work) -> dict[str, Any]:
    """Make the bundle known, as the candidate."""
    entry = add_bundle(work.database, work.settings, work.folder.bundle, actor=ACTOR)
    described = read_json(work.folder.engines)
    record_engine(work.database, entry.id, described["engine"], described["parity"])
    return {"bundle_id": entry.id}


def _bundle_table(work: Work) -> BundleTable:
    """What the recipes say; findings alone join the champion's segmentation, unless a recipe names another bundle's."""
    runs = work.runs
    table = bundle_table(runs, work.request.bundle_name, work.version)
    learned = any(run.recipe.task == "segmentation" for run in runs)
    if learned or table.segmentation not in ("", PACKAGED):
        return table
    return table.model_copy(update={"segmentation": str(work.champion.directory)})


def _manifest(folder: Path) -> Manifest | None:
    """The bundle that is whole there, or None."""
    try:
        return read_manifest(folder)
    except BundleError:
        return None


def _test_names(run: Run) -> list[str]:
    with RunFolder(run.folder).split.open(newline="", encoding="utf-8") as file:
        return [row["name"] for row in csv.DictReader(file) if row["part"] == "test"]
