"""The command that puts shard databases together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from worker.settings import load_settings

if TYPE_CHECKING:
    from worker.merge.merging import MergeReport


@click.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def merge(files: tuple[Path, ...], as_json: bool) -> None:
    """Merge shard databases (FILE...) into the database of these settings.

    The files are only read. Merging one again, or after an interruption, adds what is missing
    and nothing else. Films that a shard did not finish are ready here.

    Example: carina merge ~/.carina/shards/carina-*-of-16.sqlite
    """
    from worker.cli.display import MergeDisplay
    from worker.merge.merging import merge as merge_file
    from worker.service import open_database

    settings = load_settings()
    console = Console(stderr=as_json)
    reports: list[MergeReport] = []
    with open_database(settings) as database, MergeDisplay(console) as display:
        for number, file in enumerate(files, start=1):
            display.next_file(number, len(files))
            reports.append(merge_file(database, settings, file, progress=display.update))
    if as_json:
        click.echo(json.dumps([report.to_json() for report in reports], indent=2))
    else:
        console.print(_table(reports))
    waiting = sum(report.waiting for report in reports)
    if waiting and not as_json:
        click.echo(
            f"{waiting} films were not finished in their shards. Run those shards again and merge them again, "
            "or let a worker of this database read the films: carina worker"
        )


#: Column → what it counts.
_COLUMNS = {
    "films": "new films",
    "completed": "completed",
    "unchanged": "unchanged",
    "results": "results",
    "aliases": "aliases",
    "conflicts": "conflicts",
    "files": "other files",
    "left_out": "left out",
    "waiting": "not finished",
}


def _table(reports: list[MergeReport]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for title in _COLUMNS.values():
        table.add_column(title, justify="right")
    for report in reports:
        values = report.to_json()
        table.add_row(report.file.name, *(str(values[name]) for name in _COLUMNS))
    table.caption = "Research use, not a medical device."
    table.caption_justify = "left"
    return table
