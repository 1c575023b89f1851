"""``carina rebuild``: from labelled films to a verified candidate, unattended."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from trainer.commands import TrainerCommand
from worker.monitor.labels import ReaderPolicy
from worker.settings import load_settings

if TYPE_CHECKING:
    from trainer.rebuild.ledger import Rebuild
    from trainer.rebuild.request import Request
    from trainer.training.progress import TrainingProgress

#: A training leaves the processor to whoever reads films.
_NICENESS = 10
_LOOK_SECONDS = 60.0
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def _as_seconds(_ctx: click.Context, _option: click.Parameter, text: str) -> float:
    """``90min``, ``12h`` or ``7d`` as seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)", text.strip())
    if not found or not float(found[1]):
        raise click.BadParameter(f"{text!r} is no time: write for instance 90min, 12h or 7d")
    return float(found[1]) * _UNITS[found[2]]


@click.command(cls=TrainerCommand)
@click.argument("recipe", required=False)
@click.option("--from-database", is_flag=True, help="Learn from the films in the database that readers labelled.")
@click.option("--data", default="", metavar="DIR", help="Learn from a data set too, or alone, as carina train.")
@click.option("--layout", default="", metavar="NAME", help="How that directory is laid out, without dataset.toml.")
@click.option(
    "--readers",
    type=click.Choice([str(policy) for policy in ReaderPolicy]),
    default=ReaderPolicy.MAJORITY.value,
    show_default=True,
    help="What counts where several readers labelled a film.",
)
@click.option("--int8", is_flag=True, help="Also write an 8-bit twin of every trained network.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Default: HOME/rebuilds/NUMBER-RECIPE.",
)
@click.option("--fresh", is_flag=True, help="Begin anew, whatever an earlier rebuild left unfinished.")
@click.option("--threads", type=click.IntRange(1), help="Threads of a CPU; default: one per core.")
@click.option("--watch", is_flag=True, help="Stay, and rebuild on a schedule when enough labels are new.")
@click.option("--every", default="7d", show_default=True, callback=_as_seconds, help="With --watch: how often to look.")
@click.option(
    "--min-labels",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="With --watch: labels that must be new since the last rebuild.",
)
@click.option("--list", "list_all", is_flag=True, help="Show the rebuilds so far and end.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rebuild(
    *,
    recipe: str | None,
    from_database: bool,
    data: str,
    layout: str,
    readers: str,
    int8: bool,
    out: Path | None,
    fresh: bool,
    threads: int | None,
    watch: bool,
    every: float,
    min_labels: int,
    list_all: bool,
    as_json: bool,
) -> None:
    """Train RECIPE on labelled films, judge it beside the champion, build its engines, register it as candidate.

    Patients held out are never learned from; champion and candidate judge their films alike. Nothing
    is promoted: that is a person's decision (carina bundle promote). A rebuild that was cut off,
    however hard, goes on when the same command is given again. One runs at a time; the night goes on meanwhile.

    \b
    Example: carina rebuild carina-findings --from-database
    Example: carina rebuild carina-findings --from-database --watch --every 7d --min-labels 200
    Example: carina rebuild carina-regions --data phantoms

    Exit code: 0 the candidate is registered, 1 it is not (the reason is said), 2 wrong usage.
    """
    if list_all:
        _list(as_json)
        return
    if recipe is None or not (from_database or data):
        raise click.UsageError(
            "RECIPE and --from-database, --data or both are needed; carina train --list has recipes."
        )
    if layout and not data:
        raise click.UsageError("--layout is for --data.")
    if watch and not from_database:
        raise click.UsageError("--watch waits for new labels: it goes with --from-database.")
    if watch and (fresh or out or as_json):
        raise click.UsageError("--watch rebuilds again and again: --fresh, --out and --json do not go with it.")
    from trainer.rebuild.request import make_request
    from trainer.training.progress import progress_for

    request = make_request(
        recipe, data=data, layout=layout, from_database=from_database, readers=ReaderPolicy(readers), int8=int8, out=out
    )
    _give_way(threads)
    progress = progress_for(Console(stderr=True))
    try:
        if watch:
            _watch(request, progress, every, min_labels)
        else:
            _tell(_rebuild(request, progress, fresh), as_json)
    except KeyboardInterrupt:
        again = shlex.join(["carina", "rebuild", *_same_again(recipe, request, layout)])
        raise click.ClickException(f"Stopped. To go on: {again}") from None
    finally:
        progress.close()


def _rebuild(request: Request, progress: TrainingProgress, fresh: bool) -> dict[str, Any]:
    from trainer.rebuild.run import rebuild as do

    return do(load_settings(), request, fresh=fresh, progress=progress)


def _watch(request: Request, progress: TrainingProgress, every: float, labels: int) -> None:
    from trainer.rebuild.watch import Schedule, Watcher

    def wait() -> bool:
        time.sleep(min(_LOOK_SECONDS, every))
        return False

    try:
        Watcher(load_settings(), request, Schedule(every, labels), progress).run(wait)
    except KeyboardInterrupt:
        progress.say("Stopped; a rebuild that was under way goes on at the next start.")


def _give_way(threads: int | None) -> None:
    """Let the night's processes go first, and end in good order when told to."""
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if threads:
        import torch

        torch.set_num_threads(threads)


def _same_again(recipe: str, request: Request, layout: str) -> list[str]:
    words = [recipe]
    words += ["--from-database", "--readers", str(request.readers)] if request.from_database else []
    words += ["--data", request.data] if request.data else []
    words += ["--layout", layout] if layout else []
    words += ["--int8"] if request.int8 else []
    return words + (["--out", request.out] if request.out else [])


def _tell(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(report["outcome"])
    for remark in report["comparison"]["remarks"]:
        click.echo(f"  {remark}")
    click.echo(f"Report: {Path(report['folder']) / 'report.md'}. Research use, not a medical device.")
    click.echo(f"To put it into service: carina bundle promote {report['bundle']}")


def _list(as_json: bool) -> None:
    from trainer.rebuild.ledger import list_rebuilds
    from worker.service import open_database

    with open_database(load_settings()) as database:
        rebuilds = list_rebuilds(database)
    if as_json:
        click.echo(json.dumps([each.to_json() for each in rebuilds], indent=2))
        return
    if not rebuilds:
        click.echo("Nothing was rebuilt yet.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("", "recipe", "begun", "state", "what came of it"):
        table.add_column(heading, overflow="fold")
    for each in rebuilds:
        begun = f"{each.started_at:%Y-%m-%d %H:%M} UTC"
        table.add_row(str(each.id), each.recipe, begun, _state(each), each.outcome)
    Console().print(table)


def _state(each: Rebuild) -> str:
    return str(each.state) if each.finished_at else f"running, stage {each.stage}"
