"""``carina evaluate``: how good is a network, or a bundle, on films nobody trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from schema.bundle import MANIFEST_NAME
from trainer.commands import TrainerCommand

#: Summaries within the summary of a bundle.
_PARTS_OF_A_BUNDLE = ("masks", "findings", "stress", "shortcuts")


@click.command(cls=TrainerCommand)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN|BUNDLE...")
@click.option("--data", metavar="PATH", help="Other films than the run's own: a folder, its dataset.toml, or phantoms.")
@click.option("--layout", default="", metavar="NAME", help="The layout of --data, where it has no dataset.toml.")
@click.option("--part", default="test", show_default=True, help="train, validation, test, or all films of --data.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the results go; a run's own folder if not given.")
@click.option("--stress", is_flag=True, help="Also the stress table of a bundle: its films turned, inverted, ...")
@click.option("--shortcuts", is_flag=True, help="Also what a bundle could know without looking at the lungs.")
@click.option("--inside", is_flag=True, help="Also what goes on inside a run's network that segments, in inside/.")
@click.option(
    "--films",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most so many films of each part for --stress and --shortcuts, drawn at random.",
)
@click.option(
    "--film-size",
    default="",
    metavar="ROWS,COLUMNS",
    help="For --shortcuts: the columns of the data set's table with the films' size before they were resized.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and nothing else.")
def evaluate(
    *,
    paths: tuple[Path, ...],
    data: str | None,
    layout: str,
    part: str,
    out: Path | None,
    stress: bool,
    shortcuts: bool,
    inside: bool,
    films: int | None,
    film_size: str,
    as_json: bool,
) -> None:
    """Measure a finished training or a bundle through the worker's own code.

    Several runs are measured as an ensemble, the average of their probabilities. A bundle needs
    --data and --out. Writes report.md, summary.json, CSV tables and figures; films.csv names the films'
    files, the others name nobody.

    \b
    Example: carina evaluate runs/holste
    Example: carina evaluate runs/novikov --inside
    Example: carina evaluate bundles/chest-1 --data /data/films --part all --out evaluation
    Example: carina evaluate bundles/chest-1 --data /data/films --out evaluation --stress --shortcuts

    Exit code: 0 measured, 1 could not be measured (the reason is said), 2 wrong usage.
    """
    bundle = (paths[0] / MANIFEST_NAME).is_file()
    if bundle and len(paths) > 1:
        raise click.UsageError("Only runs are averaged: give one bundle.")
    if bundle and (data is None or out is None):
        raise click.UsageError("A bundle has no films of its own and no place for results: give --data and --out.")
    if len(paths) > 1 and out is None:
        raise click.UsageError("Several runs have no common folder for results: give --out.")
    _check_extras(bundle, len(paths), stress=stress, shortcuts=shortcuts, inside=inside, films=films, sizes=film_size)
    if data is None and (layout or part == "all"):
        raise click.UsageError("--layout and --part all are for --data.")
    columns = tuple(column.strip() for column in film_size.split(",")) if film_size else ()
    if columns and len(columns) != 2:
        raise click.UsageError("--film-size takes two columns: that of the rows and that of the columns.")
    if bundle and data is not None and out is not None:
        where = out
        summary = _measure_bundle(paths[0], (data, layout, part), out, _Extras(stress, shortcuts, films or 0, columns))
    else:
        summary, where = _measure_runs(paths, (data, layout, part), out, inside=inside)
    if as_json:
        from trainer.evaluation.tables import as_json as text_of

        click.echo(text_of(summary))
        return
    for name in ("", *_PARTS_OF_A_BUNDLE):
        results = summary.get(name) if name else summary
        if results and "figures" in results:
            _tell(name, results)
    click.echo(f"Report: {where / 'report.md'}. Research use, not a medical device.")


def _check_extras(
    bundle: bool, paths: int, *, stress: bool, shortcuts: bool, inside: bool, films: int | None, sizes: str
) -> None:
    """Refuse what only a bundle, or only a single run, can be asked."""
    if (stress or shortcuts) and not bundle:
        raise click.UsageError("--stress and --shortcuts measure a bundle: package the run first (carina package).")
    if inside and (bundle or paths > 1):
        raise click.UsageError("--inside looks into one run at a time.")
    if (films and not (stress or shortcuts)) or (sizes and not shortcuts):
        raise click.UsageError("--films is for --stress and --shortcuts, --film-size for --shortcuts.")


class _Extras(NamedTuple):
    """What was asked for besides masks and findings."""

    stress: bool
    shortcuts: bool
    films: int
    size_columns: tuple[str, ...]


def _measure_bundle(bundle: Path, films: tuple[str, str, str], out: Path, asked: _Extras) -> dict[str, Any]:
    """The summary; ``films`` are data, layout and part."""
    from rich.console import Console

    from trainer.data.description import load_dataset
    from trainer.evaluation.evaluate import Extras, evaluate_bundle
    from trainer.evaluation.shortcuts import original_sizes
    from trainer.training.progress import progress_for

    data, layout, part = films
    teller = progress_for(Console(stderr=True))
    try:
        dataset = load_dataset(data, layout)
        columns = asked.size_columns
        sizes = original_sizes(data, layout, (columns[0], columns[1])) if columns else None
        extras = Extras(asked.stress, asked.shortcuts, sizes, asked.films)
        return evaluate_bundle(bundle, dataset, part, out, extras=extras, progress=teller.prepare)
    finally:
        teller.close()


def _measure_runs(
    paths: tuple[Path, ...], films: tuple[str | None, str, str], out: Path | None, *, inside: bool
) -> tuple[dict[str, Any], Path]:
    """The summary, and where the report is; ``films`` are data, layout and part."""
    from rich.console import Console

    from trainer.data.description import load_dataset
    from trainer.evaluation.evaluate import evaluate_runs, own_films
    from trainer.evaluation.films import films_from
    from trainer.training.progress import progress_for
    from trainer.training.run_folder import load_run

    data, layout, part = films
    teller = progress_for(Console(stderr=True))
    try:
        dataset = load_dataset(data, layout) if data is not None else None
        runs = [load_run(path) for path in paths]
        where = out or runs[0].folder / "evaluation" / part
        source = own_films if dataset is None else films_from(dataset, where / "cache", teller.prepare)
        summary = evaluate_runs(runs, part, where, films=source, progress=teller.prepare)
        if inside:
            from trainer.evaluation.inside_report import write_inside

            write_inside(runs[0], source(runs[0], part), where / "inside", teller.prepare)
        return summary, where
    finally:
        teller.close()


def _tell(name: str, results: Mapping[str, Any]) -> None:
    click.echo(f"{name + ': ' if name else ''}{results['films']} films, {results['part']}")
    width = max([24, *(len(figure) for figure in results["figures"])])
    for figure, value in results["figures"].items():
        number, low = value["value"], value.get("low")
        if number is None:
            continue
        shown = f"{number} of {value['of']}" if "of" in value else f"{number:.3f}"
        to = "-" if low is None or low >= 0 else " to "
        interval = f" ({low:.3f}{to}{value['high']:.3f})" if low is not None else ""
        row = f", {value['row']}" if "row" in value else ""
        click.echo(f"  {figure.replace('_', ' '):<{width}} {shown}{interval}{row}")
