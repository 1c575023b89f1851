"""What came of a rebuild, for people and programs. It names no film and no patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.evaluation.tables import RESEARCH_USE, markdown, number
from trainer.rebuild.folder import RebuildFolder, read_json, write_json
from trainer.rebuild.ledger import Rebuild
from trainer.training.run_folder import write_whole

_MOST_NAMED = 4


def outcome(comparison: Mapping[str, Any]) -> str:
    """What came of it, in a sentence."""
    candidate, champion = comparison["candidate"], comparison["champion"]
    figures, below = comparison["figures"], comparison["below"]
    if not figures:
        return f"{candidate} is the candidate; nothing of it could be compared with {champion}."
    if not below:
        return f"{candidate} is the candidate, in none of {len(figures)} figures below {champion}."
    named = f": {', '.join(below)}" if len(below) <= _MOST_NAMED else ""
    return f"{candidate} is the candidate, in {len(below)} of {len(figures)} figures below {champion}{named}."


def write_report(folder: RebuildFolder, row: Rebuild, origins: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Write ``report.md`` and ``report.json``; returns what the latter holds.

    Parameters
    ----------
    origins
        Recipe → what its films were, in words.
    """
    comparison, compiled = read_json(folder.comparison), read_json(folder.engines)
    summary = {
        "rebuild": row.id,
        "recipe": row.recipe,
        "started_at": row.started_at.isoformat(),
        "outcome": outcome(comparison),
        "folder": str(row.folder),
        "bundle": comparison["candidate"],
        "films": row.results["films"],
        "data": {recipe: dict(origin) for recipe, origin in origins.items()},
        "comparison": comparison,
        "engine": compiled["engine"],
        "engine_notes": compiled["notes"],
        "parity": compiled["parity"],
        "seconds": row.results["seconds"],
        "research_use": RESEARCH_USE,
    }
    write_whole(folder.report, "\n\n".join(_blocks(summary)) + "\n")
    write_json(folder.summary, summary)
    return summary


def _blocks(summary: Mapping[str, Any]) -> Iterator[str]:
    comparison = summary["comparison"]
    yield f"# Rebuild {summary['rebuild']}: {summary['bundle']}"
    yield f"**{RESEARCH_USE}**"
    promote = f"`carina bundle promote {summary['bundle']}`"
    yield f"{summary['outcome']} It reads no film until a person promotes it: {promote}."
    yield "## Films"
    parts = ("train", "validation", "test")
    yield markdown(
        ["recipe", "to learn from", "to choose by", "held out"],
        [[recipe, *(counts[part] for part in parts)] for recipe, counts in summary["films"].items()],
    )
    yield "\n".join(
        f"- {recipe}: {'; '.join(f'{words}: {value}' for words, value in origin.items())}"
        for recipe, origin in summary["data"].items()
    )
    yield f"## Beside the champion, {comparison['champion']}"
    if comparison["figures"]:
        counts = ", ".join(f"{films} films for {called}" for called, films in comparison["films"].items())
        yield (
            f"Both judged the same held-out films ({counts}), in fp32 through the worker's own code. *below*: less "
            "than the lower end of the champion's 95 % interval."
        )
        yield markdown(
            ["", "candidate", "champion (95 % interval)", ""],
            [[f["name"], number(f["candidate"]), _with_interval(f), f["verdict"]] for f in comparison["figures"]],
        )
        links = ", ".join(f"[{who}](evaluation/{who}/report.md)" for who in ("candidate", "champion"))
        yield f"Everything measured: {links}."
    if comparison["remarks"]:
        yield "\n".join(f"- {remark}" for remark in comparison["remarks"])
    yield "## Engines"
    engine = summary["engine"]
    backend = f"{engine['backend']} {engine['backend_version']} on {engine['device']}"
    yield f"{backend}, {engine['precision']}; the parity gate is passed."
    yield "\n".join(f"- {note}" for note in summary["engine_notes"])
    yield "## Time"
    yield markdown(["stage", "seconds"], [[stage, number(float(s), 1)] for stage, s in summary["seconds"].items()])
    yield "What the bundle says about itself: [model card](bundle/model-card.md)."


def _with_interval(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return number(figure["champion"])
    return f"{number(figure['champion'])} ({number(figure['low'])}-{number(figure['high'])})"
