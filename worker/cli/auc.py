"""The command that tells how well bundles do on labelled films: auc."""

from __future__ import annotations

import json
from datetime import datetime
from enum import Enum
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from schema.tables import Cohort, Period, auc_comparison, bundle
from schema.view_tables import latest_auc, latest_dice
from worker.settings import load_settings


@click.command()
@click.option("--update", is_flag=True, help="First bring everything up to date, however long it takes.")
@click.option("--bundle", "key", metavar="NAME:VERSION", help="Only this bundle.")
@click.option("--finding", help="Only this finding.")
@click.option("--period", type=click.Choice([str(period) for period in Period]), help="Only this period; default: 90d.")
@click.option(
    "--cohort",
    type=click.Choice([str(cohort) for cohort in Cohort]),
    default="all",
    show_default=True,
    help="By what films are parted.",
)
@click.option("--floor", type=click.FloatRange(0, 1), help="Exit code 1 if a whole interval lies under it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: all that is tracked, if nothing narrows it.")
def auc(
    *,
    update: bool,
    key: str | None,
    finding: str | None,
    period: str | None,
    cohort: str,
    floor: float | None,
    as_json: bool,
) -> None:
    """How well bundles do on labelled films, with 95 % intervals.

    Workers keep these numbers up to date by themselves; docs/monitoring.md says which labels count and
    what each number is. Research use, not a medical device.

    Example: carina auc --period 30d --cohort age
    """
    from worker.errors import CarinaError
    from worker.monitor.auc import is_under_floor, track
    from worker.monitor.labels import reader_policy
    from worker.service import open_database

    settings = load_settings()
    with open_database(settings) as database:
        if update:
            report = track(database, readers=reader_policy(settings.readers))
            click.echo(f"{report}.", err=True)
        with database.read() as connection:
            columns = latest_auc.c
            asked = {columns.bundle: key, columns.finding: finding, columns.period: period}
            if not as_json:
                asked[columns.period] = period or str(Period.QUARTER)
            if not as_json or cohort != Cohort.ALL:
                asked[columns.cohort] = cohort
            query = select(latest_auc).where(*(column == value for column, value in asked.items() if value))
            rows = list(
                connection.execute(
                    query.order_by(
                        columns.bundle, columns.finding, columns.cohort, columns.cohort_value, columns.period
                    )
                )
            )
            dice = list(connection.execute(select(latest_dice).order_by(latest_dice.c.bundle, latest_dice.c.region)))
            compared = _comparisons(connection)
    if as_json:
        parts = {"auc": rows, "dice": dice, "comparisons": compared}
        click.echo(json.dumps({name: [_plain(row) for row in part] for name, part in parts.items()}, indent=2))
    elif not rows:
        click.echo("Nothing is tracked yet: import labels (carina labels import), then: carina auc --update")
    else:
        chosen = period or str(Period.QUARTER)
        _print(rows, [row for row in dice if row.period == chosen and row.cohort == cohort], chosen)
        _print_comparisons([row for row in compared if row.period == chosen and row.cohort == cohort])
    if floor is not None and (under := [row for row in rows if is_under_floor(row, floor)]):
        words = ", ".join(sorted({f"{row.finding} ({row.bundle}, {row.period})" for row in under}))
        raise CarinaError(f"The whole interval lies under {floor:g}: {words}.")


def _comparisons(connection: Any) -> list[Any]:
    columns, candidate = auc_comparison.c, bundle.alias("candidate")
    newest = auc_comparison.alias("newest")
    last = (
        select(newest.c.ends_at)
        .where(newest.c.bundle_id == columns.bundle_id, newest.c.candidate_id == columns.candidate_id)
        .order_by(newest.c.ends_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    kept = [column for column in columns if column.name not in {"id", "bundle_id", "candidate_id", "digest"}]
    query = (
        select(
            (bundle.c.name + ":" + bundle.c.version).label("bundle"),
            (candidate.c.name + ":" + candidate.c.version).label("candidate"),
            *kept,
        )
        .join(bundle, bundle.c.id == columns.bundle_id)
        .join(candidate, candidate.c.id == columns.candidate_id)
        .where(columns.ends_at == last)
        .order_by(columns.candidate_id, columns.finding, columns.period, columns.cohort, columns.cohort_value)
    )
    return list(connection.execute(query))


def _plain(row: Any) -> dict[str, Any]:
    return {name: _value(value) for name, value in row._mapping.items()}


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    return str(value) if isinstance(value, Enum) else value


def _print(rows: list[Any], dice: list[Any], period: str) -> None:
    table = _table("bundle", "finding", "films of", "with", "without", "AUROC", "sensitivity", "specificity")
    table.title, table.title_justify = f"{period}, until {rows[0].ends_at:%Y-%m-%d}", "left"
    for row in rows:
        names = (row.bundle, row.finding, row.cohort_value or "all", str(row.positives), str(row.negatives))
        numbers = ("too few", "", "") if row.too_few else tuple(map(_interval, [row] * 3, _NUMBERS))
        table.add_row(*names, *numbers)
    Console().print(table)
    out = [max(column) for column in zip(*((r.left_out_training, r.left_out_chosen) for r in rows), strict=True)]
    if any(out):
        click.echo(
            f"Left out of a finding at most: {out[0]} films that may have been learned from, {out[1]} chosen ones."
        )
    if dice:
        regions = _table("bundle", "region", "films of", "films", "Dice")
        for row in dice:
            number = "too few" if row.too_few else _interval(row, "dice")
            regions.add_row(row.bundle, row.region, row.cohort_value or "all", str(row.films), number)
        Console().print(regions)


_NUMBERS = ("auroc", "sensitivity", "specificity")


def _print_comparisons(rows: list[Any]) -> None:
    if not rows:
        return
    table = _table("on trial", "against", "finding", "with", "without", "AUROC", "against", "difference", "p")
    for row in rows:
        names = (row.candidate, row.bundle, row.finding, str(row.positives), str(row.negatives))
        if row.too_few:
            table.add_row(*names, "too few")
            continue
        p_value = "" if row.p_value is None else f"{row.p_value:.3f}"
        table.add_row(*names, f"{row.candidate_auroc:.3f}", f"{row.auroc:.3f}", _interval(row, "difference"), p_value)
    Console().print(table)


def _interval(row: Any, name: str) -> str:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    return table
