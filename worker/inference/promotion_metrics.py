"""Is a bundle at least as good as the one in service, on films that neither has learned from?

Of each task, masks and findings, the first rule that applies decides:

rebuild
    ``carina rebuild`` made the bundle, and had it and the bundle in service judge the same held-out
    films: the comparison in its row.
inherited
    Its networks for the task are those of the bundle in service.
manifests
    The figures that both bundles bring along, if they were measured on the same held-out films.

Where none applies, nothing can be said, and that is said; it refuses nothing. A figure is *below*
when it is less than the lower end of the 95 % interval of the bundle in service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from schema.database import Database
from schema.tables import RebuildState, bundle, rebuild
from worker.inference.registry import BundleEntry

#: Task → what it finds, for a person.
_TASKS = {"segmentation": "masks", "classification": "findings"}
#: Task → the figures of a manifest that count and the number in each: a table of the metrics, then the key inside.
_FIGURES: dict[str, tuple[tuple[str, str], ...]] = {
    "segmentation": (("figures", ""), ("regions", "dice")),
    "classification": (("figures", ""), ("findings", "auroc")),
}
#: Headline figures where more is better.
_HEADLINES = frozenset({"mean_dice", "lung_dice", "mean_auroc"})
_DIGEST_DIGITS = 8


@dataclass(frozen=True)
class Judgement:
    """Sentences: ``below`` are figures that speak against the bundle, ``remarks`` say what was compared, and how."""

    below: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rebuild:
    """The finished rebuild that a bundle comes from; ``compared_with`` is a bundle's row, ``called`` its key."""

    id: int
    compared_with: int | None
    called: str
    comparison: Mapping[str, Any]


@dataclass(frozen=True)
class _Pair:
    """The bundle that is to serve, the one that does, and the rebuild that compared the two."""

    candidate: BundleEntry
    serving: BundleEntry
    rebuild: _Rebuild | None

    def figures_of(self, task: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What the two manifests say of a task: the candidate's figures and those of the bundle in service."""
        ours, theirs = self.candidate.manifest["metrics"], self.serving.manifest["metrics"]
        return ours.get(task) or {}, theirs.get(task) or {}


def judge_metrics(database: Database, candidate: BundleEntry, serving: BundleEntry) -> Judgement:
    """Compare the figures of two bundles, task by task."""
    made = _rebuild_of(database, candidate)
    ours = made if made and made.compared_with == serving.id else None
    pair = _Pair(candidate, serving, ours)
    remarks: list[str] = []
    if made and not ours:
        remarks.append(f"Rebuild {made.id} compared it with {made.called}, which does not serve: that counts no more.")
    said = [next(said for rule in _RULES if (said := rule(pair, task))) for task in _TASKS]
    remarks += [remark for each in said for remark in each.remarks]
    remarks += [f"Rebuild {ours.id}: {remark}" for remark in ours.comparison.get("remarks", ())] if ours else []
    return Judgement(tuple(sentence for each in said for sentence in each.below), tuple(remarks))


def _rebuild_of(database: Database, candidate: BundleEntry) -> _Rebuild | None:
    """The last rebuild that the bundle came from."""
    query = (
        select(rebuild, (bundle.c.name + ":" + bundle.c.version).label("called"))
        .outerjoin(bundle, bundle.c.id == rebuild.c.champion_id)
        .where(rebuild.c.bundle_id == candidate.id, rebuild.c.state == RebuildState.FINISHED.value)
        .order_by(rebuild.c.id.desc())
        .limit(1)
    )
    with database.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return _Rebuild(row.id, row.champion_id, row.called, row.results.get("comparison") or {})


# Rules: what each says of a task, or None where it does not apply


def _by_rebuild(pair: _Pair, task: str) -> Judgement | None:
    if pair.rebuild is None:
        return None
    figures = [figure for figure in pair.rebuild.comparison.get("figures", ()) if figure.get("task") == task]
    if not figures:
        return None
    count = pair.rebuild.comparison["films"][_TASKS[task]]
    where = f"the {count} held-out films of rebuild {pair.rebuild.id}"
    below = tuple(
        _sentence(figure["name"], figure["candidate"], where, pair.serving.key, figure)
        for figure in figures
        if figure["verdict"] == "below"
    )
    return Judgement(below, (_compared(task, pair, f"by what both found on {where}", len(below), len(figures)),))


def _inherited(pair: _Pair, task: str) -> Judgement | None:
    if pair.figures_of(task)[0].get("copied_from") != pair.serving.key:
        return None
    return Judgement(remarks=(f"The networks for {_TASKS[task]} are those of {pair.serving.key}.",))


def _by_manifests(pair: _Pair, task: str) -> Judgement | None:
    ours, theirs = pair.figures_of(task)
    digest = theirs.get("films_digest")
    if not digest or ours.get("films_digest") != digest:
        return None
    numbers = dict(_figures(task, ours))
    known = [
        (name, numbers[name]["value"], figure)
        for name, figure in _figures(task, theirs)
        if figure.get("low") is not None and numbers.get(name, {}).get("value") is not None
    ]
    below = tuple(
        _sentence(name, value, "the same held-out films", pair.serving.key, figure)
        for name, value, figure in known
        if value < figure["low"]
    )
    how = f"by the figures that both bring along, of the same held-out films ({digest[:_DIGEST_DIGITS]})"
    return Judgement(below, (_compared(task, pair, how, len(below), len(known)),))


def _not_comparable(pair: _Pair, task: str) -> Judgement:
    if not pair.figures_of(task)[1]:
        return Judgement(remarks=(f"{pair.serving.key} brings along no figures of {_TASKS[task]} to compare with.",))
    return Judgement(
        remarks=(
            f"The {_TASKS[task]} were not compared: those of {pair.serving.key} were not measured on the same "
            "held-out films.",
        )
    )


_RULES: tuple[Callable[[_Pair, str], Judgement | None], ...] = (
    _by_rebuild,
    _inherited,
    _by_manifests,
    _not_comparable,
)


def _compared(task: str, pair: _Pair, how: str, below: int, figures: int) -> str:
    return (
        f"The {_TASKS[task]} were compared with those of {pair.serving.key} {how}: {below or 'none'} of {figures} "
        "figures below its interval."
    )


def _sentence(name: str, value: float, where: str, serving: str, theirs: Mapping[str, Any]) -> str:
    low, high = theirs["low"], theirs["high"]
    interval = f"the interval of {serving} ({low:.3f}-{high:.3f})" if low is not None else f"that of {serving}"
    return f"{name} is {value:.3f} on {where}, below {interval}."


def _figures(task: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name of a figure for a person → the figure: its ``value``, ``low`` and ``high``."""
    for table, key in _FIGURES[task]:
        for name, entry in metrics.get(table, {}).items():
            if not key and name in _HEADLINES:
                yield name.replace("_", " "), entry
            # What was derived by a rule is scored as no accuracy.
            elif key and key in entry and entry.get("scored", True):
                yield f"{key} of {name}", entry[key]
