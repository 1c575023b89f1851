"""``carina deliver``: send results to the hospital's systems."""

from __future__ import annotations

import getpass
import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from worker.cli import EXIT_FAILED_FILMS
from worker.settings import load_settings

if TYPE_CHECKING:
    from worker.results.delivery.overview import Standing

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])


def _utc(moment: datetime | None) -> datetime | None:
    """A time as a person types it, in this machine's zone, as UTC."""
    return None if moment is None else moment.astimezone(UTC)


@click.group(invoke_without_command=True)
@click.option("--once", is_flag=True, help="Send what can be sent now, then end.")
@click.option("--destination", "only", multiple=True, metavar="NAME", help="Only to this one; may be repeated.")
@click.option(
    "--backfill", type=_DAY, metavar="SINCE", help="Also results finished since this day, before it was set up."
)
@_JSON
@click.pass_context
def deliver(ctx: click.Context, *, once: bool, only: tuple[str, ...], backfill: datetime | None, as_json: bool) -> None:
    """Send results to the destinations of CARINA_DELIVERY, by C-STORE or STOW-RS.

    What cannot be sent stays and is tried again, whatever the night does; a destination that is down
    holds up no other. Exit code of --once: 3 if something is still to be sent or has failed.

    Example: carina deliver --once --backfill 2026-11-01
    """
    if ctx.invoked_subcommand is not None:
        if once or only or backfill or as_json:
            raise click.UsageError("Options of carina deliver do not go with a command of it.")
        return
    from worker.peers import require_packages

    require_packages()
    from worker.results.delivery.overview import standings
    from worker.results.delivery.service import deliver as deliver_all
    from worker.service import open_database, stop_on_signals

    settings = load_settings()
    stop = threading.Event()
    with open_database(settings) as database, stop_on_signals(stop.set):
        report = deliver_all(
            database,
            settings,
            actor=getpass.getuser(),
            stop=stop,
            once=once,
            only=only,
            backfill=_utc(backfill),
            say=lambda line: click.echo(line, err=as_json),
        )
        left = [one for one in standings(database) if one.name in report.destinations]
    if as_json:
        click.echo(json.dumps({**report.to_json(), "left": [one.to_json() for one in left]}, indent=2))
    else:
        for name, tally in report.destinations.items():
            click.echo(f"{name}: {tally.sent} sent, {tally.delayed} put off, {tally.failed} given up")
    if once and any(one.open or one.counts.get("failed") for one in left):
        if not as_json:
            click.echo("Something is left: carina deliver status", err=True)
        ctx.exit(EXIT_FAILED_FILMS)


@deliver.command()
@_JSON
@click.option(
    "--fail-if-waiting-longer",
    "longest_wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Exit code 1 if an output has been waiting for longer. For health checks.",
)
def status(as_json: bool, longest_wait: float | None) -> None:
    """What waits for which destination, since when, and what is wrong.

    Example: carina deliver status
    """
    from worker.errors import CarinaError
    from worker.results.delivery.overview import standings
    from worker.service import open_database

    with open_database(load_settings()) as database:
        found = standings(database)
    late = [one.name for one in found if (one.oldest_open_seconds or 0.0) > (longest_wait or 0.0)]
    if longest_wait is not None and late:
        raise CarinaError(f"Outputs have been waiting for too long: {', '.join(late)}. Run: carina deliver status")
    if as_json:
        click.echo(json.dumps([one.to_json() for one in found], indent=2))
    elif found:
        Console().print(_table(found))
    else:
        click.echo("No destination is known yet: carina deliver reads them from the file that CARINA_DELIVERY names.")


def _table(found: list[Standing]) -> Table:
    from worker.monitor.status import duration

    table = Table(box=None, pad_edge=False)
    for heading in ("destination", "waits", "oldest", "sent", "failed", ""):
        table.add_column(
            heading, overflow="fold", justify="right" if heading in ("waits", "sent", "failed") else "left"
        )
    for one in found:
        oldest = "" if one.oldest_open_seconds is None else duration(one.oldest_open_seconds)
        again = one.tried_again_in_seconds
        words = f"{one.words} Tried again in {duration(again)}." if again is not None else one.words
        table.add_row(
            one.name, str(one.open), oldest, str(one.counts.get("sent", 0)), str(one.counts.get("failed", 0)), words
        )
    return table


@deliver.command()
@click.option("--destination", metavar="NAME", help="Only to this one.")
@click.option("--job", "jobs", type=int, multiple=True, help="Only the results of this job; may be repeated.")
@click.option("--since", type=_DAY, help="Only results finished since this day.")
@click.option(
    "--state",
    "states",
    type=click.Choice(["failed", "sent", "abandoned"]),
    multiple=True,
    default=["failed"],
    show_default=True,
    help="Which to send again; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="All of that state.")
def resend(
    *,
    destination: str | None,
    jobs: tuple[int, ...],
    since: datetime | None,
    states: tuple[str, ...],
    everything: bool,
) -> None:
    """Send again: what failed for good or, if asked for, what was sent or abandoned.

    Objects keep their UIDs, so a system that has one already recognises it.

    Example: carina deliver resend --destination pacs
    """
    from worker.results.delivery.overview import resend as resend_deliveries
    from worker.service import open_database

    if everything == bool(destination or jobs or since):
        raise click.UsageError("Name --destination, --job or --since, or --all.")
    with open_database(load_settings()) as database:
        count = resend_deliveries(
            database,
            actor=getpass.getuser(),
            states=states,
            destination=destination,
            jobs=jobs,
            since=_utc(since),
        )
    click.echo(f"{count} outputs are ready to be sent again.")


@deliver.command()
@click.argument("name", metavar="DESTINATION")
def test(name: str) -> None:
    """Ask a DESTINATION, or a source, whether it would talk to us; nothing is stored.

    A DICOM node is asked with a C-ECHO and for the kinds of objects it takes, a DICOMweb service with a search.

    Example: carina deliver test pacs
    """
    from worker.peers import require_packages

    require_packages()
    from worker.results.delivery.service import check_destination

    for line in check_destination(load_settings(), name):
        click.echo(line)
