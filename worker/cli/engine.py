"""``carina engine``: compile networks for this machine, and look at what was compiled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from worker.inference.bundles import LoadedBundle
    from worker.inference.cache import StoredEngine

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def engine() -> None:
    """Engines: a bundle's networks, compiled for one device and tested against the bundle.

    A worker builds what it lacks when it starts. Where CARINA_ENGINE_BUILD=never, carina engine build does it
    beforehand, on a machine with the same device; workers then mount the folder engines read-only.

    Example: carina engine build
    """


@engine.command()
@click.option("--bundle", metavar="NAME:VERSION|FOLDER", help="A known bundle or a bundle's folder [the champion].")
@click.option("--backend", help="auto, tensorrt, torch or openvino [CARINA_BACKEND].")
@click.option("--precision", help="auto, or the precision to begin with [CARINA_PRECISION].")
@_JSON
def build(bundle: str | None, backend: str | None, precision: str | None, as_json: bool) -> None:
    """Build the engines that a worker of this machine would use, and test them.

    Each network gets the fastest precision that says what the bundle says; what was refused, and by which
    figures, is printed and kept. What is built already is not built again.

    Example: carina engine build --bundle phantom:2
    """
    from worker.inference.bundles import load_bundle

    settings = load_settings()
    loaded = load_bundle(
        _folder_of(bundle, settings),
        home=settings.home,
        backend=backend or settings.backend,
        precision=precision or settings.precision,
    )
    try:
        if as_json:
            click.echo(json.dumps(_facts(loaded), indent=2))
        else:
            _print_built(loaded)
    finally:
        loaded.close()


@engine.command("list")
@_JSON
def list_all(as_json: bool) -> None:
    """All engines in the home folder, refused ones too.

    Example: carina engine list
    """
    from worker.inference.cache import stored_engines

    stored = list(stored_engines(load_settings().home))
    if as_json:
        click.echo(json.dumps([each.to_json() for each in stored], indent=2))
    elif stored:
        _print_stored([(each, _verdict(each)) for each in stored])
    else:
        click.echo("No engine is built yet: the first start of a worker does it, or carina engine build.")


@engine.command()
@_JSON
@click.pass_context
def verify(ctx: click.Context, as_json: bool) -> None:
    """Compare every engine with its SHA-256, and say which this machine can use; exit code 1 if one is damaged.

    Nothing is loaded: an engine holds machine code.

    Example: carina engine verify
    """
    from worker.inference.cache import stored_engines

    stored = list(stored_engines(load_settings().home))
    here = [(each, "" if each.damage else _misfit(each.key)) for each in stored]
    if as_json:
        told = [{**each.to_json(), "usable_here": not (each.damage or why), "why": why} for each, why in here]
        click.echo(json.dumps(told, indent=2))
    elif stored:
        _print_stored([(each, "; ".join(filter(None, [_verdict(each), why]))) for each, why in here])
    else:
        click.echo("No engine is built yet: carina engine build")
    damaged = sum(bool(each.damage) for each in stored)
    if damaged:
        click.echo(f"{damaged} of {len(stored)} engines are damaged. Build them again: carina engine build", err=True)
        ctx.exit(1)


def _folder_of(bundle: str | None, settings: Settings) -> Path:
    """The folder of the bundle that the option names; the champion's without one."""
    from schema.bundle import MANIFEST_NAME
    from worker.errors import CarinaError
    from worker.inference.registry import bundle_folder, champion, find_bundle
    from worker.service import open_database

    if bundle and (Path(bundle).expanduser() / MANIFEST_NAME).is_file():
        return Path(bundle).expanduser()
    with open_database(settings) as database:
        if bundle:
            entry = find_bundle(database, settings, bundle)
            if not entry.here:
                raise CarinaError(f"This machine lacks the files of {entry.key}: run carina bundle add here too.")
            return bundle_folder(settings, entry.sha256)
        return champion(database, settings).directory


def _facts(loaded: LoadedBundle) -> dict[str, Any]:
    return {
        "bundle": loaded.manifest.key,
        "sha256": loaded.sha256,
        "engine": loaded.engine_description,
        "parity": loaded.parity,
        "notes": list(loaded.notes),
    }


def _print_built(loaded: LoadedBundle) -> None:
    about = loaded.engine_description
    click.echo(f"{loaded.manifest.key} on {about['device']}, {about['backend']} {about['backend_version']}")
    for note in loaded.notes:
        click.echo(f"  {note}")
    click.echo(", ".join(f"{member}: {precision}" for member, precision in about["members"].items()))


def _print_stored(verdicts: Iterable[tuple[StoredEngine, str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("bundle", "network", "precision", "backend", "device", "built", "MB", ""):
        table.add_column(heading, overflow="fold")
    for each, verdict in verdicts:
        backend = f"{each.key.get('backend', '')} {str(each.key.get('backend_version', '')).partition('-')[0]}"
        names = [str(each.key.get(name, "")) for name in ("member", "precision")]
        built = each.built_at[:16].replace("T", " ")
        table.add_row(
            each.bundle or str(each.folder), *names, backend, str(each.key.get("device", "")), built,
            f"{each.size / 1e6:.1f}", verdict,
        )  # fmt: skip
    Console().print(table)


def _verdict(stored: StoredEngine) -> str:
    if stored.damage:
        return f"damaged: {stored.damage}"
    if stored.passed:
        return "passed"
    return f"refused: {'; '.join(stored.parity.get('sentences', []))}"


def _misfit(key: Mapping[str, Any]) -> str:
    """Why this machine cannot use an engine; empty when it can."""
    from worker.inference.engines.backends import open_backend
    from worker.inference.engines.base import EngineBuildError

    try:
        backend = open_backend(str(key["backend"]))
    except EngineBuildError as error:
        return str(error).rstrip(".")
    ours = {
        "backend_version": backend.version,
        "device": backend.device,
        "capabilities": list(backend.capabilities),
    }
    differing = [name.replace("_", " ") for name, value in ours.items() if key.get(name) != value]
    return f"for another {' and '.join(differing)} than this machine's" if differing else ""
