"""What waits, what is done, who works: one look at the ledger."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url

from schema import queries
from schema.database import Database
from worker import __version__
from worker.queue.leases import SILENT_LEASES
from worker.queue.roots import films_left
from worker.settings import Settings

_STATES = ("ready", "leased", "delayed", "done", "ineligible", "failed", "cancelled")
_GIB = 1 << 30


def snapshot(database: Database, settings: Settings) -> dict[str, Any]:
    """The state of the ledger as plain values, fit for JSON; times in seconds, sizes in bytes.

    Keys: ``version``, ``database`` (kind and schema version), ``films`` (job state → count),
    ``files`` (arrival state → count), ``lanes`` (open work), ``oldest_ready_seconds``,
    ``throughput``, ``seconds_left`` (None when nothing moves), ``workers``, ``bundles``
    (alias → ``name:version``), ``missing_roots`` (roots that films wait under and this machine
    lacks: films and reason), ``disk``.
    """
    revision = database.version()
    with database.read() as connection:
        states = queries.state_counts(connection)
        files = queries.arrival_counts(connection)
        lanes = queries.backlog(connection)
        throughput = queries.throughput(connection)
        workers = queries.workers_seen(connection)
        bundles = queries.bundle_aliases(connection)
        left = films_left(connection, settings.root_folders)
    waiting = [lane.oldest_ready_seconds for lane in lanes.values() if lane.oldest_ready_seconds is not None]
    still_open = sum(lane.ready + lane.leased + lane.delayed for lane in lanes.values())
    per_hour = throughput.films_per_hour
    return {
        "version": __version__,
        "database": {"kind": make_url(settings.url).get_backend_name(), "schema_version": revision},
        "films": {state: states.get(state, 0) for state in _STATES},
        "files": files,
        "lanes": {name: asdict(lane) for name, lane in lanes.items()},
        "oldest_ready_seconds": max(waiting, default=None),
        "throughput": {**asdict(throughput), "films_per_hour": per_hour},
        "seconds_left": still_open * 3600.0 / per_hour if still_open and per_hour else None,
        "workers": [
            {**asdict(worker), "alive": worker.running and worker.seen_seconds_ago < _silence(settings)}
            for worker in workers
        ],
        "bundles": bundles,
        "missing_roots": {root: {"films": count, "reason": reason} for root, (count, reason) in left.items()},
        "disk": {"free_bytes": free_bytes(settings.home), "reserve_bytes": settings.disk_reserve},
    }


def render(snapshot: dict[str, Any]) -> RenderableType:
    """A snapshot for the terminal."""
    parts: list[RenderableType] = [_state_table(snapshot), Text(), _lanes(snapshot), Text(_pace(snapshot)), Text()]
    parts.append(_workers(snapshot) if snapshot["workers"] else Text("No worker was seen in the last day."))
    champion = snapshot["bundles"].get("champion", "none yet: the first worker registers one")
    disk = snapshot["disk"]
    parts += [
        Text(),
        Text(
            f"Bundle {champion}. {_gib(disk['free_bytes'])} free on the home folder's disk. "
            f"Carina {snapshot['version']}."
        ),
        *(Text(warning, style="bold yellow") for warning in warnings(snapshot)),
        Text("Research use, not a medical device.", style="dim"),
    ]
    return Group(*parts)


def warnings(snapshot: dict[str, Any]) -> list[str]:
    """What needs a person, a sentence each with what to do next."""
    found = []
    ready = sum(lane["ready"] for lane in snapshot["lanes"].values())
    if ready and not any(worker["alive"] for worker in snapshot["workers"]):
        found.append(f"{films(ready)} waiting and no worker running. Start one: carina worker")
    for root, lacking in snapshot["missing_roots"].items():
        found.append(
            f"{films(lacking['films'])} waiting under the root {root}, which this machine lacks: "
            f"{lacking['reason']}. Workers here leave them to machines that have it."
        )
    disk = snapshot["disk"]
    if disk["free_bytes"] < disk["reserve_bytes"]:
        found.append(f"Work pauses: less than {_gib(disk['reserve_bytes'])} free. Make room; it goes on by itself.")
    if snapshot["films"]["failed"]:
        found.append(f"{films(snapshot['films']['failed'])} failed. Look: carina failed")
    if snapshot["files"].get("conflict"):
        found.append(f"{films(snapshot['files']['conflict'])} in conflict. Look: carina conflicts list")
    return found


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is, or will be once it is made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def films(count: int) -> str:
    """``"1 film"``, ``"2,000 films"``."""
    return f"{count:,} film{'' if count == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """Seconds in words: ``"42 s"``, ``"5 min"``, ``"3.2 h"``, ``"4.5 d"``; a dash for None."""
    if seconds is None:
        return "–"
    for limit, divisor, unit, digits in ((90, 1, "s", 0), (5400, 60, "min", 0), (129_600, 3600, "h", 1)):
        if seconds < limit:
            return f"{seconds / divisor:.{digits}f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def _silence(settings: Settings) -> float:
    return SILENT_LEASES * settings.lease_seconds


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table


def _state_table(snapshot: dict[str, Any]) -> Table:
    table = _table("films", *_STATES)
    table.add_row("", *(f"{snapshot['films'][state]:,}" for state in _STATES))
    return table


def _lanes(snapshot: dict[str, Any]) -> Table:
    table = _table("lane", "ready", "in work", "delayed", "oldest waits")
    for name, lane in snapshot["lanes"].items():
        numbers = (f"{lane[state]:,}" for state in ("ready", "leased", "delayed"))
        table.add_row(name, *numbers, duration(lane["oldest_ready_seconds"]))
    return table


def _pace(snapshot: dict[str, Any]) -> str:
    pace = snapshot["throughput"]
    if not pace["films_per_hour"]:
        return f"No film ended in the last {duration(pace['seconds'])}."
    words = f"{pace['films_per_hour']:,.0f} films/h in the last {duration(pace['seconds'])}"
    if snapshot["seconds_left"] is not None:
        words += f", about {duration(snapshot['seconds_left'])} left"
    return words + "."


def _workers(snapshot: dict[str, Any]) -> Table:
    table = _table("worker", "state", "in work", "seen", "bundle", "device", "disk free")
    for worker in snapshot["workers"]:
        state = "running" if worker["alive"] else "silent" if worker["running"] else "stopped"
        table.add_row(
            worker["name"],
            state,
            str(worker["films_in_work"]),
            f"{duration(worker['seen_seconds_ago'])} ago",
            worker["bundle"] or "–",
            worker["device"] or "–",
            "–" if worker["home_free_bytes"] is None else _gib(worker["home_free_bytes"]),
        )
    return table
