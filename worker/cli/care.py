"""Commands for the machine itself: database, doctor, info."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from schema.database import Database
from worker.settings import load_settings, site_key


@click.group()
def db() -> None:
    """Make or upgrade the database.

    Example: carina db upgrade
    """


@db.command()
def upgrade() -> None:
    """Bring the tables and views to this program's version; back the database up first.

    Example: carina db upgrade
    """
    settings = load_settings()
    site_key(settings)
    database = Database(settings.url)
    before = database.version()
    database.upgrade()
    click.echo(f"Database version: {before or 'empty'} → {database.version()}")
    database.close()


@db.command()
@click.argument("revision")
@click.confirmation_option(prompt="Rows of tables that the older version does not know are deleted. Go on?")
def downgrade(revision: str) -> None:
    """Take the tables back to an earlier REVISION ("base" removes them all).

    Example: carina db downgrade 0001
    """
    database = Database(load_settings().url)
    database.downgrade(revision)
    click.echo(f"Database version: {database.version() or 'empty'}")
    database.close()


@db.command()
def dictionary() -> None:
    """Print what every table, view and column means, in Markdown.

    Example: carina db dictionary > docs/data-dictionary.md
    """
    from schema.dictionary import data_dictionary

    click.echo(data_dictionary(), nl=False)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this machine and say what to mend; exit code 1 if something must be mended.

    Example: carina doctor
    """
    from worker.monitor.doctor import examine

    checks = examine(load_settings())
    if as_json:
        click.echo(json.dumps([check.to_json() for check in checks], indent=2))
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("", "check", "finding", "what to do"):
            table.add_column(heading, overflow="fold")
        marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]fail[/]"}
        for check in checks:
            table.add_row(marks[check.ok], check.name, check.finding, check.advice)
        Console().print(table)
    if any(check.ok == "fail" for check in checks):
        ctx.exit(1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Versions, places and what this machine can read.

    Example: carina info --json
    """
    from worker.monitor.doctor import information

    facts = information(load_settings())
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        click.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
