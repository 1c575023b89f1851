"""What needs a person: alerts."""

from __future__ import annotations

import getpass
import json
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from worker.settings import load_settings


@click.group(invoke_without_command=True)
@click.option("--all", "closed", is_flag=True, help="Also those that are over.")
@click.option("--update", is_flag=True, help="First look at queue, disk, labels and nights.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def alerts(ctx: click.Context, *, closed: bool, update: bool, as_json: bool) -> None:
    """What needs a person: open alerts, the newest first.

    Workers look every minute, and at drift every four hours; docs/monitoring.md lists the rules. Exit code 3
    if an alert is open that nobody has acknowledged.

    Example: carina alerts
    """
    if ctx.invoked_subcommand is not None:
        if closed or update or as_json:
            raise click.UsageError("Options of carina alerts do not go with a command of it.")
        return
    show(ctx, closed=closed, update=update, as_json=as_json)


@alerts.command(name="list")
@click.option("--all", "closed", is_flag=True, help="Also those that are over.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_command(ctx: click.Context, *, closed: bool, as_json: bool) -> None:
    """The same as carina alerts.

    Example: carina alerts list --all
    """
    show(ctx, closed=closed, update=False, as_json=as_json)


@alerts.command()
@click.argument("alert_id", type=int, metavar="ID")
@click.option("--accept", is_flag=True, help="This is how it is from now on: close it and learn anew what is usual.")
def acknowledge(alert_id: int, *, accept: bool) -> None:
    """Say that you know of alert ID; it stays open until the trouble is over.

    Example: carina alerts acknowledge 12 --accept
    """
    from worker.monitor.alerts import acknowledge as note
    from worker.service import open_database

    with open_database(load_settings()) as database:
        note(database, alert_id, actor=getpass.getuser(), accept=accept)
    click.echo(f"Alert {alert_id} is {'closed, and what is usual is learned anew' if accept else 'acknowledged'}.")


def show(ctx: click.Context, *, closed: bool, update: bool, as_json: bool) -> None:
    """Print alerts; exit code 3 if one is open and nobody knows."""
    from worker.cli import EXIT_FAILED_FILMS
    from worker.monitor.alert_rules import RULES
    from worker.monitor.alerts import list_alerts, look_at_ledger, look_at_nights
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        if update:
            look_at_ledger(database, settings)
            look_at_nights(database)
        with database.read() as connection:
            rows = list_alerts(connection, closed=closed)
    if as_json:
        click.echo(
            json.dumps([{name: _plain(value) for name, value in row._mapping.items()} for row in rows], indent=2)
        )
    elif not rows:
        click.echo("No alert is open.")
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("id", "since (UTC)", "state", "rule", "subject", "what"):
            table.add_column(heading)
        for row in rows:
            state = "closed" if row.closed_at else "acknowledged" if row.acknowledged_at else "open"
            table.add_row(str(row.id), f"{row.opened_at:%Y-%m-%d %H:%M}", state, row.rule, row.subject, row.detail)
        Console().print(table)
        for rule in sorted({row.rule for row in rows if row.closed_at is None and row.rule in RULES}):
            click.echo(f"{rule}: {RULES[rule].meaning} {RULES[rule].advice}")
    if any(row.closed_at is None and row.acknowledged_at is None for row in rows):
        ctx.exit(EXIT_FAILED_FILMS)


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
