"""``carina search``: which settings of a recipe are best on films of yours."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from trainer.commands import TrainerCommand
from trainer.commands.train import as_changes


@click.command(cls=TrainerCommand)
@click.argument("recipe")
@click.option("--data", metavar="DIR", required=True, help="Films: a directory, its dataset.toml, or phantoms.")
@click.option("--layout", default="", metavar="NAME", help="How the directory is laid out, if it has no dataset.toml.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", required=True, help="The results."
)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", callback=as_changes, help="Change a setting.")
@click.option("--trials", type=click.IntRange(1), help="Trials in all, those done before included; the recipe's own.")
@click.option("--study", default="", metavar="URL", help="Database for the study; default: study.db in --out.")
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True, help="GPUs to train on.")
@click.option("--threads", type=click.IntRange(1), help="Threads of a CPU; default: one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def search(
    ctx: click.Context,
    *,
    recipe: str,
    data: str,
    layout: str,
    out: Path,
    changes: dict[str, Any],
    trials: int | None,
    study: str,
    devices: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Search the settings of RECIPE (one with a [search]) by cross-validation, and write the best as a recipe.

    A search that was cut off, however hard, goes on when the same command is given again; --trials adds more. What was
    tried is kept in SQL.

    \b
    Example: carina search wang-search --data /data/scr --layout jsrt_scr --out runs/search

    Exit code: 0 searched, 1 no trial succeeded or the search could not begin, 2 wrong usage.
    """
    from trainer.data.description import load_dataset
    from trainer.search import run_search
    from trainer.training.progress import LineProgress, progress_for

    if threads:
        import torch

        torch.set_num_threads(threads)
    dataset = load_dataset(data, layout)
    progress = progress_for(Console(stderr=True)) if devices == 1 else LineProgress()
    try:
        result = run_search(
            recipe,
            dataset,
            out,
            changes=changes,
            trials=trials or 0,
            study=study,
            progress=progress,
            devices=devices,
        )
    except KeyboardInterrupt:
        again = ["carina", "search", recipe, "--data", data, "--out", str(out)]
        again += ["--layout", layout] if layout else []
        again += ["--trials", str(trials)] if trials else []
        for key, value in changes.items():
            again += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        # The URL of a database may hold a password.
        more = " with the same --study" if study else ""
        raise click.ClickException(f"Stopped. To go on{more}: {shlex.join(again)}") from None
    finally:
        progress.close()
    click.echo((out / "search.json").read_text("utf-8") if as_json else result.as_table())
    if not as_json:
        click.echo(f"Search: {out / 'search.md'}")
        if result.best:
            click.echo(f"Best settings: {out / 'best.toml'}; next: carina train {out / 'best.toml'}")
    if result.best is None:
        ctx.exit(1)
