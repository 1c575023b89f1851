"""``carina pull``: fetch films from an archive."""

from __future__ import annotations

import json
import threading
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from schema.tables import Lane
from worker.cli import EXIT_FAILED_FILMS
from worker.errors import CarinaError
from worker.settings import load_settings

if TYPE_CHECKING:
    from worker.intake.pull_selection import Hours, Selection
    from worker.peers.configuration import Source

_DAY = click.DateTime(["%Y-%m-%d"])


def _as_hours(_ctx: click.Context, _option: click.Parameter, text: str | None) -> Hours | None:
    from worker.intake.pull_selection import parse_hours

    try:
        return None if text is None else parse_hours(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option("--from", "source_name", metavar="NAME", help="The source, where CARINA_DELIVERY names more than one.")
@click.option("--accessions", type=click.Path(path_type=Path), help="A file with an accession number a line.")
@click.option("--since", "first", type=_DAY, help="Studies from this day on.")
@click.option("--until", "last", type=_DAY, help="Studies up to this day, included [the day of --since].")
@click.option(
    "--modality",
    "modalities",
    multiple=True,
    default=["CR", "DX"],
    show_default=True,
    help="Of a series; may be repeated.",
)
@click.option("--between", "hours", metavar="20:00-06:00", callback=_as_hours, help="Only ask in these hours.")
@click.option("--per-minute", type=click.FloatRange(min=0, min_open=True), help="Fetch so many films at most.")
@click.option(
    "--lane", type=click.Choice([str(lane) for lane in Lane]), default=Lane.ARCHIVE.value, show_default=True,
    help="Which queue the films join.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def pull(
    ctx: click.Context,
    *,
    source_name: str | None,
    accessions: Path | None,
    first: datetime | None,
    last: datetime | None,
    modalities: tuple[str, ...],
    hours: Hours | None,
    per_minute: float | None,
    lane: str,
    as_json: bool,
) -> None:
    """Fetch films from a DICOMweb archive into the spool and register them for the workers.

    What is registered already is not fetched again, so an interrupted pull is simply run again. Exit
    code 3: finished, but films could not be had.

    Example: carina pull --since 2026-11-01 --until 2026-11-30 --between 20:00-06:00 --per-minute 30
    """
    from worker.peers import require_packages

    require_packages()
    from worker.cli.display import PullDisplay
    from worker.intake.pull import Pull
    from worker.peers.configuration import load_peers
    from worker.queue.tickets import announcing
    from worker.service import open_database, stop_on_signals

    selection = _selection(accessions, first, last)
    settings = load_settings()
    source = _source(load_peers(settings.delivery).sources, source_name)
    stop = threading.Event()
    with (
        open_database(settings) as database,
        announcing(settings, database) as announce,
        PullDisplay(Console(stderr=as_json)) as display,
        stop_on_signals(stop.set),
    ):
        report = Pull(
            database,
            settings,
            source.peer,
            lane=lane,
            modalities=modalities,
            hours=hours,
            per_minute=per_minute,
            stop=stop,
            progress=display.update,
            announce=announce,
        ).run(selection)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        click.echo(
            f"{report.pulled} films pulled ({report.bytes / 1e6:.0f} MB), {report.known} known before, "
            f"{report.failed.total()} failed, {report.counts.work} to process; "
            f"{report.empty} of {report.searches} searches found nothing"
        )
    if not report.complete:
        raise CarinaError("Interrupted. Run the same command again to go on.")
    if report.failed:
        ctx.exit(EXIT_FAILED_FILMS)


def _selection(accessions: Path | None, first: datetime | None, last: datetime | None) -> Selection:
    from worker.intake.pull_selection import Selection, read_accessions

    if (accessions is None) == (first is None):
        raise click.UsageError("Give --accessions FILE or --since DAY.")
    if accessions is not None:
        if last is not None:
            raise click.UsageError("--until goes with --since.")
        return Selection(read_accessions(accessions))
    assert first is not None
    last = last or first
    if last < first:
        raise click.UsageError("--until is before --since.")
    return Selection(first=first.date(), last=last.date())


def _source(sources: dict[str, Source], name: str | None) -> Source:
    if name is None and len(sources) == 1:
        return next(iter(sources.values()))
    if name in sources:
        return sources[name]
    known = ", ".join(sources) or "none: write [source.NAME] with its url"
    raise CarinaError(f"Name the source with --from. The file that CARINA_DELIVERY names knows {known}.")
