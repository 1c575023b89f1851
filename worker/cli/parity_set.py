"""``carina bundle parity-set``: the site's own films, on which engines with 8-bit layers must prove themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli import EXIT_FAILED_FILMS
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from schema.bundle import Manifest

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("parity-set")
def parity_set() -> None:
    """Films of this site that decide whether engines may compute in 8 bits.

    Kept is only what a network sees of a film: no header, no name, no path. At least 30 frontal
    chest films are needed; docs/engines.md.

    Example: carina bundle parity-set add /data/some-films
    """


@parity_set.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@_JSON
@click.pass_context
def add(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> None:
    """Add the films in PATHS (DICOM files, or folders of them), for every bundle that is known here.

    A film counts once, however often it is added. Exit code 3: some files could not be read.

    Example: carina bundle parity-set add /data/some-films
    """
    from worker.inference.site_set import add_films

    settings = load_settings()
    done = add_films(
        settings.home,
        _manifests(settings),
        paths,
        decoders=settings.decoder_count,
        memory_bytes=settings.decode_memory,
        timeout_seconds=settings.decode_timeout,
    )
    for path, why in done.refused:
        click.echo(f"{path}: {why}", err=True)
    if as_json:
        refused = [{"file": str(path), "why": why} for path, why in done.refused]
        click.echo(json.dumps({"added": done.added, "known": done.known, "refused": refused}, indent=2))
    else:
        click.echo(f"{done.added} films added, {done.known} known already, {len(done.refused)} refused")
        click.echo("Next: carina engine build")
    if done.refused:
        ctx.exit(EXIT_FAILED_FILMS)


@parity_set.command()
@_JSON
def show(as_json: bool) -> None:
    """How many films each network of the known bundles has, and how many it needs.

    Example: carina bundle parity-set show
    """
    from worker.inference.parity import SiteThresholds
    from worker.inference.site_set import site_films

    settings, needed = load_settings(), SiteThresholds().films
    found = [
        {"bundle": manifest.key, "network": member.name, "films": len(site_films(settings.home, member))}
        for manifest in _manifests(settings)
        for member in manifest.members
    ]
    if as_json:
        click.echo(json.dumps({"needed": needed, "networks": found}, indent=2))
        return
    for each in found:
        click.echo(f"{each['bundle']}  {each['network']}: {each['films']} films, {needed} needed")


def _manifests(settings: Settings) -> list[Manifest]:
    """The bundles that are known and here; the first one is registered in a new home."""
    from schema.bundle import read_manifest
    from worker.inference.registry import bundle_folder, champion, list_bundles
    from worker.service import open_database

    with open_database(settings) as database:
        champion(database, settings)
        entries = [entry for entry in list_bundles(database, settings) if entry.here]
    return [read_manifest(bundle_folder(settings, entry.sha256)) for entry in entries]
