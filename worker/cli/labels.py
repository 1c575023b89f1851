"""Commands for what readers say of films: labels import, masks, show, count."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from schema.tables import LabelSource
from worker.cli import EXIT_FAILED_FILMS
from worker.settings import load_settings, site_key

if TYPE_CHECKING:
    from worker.monitor.label_import import ImportReport
    from worker.monitor.label_maps import MapsReport

_LINES = 20
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_POLICIES = ("majority", "any", "latest")


def _recording(function: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that record what readers said."""
    for option in (
        _JSON,
        click.option("--skip-bad", is_flag=True, help="Leave wrong ones out and record the rest."),
        click.option("--dry-run", is_flag=True, help="Only say what would be recorded."),
        click.option(
            "--labelled-at", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="When (UTC); default: now."
        ),
    ):
        function = option(function)
    return function


@click.group()
def labels() -> None:
    """What readers say of films: performance is told by it. Nothing is ever overwritten.

    Example: carina labels count
    """


@labels.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--reader", help="Pseudonym of the reader, where the file has no column reader.")
@click.option(
    "--source",
    type=click.Choice([str(source) for source in LabelSource]),
    help="Why these films were labelled, where the file has no column source.",
)
@click.option(
    "--convention",
    type=click.Choice(["plain", "vindr", "chexpert"]),
    default="plain",
    show_default=True,
    help="vindr: the tables of VinDr-PCXR. chexpert: an empty cell says absent.",
)
@click.option(
    "--marks",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="With vindr: the table with a row for each place marked.",
)
@click.option(
    "--policy",
    type=click.Choice(_POLICIES),
    help="Record what the file's readers say together, not what each of them says.",
)
@_recording
def import_file(
    *,
    file: Path,
    reader: str | None,
    source: str | None,
    convention: str,
    marks: Path | None,
    policy: str | None,
    labelled_at: datetime | None,
    dry_run: bool,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Record the labels of FILE, a table in CSV or Parquet.

    A column names the film: sop_instance_uid, instance_key, accession_number (if it names one film
    only) or file_name. Findings stand in a column each, or in the columns finding and value. A cell is
    1 (present), 0 (absent), -1 (uncertain) or empty. The columns reader, source and labelled_at are
    taken where they are there. Nothing is recorded where a line is wrong. Exit code 3: films that are
    not known here, or lines left out.

    Example: carina labels import labels.csv --reader reader-1 --source consecutive
    """
    from worker.monitor.label_files import CONVENTIONS, Defaults
    from worker.monitor.label_import import import_labels
    from worker.monitor.labels import ReaderPolicy
    from worker.service import open_database

    if marks is not None and not CONVENTIONS[convention].marked:
        raise click.UsageError("--marks goes with --convention vindr.")
    settings = load_settings()
    with open_database(settings) as database:
        report = import_labels(
            database,
            site_key(settings),
            file,
            convention=CONVENTIONS[convention],
            defaults=Defaults(reader, LabelSource(source) if source else None, _utc(labelled_at)),
            policy=ReaderPolicy(policy) if policy else None,
            marks=marks,
            dry_run=dry_run,
            skip_bad=skip_bad,
            actor=getpass.getuser(),
        )
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _say_import(report, dry_run)
    _exit([f"line {each.line}" for each in report.problems], report.unknown_films, skip_bad=skip_bad)


@labels.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--reader", required=True, help="Pseudonym of the reader.")
@click.option(
    "--source",
    required=True,
    type=click.Choice([str(source) for source in LabelSource]),
    help="Why these films were drawn on.",
)
@_recording
def masks(
    *,
    folder: Path,
    reader: str,
    source: str,
    labelled_at: datetime | None,
    dry_run: bool,
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Record the label maps of FOLDER, called <SOP Instance UID>.png, on the films' own grid.

    8-bit pictures with the values of carina export --format png: correct those and give them back.

    Example: carina labels masks corrected --reader reader-1 --source random
    """
    from worker.monitor.label_maps import import_maps
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        report = import_maps(
            database,
            site_key(settings),
            folder,
            reader=reader,
            source=LabelSource(source),
            labelled_at=_utc(labelled_at),
            dry_run=dry_run,
            skip_bad=skip_bad,
            actor=getpass.getuser(),
        )
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        _say_maps(report, dry_run)
    _exit([f"picture {place}" for place, _ in report.problems], len(report.unknown), skip_bad=skip_bad)


@labels.command()
@click.argument("film")
@_JSON
def show(film: str, as_json: bool) -> None:
    """All that was ever said of FILM, a SOP Instance UID or an instance key.

    Example: carina labels show 1.2.840.113619.2.5.1
    """
    from worker.monitor.label_counts import labels_of
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database, database.read() as connection:
        found = labels_of(connection, site_key(settings), film)
    rows: list[dict[str, Any]] = [
        {
            "finding": item.finding,
            "value": str(item.value),
            "reader": item.reader,
            "source": str(item.source),
            "labelled_at": item.labelled_at.isoformat(timespec="seconds"),
        }
        for item in found
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("Nothing was said of this film yet.")
    else:
        _print_table(list(rows[0]), [list(row.values()) for row in rows])


@labels.command()
@click.option("--readers", type=click.Choice(_POLICIES), help="What several readers say together.")
@_JSON
def count(readers: str | None, as_json: bool) -> None:
    """How many films have labels, by finding, reader and source.

    Example: carina labels count
    """
    from worker.monitor.label_counts import count_labels
    from worker.monitor.labels import reader_policy
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database, database.read() as connection:
        found = count_labels(connection, reader_policy(readers or settings.readers))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    click.echo(f"{found.films} labelled films, {found.read} of them with a result; {found.maps} label maps.")
    for what, counts in (("reader", found.readers), ("source", found.sources)):
        for name, number in sorted(counts.items()):
            click.echo(f"  {what} {name}: {number} labels")
    if found.findings:
        _print_table(
            ["finding", "present", "absent", "uncertain", "counting"],
            [[str(value) for value in each.to_json().values()] for each in found.findings],
        )


def _utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time else None


def _say_import(report: ImportReport, dry_run: bool) -> None:
    recorded = "recorded" if report.written else "would be recorded" if dry_run else "not recorded"
    click.echo(f"{report.rows} rows, {report.labels} labels of known films: {report.new} new, {recorded}.")
    if report.blank or report.others:
        click.echo(f"{report.blank} empty cells, {report.others} rows about findings that are not known here.")
    if report.ignored:
        click.echo(f"Columns not used: {', '.join(report.ignored)}")
    if report.unknown_films:
        lines = ", ".join(map(str, report.unknown_lines[:_LINES]))
        more = ", ..." if len(report.unknown_lines) > _LINES else ""
        click.echo(f"{report.unknown_films} films are not known here: lines {lines}{more}")
    _say_problems([(f"line {each.line}", each.what) for each in report.problems], report.written, dry_run)


def _say_maps(report: MapsReport, dry_run: bool) -> None:
    recorded = "recorded" if report.written else "would be recorded" if dry_run else "not recorded"
    click.echo(f"{report.pictures} pictures: {report.new} new, {recorded}.")
    if report.unknown:
        places = ", ".join(map(str, report.unknown[:_LINES]))
        click.echo(f"{len(report.unknown)} films are not known here: pictures {places}, by name")
    _say_problems([(f"picture {place}", what) for place, what in report.problems], report.written, dry_run)


def _say_problems(problems: list[tuple[str, str]], written: bool, dry_run: bool) -> None:
    for where, what in problems[:_LINES]:
        click.echo(f"{where}: {what}", err=True)
    if len(problems) > _LINES:
        click.echo(f"... and {len(problems) - _LINES} more; --json tells all.", err=True)
    if problems and not written and not dry_run:
        click.echo("Nothing was recorded. Mend these, or leave them out with --skip-bad.", err=True)


def _exit(problems: list[str], unknown: int, *, skip_bad: bool) -> None:
    if problems and not skip_bad:
        raise SystemExit(1)
    if problems or unknown:
        raise SystemExit(EXIT_FAILED_FILMS)


def _print_table(headings: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
