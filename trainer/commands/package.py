"""``carina package``: from finished runs to a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import click

from trainer.commands import TrainerCommand
from trainer.export import VARIANTS


@click.command(cls=TrainerCommand)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the bundle.")
@click.option("--name", default="", help="The bundle's name; default: what the first recipe says.")
@click.option("--version", default="", help="The bundle's version; default: what the first recipe says, or 1.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(VARIANTS),
    help="Also write every trained network for this kind of engine (docs/engines.md); may be given several times.",
)
@click.option("--int8", is_flag=True, help="The same as --variant int8.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON and nothing else.")
def package(
    runs: tuple[Path, ...],
    out: Path,
    *,
    name: str,
    version: str,
    variants: tuple[str, ...],
    int8: bool,
    as_json: bool,
) -> None:
    """Put the networks of finished trainings (their run folders RUN...) into one bundle.

    Several segmentation runs of the same regions and size become an ensemble, and so do several classification runs of
    the same findings. Without a segmentation run the recipe's bundle.segmentation says whose to take. Thresholds and
    temperature are chosen on the validation films, the figures of the model card measured on the test films. Nothing in
    the bundle names a film, a patient or a place.

    Example: carina package runs/holste runs/densenet121 --out bundles/mine-1 --version 1

    Exit code: 0 written, 1 could not be written (the reason is said), 2 wrong usage.
    """
    from rich.console import Console

    from trainer.export.contents import bundle_table
    from trainer.export.package import package as package_runs
    from trainer.training.progress import progress_for
    from trainer.training.run_folder import load_run

    teller = progress_for(Console(stderr=True))
    try:
        trained = [load_run(path) for path in runs]
        table = bundle_table(trained, name, version)
        wanted = {*variants, *(["int8"] if int8 else [])}
        manifest = package_runs(trained, out, bundle=table, variants=wanted, progress=teller.prepare)
    finally:
        teller.close()
    if as_json:
        click.echo(json.dumps(manifest.to_json(), indent=2))
        return
    click.echo(f"{manifest.key} written to {out}. Put it into service: carina bundle add {out} --promote")
    for variant, gates in manifest.metrics.get("variants", {}).items():
        for member, gate in gates.items():
            if not gate["passed"]:
                click.echo(f"{variant} of {member} misses the parity gate: {'; '.join(gate['sentences'])}.")
    click.echo(f"Model card: {out / 'model-card.md'}. Research use, not a medical device.")
