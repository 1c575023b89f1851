"""Commands for bundles: which are known, which one serves, what another one would say."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from worker.cli.parity_set import parity_set
from worker.settings import load_settings

if TYPE_CHECKING:
    from worker.inference.compare import Comparison
    from worker.inference.promotion import Promotion
    from worker.inference.registry import BundleEntry

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_KEY = click.argument("key", metavar="NAME:VERSION")
_FORCE = click.option("--force", is_flag=True, help="Do it whatever speaks against it; that is recorded.")
_NOT_HERE = "This machine lacks its files: run carina bundle add here too, or copy the folder bundles."


@click.group()
def bundle() -> None:
    """Trained networks: add a bundle, see what is known, choose which one serves.

    \b
    champion   in service
    previous   in service until the last promotion: what rollback goes back to
    candidate  added last, never in service

    Workers that run look at the champion every few seconds: they load a new one beside the old one
    and change over between two batches. One that cannot load it goes on with the old one, says so
    and tries again.

    Example: carina bundle add mine/bundle --promote
    """


bundle.add_command(parity_set)


@bundle.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--promote", is_flag=True, help="Put it into service at once, as carina bundle promote does.")
@_FORCE
@_JSON
def add(folder: Path, promote: bool, force: bool, as_json: bool) -> None:
    """Check the bundle in FOLDER, copy it into the home folder and register it.

    Without --promote it becomes the candidate and reads nothing. On a machine that lacks the files
    of a known bundle, the same command brings them there.

    Example: carina bundle add mine/bundle --promote
    """
    from worker.inference import promotion
    from worker.inference.registry import add_bundle
    from worker.service import open_database

    settings, actor = load_settings(), getpass.getuser()
    with open_database(settings) as database:
        entry = add_bundle(database, settings, folder, actor=actor)
        if promote:
            _say_promoted(promotion.promote(database, settings, entry.key, actor=actor, force=force), as_json)
            return
    standing = "and in service" if "champion" in entry.aliases else f"not in service: carina bundle promote {entry.key}"
    _say(entry, as_json, f"{entry.key} is registered, {standing}")


@bundle.command("list")
@_JSON
def list_all(as_json: bool) -> None:
    """All bundles that are known.

    Example: carina bundle list
    """
    from worker.inference.registry import list_bundles
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        entries = list_bundles(database, settings)
    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in entries], indent=2))
        return
    if not entries:
        click.echo("No bundle is registered yet: the first start of a worker does it.")
        return
    table = _table("bundle", "", "added", "files here", "what it is")
    for entry in entries:
        added = f"{entry.added_at:%Y-%m-%d %H:%M} UTC"
        words = str(entry.manifest.get("description", ""))
        table.add_row(entry.key, ", ".join(entry.aliases), added, "yes" if entry.here else "no", words)
    Console().print(table)


@bundle.command()
@_KEY
@_JSON
def show(key: str, as_json: bool) -> None:
    """What NAME:VERSION says about itself: regions, findings, networks, figures.

    Example: carina bundle show phantom:2
    """
    from worker.inference.registry import bundle_folder, find_bundle
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        entry = find_bundle(database, settings, key)
    if as_json:
        click.echo(json.dumps({**entry.to_json(), "manifest": entry.manifest}, indent=2))
        return
    folder = bundle_folder(settings, entry.sha256)
    click.echo("\n".join(_description(entry.manifest)))
    click.echo(f"  model card   {folder / 'model-card.md'}" if entry.here else _NOT_HERE)


@bundle.command()
@_KEY
@_FORCE
@_JSON
def promote(key: str, force: bool, as_json: bool) -> None:
    """Put NAME:VERSION into service; the present champion becomes the previous one.

    Takes effect at the workers' next batch, and publishes what NAME:VERSION found out in the shadow.
    Refused unless an engine of it passed the parity gate, its figures are not below the champion's
    interval on the same held-out films, and, where CARINA_SHADOW_AGREEMENT asks for it, the two agree.

    Example: carina bundle promote mine:2
    """
    from worker.inference import promotion
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        _say_promoted(promotion.promote(database, settings, key, actor=getpass.getuser(), force=force), as_json)


@bundle.command()
@_JSON
def rollback(as_json: bool) -> None:
    """Go back to the bundle that served before the last promotion; takes effect at the workers' next batch.

    Example: carina bundle rollback
    """
    from worker.inference.registry import roll_back
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        entry = roll_back(database, settings, actor=getpass.getuser())
    _say(entry, as_json, f"{entry.key} is in service again.")


@bundle.command()
@_KEY
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), help="This share of them, 0-1.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--last", type=click.IntRange(1), help="So many, those read last.")
@_JSON
def shadow(key: str, share: float | None, everything: bool, last: int | None, as_json: bool) -> None:
    """Have NAME:VERSION read films that have their result, unseen, when nothing else is to be done.

    Says how far it is; without --share, --all or --last it does only that. What it finds is shown by
    carina bundle compare, and published if NAME:VERSION is promoted.

    Example: carina bundle shadow mine:2 --last 500
    """
    from worker.inference.registry import find_bundle
    from worker.queue.shadow import open_shadow_jobs, shadow_states
    from worker.service import open_database

    if sum((share is not None, everything, last is not None)) > 1:
        raise click.UsageError("Choose one of --share, --all and --last.")
    settings = load_settings()
    report: dict[str, Any] = {"bundle": key}
    with open_database(settings) as database:
        entry = find_bundle(database, settings, key)
        if share is not None or everything or last is not None:
            opened = open_shadow_jobs(database, entry.id, share=share or 1.0, last=last)
            report |= {"opened": opened.opened, "known": opened.known}
        with database.read() as connection:
            report["states"] = dict(sorted(shadow_states(connection, entry.id).items()))
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    if "opened" in report:
        click.echo(
            f"{report['opened']} films will be read by {key}, {report['known']} it has read or will read anyway."
        )
    states = ", ".join(f"{count} {state}" for state, count in report["states"].items())
    click.echo(f"Shadow jobs of {key}: {states or 'none'}.")


@bundle.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@_JSON
def diff(first: str, second: str, as_json: bool) -> None:
    """What is different about A and B (each NAME:VERSION): regions, findings, networks, figures, recipe.

    Example: carina bundle diff phantom:2 mine:2
    """
    from worker.inference.differences import differences
    from worker.inference.registry import find_bundle
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        found = differences(*(find_bundle(database, settings, key).manifest for key in (first, second)))
    if as_json:
        click.echo(json.dumps([each.to_json() for each in found], indent=2))
        return
    table = _table("", "", first, second)
    for each in found:
        table.add_row(
            each.section, each.what, *("not there" if side is None else side for side in (each.first, each.second))
        )
    Console().print(table if found else f"{first} and {second} say the same about themselves.")


@bundle.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write JSON and a picture there.")
@_JSON
def compare(first: str, second: str, out: Path | None, as_json: bool) -> None:
    """How far A and B (each NAME:VERSION) agree about the films that both have read, in the shadow or not.

    Example: carina bundle compare phantom:2 mine:2 --out /tmp/comparison
    """
    from worker.film.pictures import PictureReader
    from worker.inference.compare import compare as compare_results
    from worker.inference.comparison_picture import write_comparison
    from worker.inference.registry import find_bundle
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        ours, theirs = (find_bundle(database, settings, key).id for key in (first, second))
        found = compare_results(database, ours, theirs)
        written = []
        if out is not None:
            with PictureReader(settings) as pictures:
                written = [*write_comparison(database, settings, found, out, pictures.read)]
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    _print_comparison(found)
    for path in written:
        click.echo(f"Written: {path}")


def _print_comparison(found: Comparison) -> None:
    ended = ", ".join(f"{count} {state}" for state, count in sorted(found.ended.items()))
    click.echo(f"{found.films} films read by both{f'; of others {found.second} made: {ended}' if ended else ''}.")
    if not found.films:
        click.echo(f"Have {found.second} read some: carina bundle shadow {found.second} --last 500")
        return
    console = Console()
    regions = _table("region", "films", "mean Dice", "95 of 100 above", "least", "only one has it")
    for name, region in found.regions.items():
        numbers = (f"{value:.3f}" for value in (region.mean, region.low, region.worst))
        regions.add_row(name, str(region.films), *numbers, str(region.only_one))
    console.print(regions)
    findings = _table("finding", "films", "same verdict", "kappa", "correlation", "mean change", "gained", "lost")
    for name, finding in found.findings.items():
        rates = (f"{value:.3f}" for value in (finding.agreement, finding.kappa, finding.correlation))
        counts = (str(finding.gained), str(finding.lost))
        findings.add_row(name, str(finding.films), *rates, f"{finding.difference:+.3f}", *counts)
    if found.findings:
        console.print(findings)
    console.print(f"Agreement {found.agreement:.3f}. Agreement is no accuracy. Research use, not a medical device.")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _say_promoted(done: Promotion, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=2))
        return
    for words in (*done.remarks, *(f"Overridden: {reason}" for reason in done.overridden)):
        click.echo(words)
    _say(done.entry, False, f"{done.entry.key} is in service.")


def _say(entry: BundleEntry, as_json: bool, sentence: str) -> None:
    if as_json:
        click.echo(json.dumps(entry.to_json(), indent=2))
        return
    click.echo(sentence)
    if not entry.here:
        click.echo(_NOT_HERE)


def _description(manifest: dict[str, Any]) -> list[str]:
    """The manifest as lines for a person."""
    regions = ", ".join(f"{region['name']} ({region['origin']})" for region in manifest["regions"])
    findings = ", ".join(f"{f['finding']} from {f['threshold']:.3f}" for f in manifest["findings"])
    lines = [
        f"{manifest['name']}:{manifest['version']}, made {manifest['created']}. {manifest['intended_use']}",
        f"  {manifest['description']}",
        f"  regions      {regions}",
        f"  findings     {findings or 'none'}",
    ]
    for member in manifest["members"]:
        size = " x ".join(str(member[side]) for side in ("channels", "height", "width"))
        lines.append(f"  network      {member['name']}: {member['network'] or member['task']}, sees {size}")
    for task, what in (("segmentation", "masks"), ("classification", "findings")):
        names = [member["name"] for member in manifest["members"] if member["task"] == task]
        if len(names) > 1:
            lines.append(f"  ensemble     {what}: the mean of {' and '.join(names)}")
    return lines
