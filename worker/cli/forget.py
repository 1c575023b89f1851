"""The command that deletes all of a patient: forget."""

from __future__ import annotations

import getpass
import json
import re
import sys

import click

from worker.settings import load_settings

_KEY = re.compile(r"[0-9a-f]{64}")


@click.command()
@click.argument("patient")
@click.option("--issuer", help="Issuer of the patient ID, where several hospitals give the same numbers.")
@click.option("--key", "is_key", is_flag=True, help="PATIENT is a pseudonymous key (instance.patient_key).")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option(
    "--files", "list_files", is_flag=True, help="List the files in submitted folders; names the patient's files."
)
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Wait for films in work.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def forget(
    *,
    patient: str,
    issuer: str | None,
    is_key: bool,
    dry_run: bool,
    list_files: bool,
    wait: float,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete all that is known of a patient: films, files received, results, labels, deliveries.

    PATIENT is the patient ID as the films say it; "-" reads it from standard input, where no list of
    processes shows it. Submitted files are never touched: they are counted. docs/pacs.md says what
    else to think of: backups, shards, what was exported and delivered.

    Example: carina forget 4711 --dry-run
    """
    from worker.errors import CarinaError
    from worker.intake.forget import forget as forget_films
    from worker.intake.forget import patient_keys
    from worker.queue.tickets import announcing
    from worker.service import open_database

    if patient == "-":
        patient = sys.stdin.readline().strip()
    if not patient:
        raise click.UsageError("Name a patient.")
    if is_key and (issuer is not None or not _KEY.fullmatch(patient)):
        raise click.UsageError("With --key PATIENT is 64 hexadecimal digits, and there is no --issuer.")
    settings = load_settings()
    with open_database(settings) as database, announcing(settings, database) as announce:
        keys = [patient] if is_key else patient_keys(database, settings, patient, issuer)
        report = forget_films(database, settings, keys, actor=getpass.getuser(), dry_run=True)
        if not report.rows["instance"]:
            click.echo(json.dumps(report.counts(), indent=2) if as_json else "No film of this patient is known here.")
            return
        if not dry_run:
            if not yes:
                films = report.rows["instance"]
                if not sys.stdin.isatty():
                    raise CarinaError(f"{films} films would be deleted. Say so with --yes.")
                click.confirm(f"Delete {films} films and all that came of them for ever?", abort=True)
            report = forget_films(database, settings, keys, actor=getpass.getuser(), wait_seconds=wait)
            announce(report.released)
    if as_json:
        files = {"elsewhere": report.elsewhere} if list_files else {}
        click.echo(json.dumps({**report.counts(), **files, "dry_run": dry_run}, indent=2))
        return
    click.echo("Would delete:" if dry_run else "Deleted:")
    for name, number in report.lines():
        click.echo(f"  {name}: {number}")
    for path in report.elsewhere if list_files else ():
        click.echo(path)
    if report.elsewhere:
        click.echo("Delete the files in submitted folders too, or the next scan registers them again.")
