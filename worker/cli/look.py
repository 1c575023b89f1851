"""Commands that look at the ledger and its results: status, failed, conflicts, report."""

from __future__ import annotations

import getpass
import json
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from schema.database import Database
from schema.tables import Lane
from worker.settings import load_settings

_FOLDER = click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to."
)
_SUBMISSION = click.option("--submission", type=int, help="Only this submission's films.")


@click.command()
@click.option("--live", is_flag=True, help="Show it anew every two seconds until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--fail-if-waiting-longer",
    "longest_wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Only look how long films wait; exit code 1 if one has been ready for longer. For health checks.",
)
@click.option("--lane", type=click.Choice([str(lane) for lane in Lane]), help="Only this lane's films count for that.")
def status(live: bool, as_json: bool, longest_wait: float | None, lane: str | None) -> None:
    """What waits, what is done, who works.

    Example: carina status --live
    """
    from rich.live import Live

    from worker.monitor.status import render, snapshot
    from worker.service import open_database

    if lane and longest_wait is None:
        raise click.UsageError("--lane goes with --fail-if-waiting-longer.")
    if longest_wait is not None and (live or as_json):
        raise click.UsageError("--fail-if-waiting-longer goes alone or with --lane.")
    settings = load_settings()
    with open_database(settings) as database:
        if longest_wait is not None:
            _check_wait(database, longest_wait, lane)
        elif as_json:
            click.echo(json.dumps(snapshot(database, settings), indent=2))
        elif live:
            with Live(render(snapshot(database, settings)), auto_refresh=False) as view:
                try:
                    while True:
                        time.sleep(2)
                        view.update(render(snapshot(database, settings)), refresh=True)
                except KeyboardInterrupt:
                    pass
        else:
            Console().print(render(snapshot(database, settings)))


def _check_wait(database: Database, longest_wait: float, only: str | None) -> None:
    """Say how long films wait; CarinaError if one of a lane (``only``, or any) waits longer than allowed."""
    from schema import queries
    from worker.errors import CarinaError
    from worker.monitor.status import duration

    with database.read() as connection:
        lanes = queries.backlog(connection)
    waits = {name: lane.oldest_ready_seconds or 0.0 for name, lane in lanes.items() if only in (None, name)}
    words = ", ".join(f"{name} {duration(wait)}" for name, wait in waits.items())
    if max(waits.values()) > longest_wait:
        raise CarinaError(
            f"A film has been ready for longer than {duration(longest_wait)} (oldest: {words}). "
            "Look who works: carina status"
        )
    click.echo(f"Oldest ready film: {words}.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--limit", type=int, default=200, show_default=True, help="At most so many, newest first.")
def failed(as_json: bool, limit: int) -> None:
    """Which films failed, at which stage, why, and what to do next.

    Names the files, so show it only to those who may see them.

    Example: carina failed
    """
    from schema import queries
    from worker.errors import CODES, advice, sentence
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database, database.read() as connection:
        rows = [row._asdict() for row in queries.failed_films(connection, limit=limit, roots=settings.root_folders)]
    for row in rows:
        row["stage"] = row["stage"] or CODES[row["code"]].stage.value
        row["sentence"] = sentence(row["code"], row.pop("detail"))
        row["advice"] = advice(row["code"])
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    if not rows:
        click.echo("No film has failed.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "file", "stage", "what is wrong", "what to do next"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(
            str(row["job_id"] or ""),
            row["source"],
            row["stage"],
            f"{row['code']}: {row['sentence']}",
            row["advice"],
        )
    Console().print(table)


@click.command()
@click.argument("jobs", nargs=-1, type=int)
@click.option("--code", "codes", multiple=True, help="All films that failed with this code; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="All failed films.")
def retry(jobs: tuple[int, ...], codes: tuple[str, ...], everything: bool) -> None:
    """Put failed films back into the queue: by job number, by code, or all.

    Example: carina retry --code SOURCE_MISSING
    """
    from worker.queue.ledger import retry as retry_jobs
    from worker.queue.tickets import announcing
    from worker.service import open_database

    if everything == bool(jobs or codes):
        raise click.UsageError("Name jobs, or --code CODE, or --all.")
    settings = load_settings()
    with open_database(settings) as database, announcing(settings, database) as announce:
        count = retry_jobs(database, ids=jobs or None, codes=codes or None, actor=getpass.getuser())
        announce(count)
    click.echo(f"{count} films are ready again.")


@click.group()
def conflicts() -> None:
    """Files that carry a known film's UID and another picture.

    Example: carina conflicts list
    """


@conflicts.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_all(as_json: bool) -> None:
    """All files in conflict.

    Example: carina conflicts list
    """
    from worker.intake.conflicts import list_conflicts
    from worker.service import open_database

    with open_database(load_settings()) as database:
        found = list_conflicts(database)
    if as_json:
        click.echo(json.dumps([conflict.to_json() for conflict in found], indent=2))
        return
    for conflict in found:
        click.echo(f"{conflict.arrival_id}  {conflict.source}")
    if not found:
        click.echo("No file is in conflict.")


@conflicts.command()
@click.argument("arrival", type=int)
def show(arrival: int) -> None:
    """The file ARRIVAL beside the one that holds its place.

    Example: carina conflicts show 17
    """
    from worker.intake.conflicts import show as show_conflict
    from worker.service import open_database

    with open_database(load_settings()) as database:
        click.echo(json.dumps(show_conflict(database, arrival).to_json(), indent=2))


@conflicts.command()
@click.argument("arrival", type=int)
def accept(arrival: int) -> None:
    """Let the file ARRIVAL take the film's place; it is processed anew.

    Example: carina conflicts accept 17
    """
    from worker.intake.conflicts import accept as accept_conflict
    from worker.queue.tickets import announcing
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database, announcing(settings, database) as announce:
        accept_conflict(database, arrival, actor=getpass.getuser())
        announce(1)
    click.echo("Accepted: the film waits to be processed anew.")


@click.command()
@_FOLDER
@_SUBMISSION
def report(out: Path, submission: int | None) -> None:
    """Write one self-contained HTML page with overlays, flags and findings.

    Example: carina report --out /tmp/report
    """
    from worker.cli.work import make_report

    click.echo(f"Report: {make_report(load_settings(), out, submission)}")
