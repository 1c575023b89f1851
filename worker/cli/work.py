"""Commands that make work or do it: demo, run, submit, watch, worker."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from schema.tables import Lane
from worker.cli import EXIT_FAILED_FILMS
from worker.settings import Settings, load_settings

if TYPE_CHECKING:
    from worker.intake.shards import Shard

_PATHS = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
_LANES = click.Choice([str(lane) for lane in Lane])


def _as_shard(_ctx: click.Context, _option: click.Parameter, text: str | None) -> Shard | None:
    from worker.intake.shards import parse_shard

    try:
        return None if text is None else parse_shard(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@_PATHS
@click.option("--lane", type=_LANES, default=Lane.ICU.value, show_default=True, help="Which queue the films join.")
@click.option("--report", "report_folder", type=click.Path(path_type=Path), help="Write an HTML report there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--shard", metavar="I/N", callback=_as_shard, help="Only this share, in a database of its own.")
@click.option(
    "--shard-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where that database lies; default: the folder shards of the home folder.",
)
@click.pass_context
def run(
    ctx: click.Context,
    *,
    paths: tuple[Path, ...],
    lane: str,
    report_folder: Path | None,
    as_json: bool,
    shard: Shard | None,
    shard_folder: Path | None,
) -> None:
    """Register PATHS (files, folders, zip archives), process them and summarise.

    What was done before is skipped. Exit code 3: finished, but films failed.

    With --shard I/N the work is divided between N machines that share no database; afterwards
    carina merge puts their databases together: docs/cluster-schedulers.md.

    Example: carina run /data/last-night --report /tmp/report
    """
    settings = load_settings()
    if shard is not None:
        from worker.intake.shards import shard_file, use_shard

        click.echo(f"This shard's database: {shard_file(settings, shard, shard_folder)}", err=as_json)
        settings = use_shard(settings, shard, shard_folder)
    elif shard_folder is not None:
        raise click.UsageError("--shard-folder goes with --shard.")
    failed = process(settings, paths, lane=lane, report_folder=report_folder, as_json=as_json, shard=shard)
    if failed:
        ctx.exit(EXIT_FAILED_FILMS)


def process(
    settings: Settings,
    paths: tuple[Path, ...],
    *,
    lane: str,
    report_folder: Path | None,
    as_json: bool = False,
    shard: Shard | None = None,
) -> int:
    """Register and process ``paths``, show the way and the summary; returns how many films failed."""
    from worker.cli.display import NightDisplay, summary_table
    from worker.errors import CarinaError
    from worker.intake.scan import everything
    from worker.queue.tickets import announcing
    from worker.service import open_database, stop_on_signals
    from worker.supervisor import run_night

    console = Console(stderr=as_json)
    stop = threading.Event()
    with (
        open_database(settings) as database,
        announcing(settings, database) as announce,
        NightDisplay(console) as display,
        stop_on_signals(stop.set),
    ):
        night = run_night(
            settings,
            database,
            paths,
            lane=lane,
            display=display,
            stop=stop,
            announce=announce,
            takes=shard.takes if shard else everything,
        )
    if report_folder is not None:
        written = make_report(settings, report_folder, night.submission_id)
        console.print(f"Report: {written}")
    if as_json:
        click.echo(json.dumps({"submission": night.submission_id, **night.counts.to_json()}, indent=2))
    else:
        console.print(summary_table(night))
    if night.interrupted:
        raise CarinaError(f"Interrupted: {night.counts.open} films wait. Run the same command again to go on.")
    return night.counts.failed + night.counts.rejected


def make_report(settings: Settings, folder: Path, submission_id: int | None) -> Path:
    """Write the HTML report of a submission (None: of everything) and return its path."""
    from worker.film.pictures import PictureReader
    from worker.results.report import write_report
    from worker.service import open_database

    with open_database(settings) as database, PictureReader(settings) as pictures:
        return write_report(database, settings, folder, submission_id=submission_id, read_picture=pictures.read)


@click.command()
@_PATHS
@click.option("--lane", type=_LANES, default=Lane.ARCHIVE.value, show_default=True, help="Which queue to join.")
@click.option("--dry-run", is_flag=True, help="Only say what would be registered, what skipped and why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def submit(paths: tuple[Path, ...], lane: str, dry_run: bool, as_json: bool) -> None:
    """Register PATHS (files, folders, zip archives) for the workers; reads headers only.

    What is registered already is skipped, so an interrupted submission is simply run again.

    Example: carina submit /archive --dry-run
    """
    from worker.cli.display import ScanDisplay, submission_table
    from worker.intake.scan import submit as submit_paths
    from worker.queue.tickets import announcing
    from worker.service import open_database, stop_on_signals

    settings = load_settings()
    console = Console(stderr=as_json)
    stop = threading.Event()
    with (
        open_database(settings) as database,
        announcing(settings, database) as announce,
        ScanDisplay(console) as display,
        stop_on_signals(stop.set),
    ):
        report = submit_paths(
            database,
            settings,
            paths,
            lane=lane,
            dry_run=dry_run,
            progress=display.update,
            stop=stop,
            announce=announce,
        )
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        console.print(submission_table(report, dry_run=dry_run))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--lane", type=_LANES, default=Lane.ICU.value, show_default=True, help="Which queue the films join.")
@click.option(
    "--after",
    default="leave",
    show_default=True,
    metavar="leave|delete|move:FOLDER",
    help="What becomes of a file once its film is through.",
)
def watch(folder: Path, lane: str, after: str) -> None:
    """Register files as they appear in FOLDER, when they have stopped changing.

    Example: carina watch /data/incoming --lane icu
    """
    from worker.intake.watch import watch as watch_folder
    from worker.queue.tickets import announcing
    from worker.service import open_database, stop_on_signals

    settings = load_settings()
    stop = threading.Event()
    with (
        open_database(settings) as database,
        announcing(settings, database) as announce,
        stop_on_signals(stop.set),
    ):
        click.echo("Watching; stop with Ctrl-C.")
        watch_folder(database, settings, folder, lane=lane, stop=stop, after=after, announce=announce)


@click.command()
@click.option("--name", help="This worker's name; default: the host name and a number.")
@click.option("--until-idle", is_flag=True, help="Stop when nothing is ready any more.")
@click.option("--devices", metavar="all|cpu|0,1", help="One worker process for each of these devices.")
@click.option("--with-parent", is_flag=True, hidden=True, help="End when the process that started this one ends.")
def worker(name: str | None, until_idle: bool, devices: str | None, with_parent: bool) -> None:
    """Claim films from the ledger and process them until stopped.

    With a broker (CARINA_BROKER_URL) work is also announced by tickets: docs/cluster.md.

    Example: carina worker --devices all
    """
    from worker.service import run_device_workers, run_worker

    if devices is not None:
        arguments = ["--until-idle"] if until_idle else []
        run_device_workers(load_settings(), devices, name=name, arguments=arguments)
        return
    if with_parent:
        from worker.queue.solo import die_with_parent

        die_with_parent()
    run_worker(load_settings(), name=name, until_idle=until_idle)


@click.command(hidden=True)
@click.argument("lease_id")
def solo(lease_id: str) -> None:
    """Process the one film of a lease: started by a worker for a film whose last reader died.

    Example: carina solo 5f0c…
    """
    from worker.service import run_suspect

    run_suspect(load_settings(), lease_id)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("carina-demo"))
@click.option("--seed", type=int, default=1, show_default=True, help="Which synthetic children.")
def demo(folder: Path, seed: int) -> None:
    """Make 24 synthetic radiographs in FOLDER, process them and write a report.

    Example: carina demo
    """
    from worker.demonstration import prepare_demo

    settings = prepare_demo(folder.absolute(), seed)
    process(settings, (folder.absolute() / "films",), lane=Lane.ICU.value, report_folder=folder.absolute() / "report")
    click.echo(f"Ask it yourself: CARINA_HOME={settings.home} carina failed")
