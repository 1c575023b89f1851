"""``carina evaluate``: how good is a network, or a bundle, on films nobody trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from schema.bundle import MANIFEST_NAME
from trainer.commands import TrainerCommand


@click.command(cls=TrainerCommand)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN|BUNDLE...")
@click.option("--data", metavar="PATH", help="Other films than the run's own: a folder, its dataset.toml, or phantoms.")
@click.option("--layout", default="", metavar="NAME", help="The layout of --data, where it has no dataset.toml.")
@click.option("--part", default="test", show_default=True, help="train, validation, test, or all films of --data.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the results go; a run's own folder if not given.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and nothing else.")
def evaluate(
    *, paths: tuple[Path, ...], data: str | None, layout: str, part: str, out: Path | None, as_json: bool
) -> None:
    """Measure a finished training or a bundle through the worker's own code.

    Several runs are measured as an ensemble, the average of their probabilities. A bundle needs
    --data and --out. Writes report.md, summary.json, CSV tables and figures; films.csv names the films'
    files, the others name nobody.

    \b
    Example: carina evaluate runs/holste
    Example: carina evaluate bundles/chest-1 --data /data/films --part all --out evaluation

    Exit code: 0 measured, 1 could not be measured (the reason is said), 2 wrong usage.
    """
    bundle = (paths[0] / MANIFEST_NAME).is_file()
    if bundle and len(paths) > 1:
        raise click.UsageError("Only runs are averaged: give one bundle.")
    if bundle and (data is None or out is None):
        raise click.UsageError("A bundle has no films of its own and no place for results: give --data and --out.")
    if len(paths) > 1 and out is None:
        raise click.UsageError("Several runs have no common folder for results: give --out.")
    if data is None and (layout or part == "all"):
        raise click.UsageError("--layout and --part all are for --data.")
    summary, where = _measure(paths, data, layout, part, out)
    if as_json:
        from trainer.evaluation.tables import as_json as text_of

        click.echo(text_of(summary))
        return
    for name, results in (("", summary), ("masks", summary.get("masks")), ("findings", summary.get("findings"))):
        if results and "figures" in results:
            _tell(name, results)
    click.echo(f"Report: {where / 'report.md'}. Research use, not a medical device.")


def _measure(
    paths: tuple[Path, ...], data: str | None, layout: str, part: str, out: Path | None
) -> tuple[dict[str, Any], Path]:
    """The summary, and where the report is."""
    from rich.console import Console

    from trainer.data.description import load_dataset
    from trainer.evaluation.evaluate import evaluate_bundle, evaluate_runs, own_films
    from trainer.evaluation.films import films_from
    from trainer.training.progress import progress_for
    from trainer.training.run_folder import load_run

    teller = progress_for(Console(stderr=True))
    try:
        dataset = load_dataset(data, layout) if data is not None else None
        if dataset is not None and out is not None and (paths[0] / MANIFEST_NAME).is_file():
            return evaluate_bundle(paths[0], dataset, part, out, progress=teller.prepare), out
        runs = [load_run(path) for path in paths]
        where = out or runs[0].folder / "evaluation" / part
        films = own_films if dataset is None else films_from(dataset, where / "cache", teller.prepare)
        return evaluate_runs(runs, part, where, films=films, progress=teller.prepare), where
    finally:
        teller.close()


def _tell(name: str, results: Mapping[str, Any]) -> None:
    click.echo(f"{name + ': ' if name else ''}{results['films']} films, {results['part']}")
    for figure, value in results["figures"].items():
        number, low = value["value"], value.get("low")
        if number is None:
            continue
        shown = f"{number} of {value['of']}" if "of" in value else f"{number:.3f}"
        interval = f" ({low:.3f}-{value['high']:.3f})" if low is not None else ""
        click.echo(f"  {figure.replace('_', ' '):<24} {shown}{interval}")
