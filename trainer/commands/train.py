"""``carina train``: from films to a run folder, its evaluation and a bundle."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import click
from rich.console import Console
from rich.table import Table

from trainer.commands import TrainerCommand

if TYPE_CHECKING:
    from trainer.data.records import Dataset
    from trainer.recipe import Recipe
    from trainer.training.progress import TrainingProgress

#: Tables whose changes go to a recipe's members too: what films they see and for how long.
_SHARED = frozenset({"data", "preprocess", "training"})


def as_changes(_ctx: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` pairs; a value is TOML where it can be read as such, else the text itself."""
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{text!r} is not key=value, for instance training.epochs=5")
        try:
            changes[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = value
    return changes


@click.command(cls=TrainerCommand)
@click.argument("recipe", required=False)
@click.option("--data", metavar="DIR", help="Films: a directory, its dataset.toml, or the word phantoms.")
@click.option("--layout", default="", metavar="NAME", help="How the directory is laid out, if it has no dataset.toml.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="RUN", help="The run folder.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", callback=as_changes, help="Change a setting.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Go on with what RUN holds, or start over.")
@click.option(
    "--devices", type=click.IntRange(1), default=1, show_default=True, help="GPUs (or processes) to train on."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of a CPU; default: one per core.")
@click.option("--grid", "whole_grid", is_flag=True, help="Train every cell of RECIPE's grid, RUN/CELL each.")
@click.option("--list", "list_recipes", is_flag=True, help="List the recipes and end.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def train(
    ctx: click.Context,
    *,
    recipe: str | None,
    data: str | None,
    layout: str,
    out: Path | None,
    changes: dict[str, Any],
    resume: bool,
    devices: int,
    threads: int | None,
    whole_grid: bool,
    list_recipes: bool,
    as_json: bool,
) -> None:
    """Train RECIPE (a name of --list, or a TOML file) on films, evaluate it and write its bundle.

    A training that was cut off, however hard, goes on when the same command is given again. RUN holds
    everything it leaves: settings, metrics, curves, weights, evaluation, bundle. Changes of data, preprocess and
    training go to the members of an ensemble too.

    Example: carina train carina-lungs --data /data/ped_cxr --layout ped_cxr --out runs/lungs
    """
    if list_recipes:
        _list(as_json)
        return
    if recipe is None or data is None or out is None:
        raise click.UsageError("RECIPE, --data and --out are needed; carina train --list shows the recipes.")
    from trainer.data.description import load_dataset
    from trainer.evaluation.tables import as_json as json_text
    from trainer.recipe import load_recipe
    from trainer.training.progress import LineProgress, progress_for

    if threads:
        import torch

        torch.set_num_threads(threads)
    chosen = load_recipe(recipe, changes)
    _check_kind(chosen, recipe, whole_grid=whole_grid)
    dataset = load_dataset(data, layout)
    # Several processes cannot share a bar.
    progress = progress_for(Console(stderr=True)) if devices == 1 else LineProgress()
    options: _Options = {"resume": resume, "progress": progress, "devices": devices}
    try:
        if whole_grid:
            from trainer.grid import run_grid

            grid = run_grid(recipe, dataset, out, changes=changes, **options)
            click.echo((out / "grid.json").read_text("utf-8") if as_json else grid.table())
            if not as_json:
                click.echo(f"Grid: {out / 'grid.md'}")
            if grid.failed:
                ctx.exit(1)
            return
        result = _train(chosen, _for_members(changes), dataset, out, options)
    except KeyboardInterrupt:
        again = ["carina", "train", recipe, "--data", data, "--out", str(out)]
        again += ["--layout", layout] if layout else []
        again += ["--grid"] if whole_grid else []
        for key, value in changes.items():
            again += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        raise click.ClickException(f"Stopped. To go on: {shlex.join(again)}") from None
    finally:
        progress.close()
    if as_json:
        click.echo(json_text(result))
    else:
        _show(result)


def _check_kind(chosen: Recipe, recipe: str, *, whole_grid: bool) -> None:
    about = ""
    if chosen.search:
        about = "is a search of settings: give it to carina search"
    elif whole_grid != bool(chosen.grid):
        about = "has no grid" if whole_grid else "is a grid of several trainings: add --grid"
    if about:
        raise click.UsageError(f"{recipe} {about}.")


class _Options(TypedDict):
    """What one training and a grid of them are told alike."""

    resume: bool
    progress: TrainingProgress
    devices: int


def _train(
    recipe: Recipe, changes: Mapping[str, Any], dataset: Dataset, out: Path, options: _Options
) -> dict[str, Any]:
    """Train the recipe and its bundle's members, evaluate them on the test part and package; what all gave."""
    from trainer.evaluation.evaluate import evaluate_run, evaluate_runs
    from trainer.export.contents import bundle_table
    from trainer.export.package import package
    from trainer.recipe import load_recipe
    from trainer.training.train import train as train_one

    names = recipe.bundle.members if recipe.bundle else ()
    members = [load_recipe(name, changes) for name in names]  # all of them before the first is trained
    runs = [train_one(recipe, dataset, out, **options)]
    for member in members:
        runs.append(train_one(member, dataset, out / "members" / member.name, cache=out / "cache", **options))
    tell = options["progress"].prepare
    result: dict[str, Any] = {"run": str(out), "runs": {}}
    for run in runs:
        facts = {"folder": str(run.folder), "epoch": run.facts["chosen_epoch"], "validation": run.best}
        if run.split.test:
            facts["test"] = evaluate_run(run, "test", progress=tell)["figures"]
        result["runs"][run.recipe.name] = facts
    alike = [run for run in runs if run.recipe.task == recipe.task]
    if len(alike) > 1 and runs[0].split.test:
        result["ensemble"] = evaluate_runs(alike, "test", out / "evaluation" / "ensemble", progress=tell)["figures"]
    if recipe.bundle is not None:
        bundle = out / "bundle"
        if not bundle.exists():
            package(runs, bundle, bundle=bundle_table(runs), progress=tell)
        result["bundle"] = str(bundle)
    return result


def _for_members(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if key.partition(".")[0] in _SHARED}


def _list(as_json: bool) -> None:
    from trainer.recipe import load_recipe, recipe_names

    recipes: list[Recipe] = [load_recipe(name) for name in recipe_names()]
    if as_json:
        rows = [
            {
                "name": r.name,
                "task": r.task,
                "description": r.description,
                "grid": bool(r.grid),
                "search": bool(r.search),
            }
            for r in recipes
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("recipe", "learns", "what"):
        table.add_column(heading, overflow="fold")
    for recipe in recipes:
        what = "regions" if recipe.task == "segmentation" else "findings"
        kind = "grid: " if recipe.grid else "search: " if recipe.search else ""
        learns = f"{kind}{len(recipe.data.regions or recipe.data.findings)} {what}"
        table.add_row(recipe.name, learns, recipe.description)
    Console().print(table)


def _show(result: Mapping[str, Any]) -> None:
    """The figures people ask for first."""
    for name, facts in result["runs"].items():
        _show_figures(f"{name} on the test part", facts.get("test", {}))
    if "ensemble" in result:
        _show_figures("all together on the test part", result["ensemble"])
    click.echo(f"Run: {result['run']}")
    if "bundle" in result:
        click.echo(f"Bundle: {result['bundle']}; next: carina bundle add {result['bundle']}")


def _show_figures(title: str, figures: Mapping[str, Any]) -> None:
    for name in ("mean_dice", "lung_dice", "mean_auroc"):
        if name in figures:
            figure = figures[name]
            click.echo(f"{title}: {name} {figure['value']:.4f} ({figure['low']:.4f}-{figure['high']:.4f})")
