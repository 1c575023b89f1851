"""The command that tells whether the nights change: drift."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from worker.settings import load_settings

if TYPE_CHECKING:
    from worker.monitor.drift import Series
    from worker.monitor.drift_nights import DriftReport


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also what is as usual.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: every series.")
def drift(*, everything: bool, as_json: bool) -> None:
    """Whether scores, flags, areas or what the detectors deliver have moved, without any label.

    The bundle in service is looked at until the last day (UTC) that has ended; docs/monitoring.md says how.
    Exit code 3 if something has moved. Research use, not a medical device.

    Example: carina drift --all
    """
    from worker.cli import EXIT_FAILED_FILMS
    from worker.monitor.drift import State
    from worker.monitor.drift_nights import look_at_drift
    from worker.service import open_database

    with open_database(load_settings()) as database, database.read() as connection:
        report = look_at_drift(connection)
    moved = [series for series in report.series if series.state is State.SIGNAL] if report else []
    if as_json:
        click.echo(json.dumps(_plain(report), indent=2))
    elif report is None:
        click.echo("No bundle is in service yet: the first worker registers one.")
    else:
        _print(report, list(report.series) if everything else moved)
    if moved:
        click.get_current_context().exit(EXIT_FAILED_FILMS)


def _plain(report: DriftReport | None) -> dict[str, Any]:
    if report is None:
        return {"bundle": None, "until": None, "series": []}
    found = [
        {
            **asdict(series),
            "family": str(series.family),
            "group": str(series.group),
            "state": str(series.state),
            "last": None if series.last is None else series.last.isoformat(),
        }
        for series in report.series
    ]
    return {"bundle": report.bundle, "until": report.until.isoformat(), "series": found}


def _print(report: DriftReport, shown: list[Series]) -> None:
    from worker.monitor.drift import State
    from worker.monitor.drift_charts import BASELINE_NIGHTS, LEAST_FILMS

    states = [series.state for series in report.series]
    learning = states.count(State.LEARNING)
    click.echo(
        f"{report.bundle} until {report.until}: {len(states) - learning} series are watched, "
        f"{states.count(State.SIGNAL)} have moved."
    )
    if learning:
        click.echo(
            f"{learning} are still learned: that takes {BASELINE_NIGHTS} nights with {LEAST_FILMS} films or more each."
        )
    if shown:
        table = Table(box=None, pad_edge=False)
        for heading in ("state", "films", "what", "seen", "expected", "sigma", "moved with"):
            table.add_column(heading, justify="right" if heading in ("seen", "expected", "sigma") else "left")
        for series in shown:
            numbers = [_number(each) for each in (series.seen, series.expected, series.sigma)]
            table.add_row(str(series.state), str(series.group), series.name, *numbers, ", ".join(series.with_mix))
        Console().print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
