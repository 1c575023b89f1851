"""Is the candidate as good as the champion? Both judge the same held-out films, each through its own networks.

Only what both can do is compared: the regions and findings they share, of which the films' truth is known. A figure
is *below* when it is less than the lower end of the champion's 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from schema.bundle import Manifest, Task
from trainer.data.records import Dataset
from trainer.evaluation.evaluate import evaluate_bundle
from trainer.evaluation.films import has_truth, trained_with
from trainer.evaluation.subjects import Progress
from trainer.rebuild.folder import RebuildFolder

_TASKS: dict[Task, str] = {"segmentation": "masks", "classification": "findings"}


@dataclass(frozen=True)
class Figure:
    """A figure of both bundles, such as ``Dice of left_lung``; ``low`` and ``high`` are the champion's 95 % interval.

    ``task`` is that of the networks it is about. More is better.
    ``verdict`` is ``below``, ``within`` or ``above`` that interval, or ``unknown`` where a number is missing.
    """

    name: str
    task: Task
    candidate: float | None
    champion: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """Where the candidate stands."""
        if self.candidate is None or self.champion is None:
            return "unknown"
        low = self.champion if self.low is None else self.low
        high = self.champion if self.high is None else self.high
        if self.candidate < low:
            return "below"
        return "above" if self.candidate > high else "within"


@dataclass(frozen=True)
class Side:
    """A bundle that is judged."""

    directory: Path
    manifest: Manifest

    @property
    def findings(self) -> frozenset[str]:
        """What it tells."""
        return frozenset(finding.finding for finding in self.manifest.findings)

    @property
    def regions(self) -> tuple[str, ...]:
        """What it draws, in the order of the label values."""
        return tuple(region.name for region in self.manifest.regions)


def compare(
    candidate: Side, champion: Side, films: Dataset, folder: RebuildFolder, *, replicates: int, progress: Progress
) -> dict[str, Any]:
    """Measure both bundles on ``films`` and set their figures side by side.

    Returns
    -------
    ``champion`` and ``candidate`` (``name:version``), ``films`` (``masks`` and ``findings`` → films measured),
    ``figures`` (as :class:`Figure`, with ``verdict``), ``below`` (names of the figures that are), and ``remarks``:
    sentences about what was not compared, and why.
    """
    films = _about(films, candidate.findings & champion.findings)
    reasons = {task: _not_comparable(task, candidate, champion, films) for task in _TASKS}
    compared = [task for task, reason in reasons.items() if not reason]
    remarks = [f"The {_TASKS[task]} were not compared: {reason}." for task, reason in reasons.items() if reason]
    figures: list[Figure] = []
    counts: dict[str, int] = {}
    if compared:
        ours, theirs = (
            evaluate_bundle(
                side.directory, _told(films, compared), "test", folder.evaluation / name,
                replicates=replicates, progress=progress,
            )
            for name, side in (("candidate", candidate), ("champion", champion))
        )  # fmt: skip
        for task in compared:
            called = _TASKS[task]
            counts[called] = ours[called]["films"]
            figures += _FIGURES[task](ours[called], theirs[called])
            if not _kept_apart(champion.manifest, task):
                remarks.append(
                    f"The champion's {called} may have been learned from some of these films: its recipe did not keep "
                    "held-out patients apart. Its figures may flatter it."
                )
    untold = champion.findings - candidate.findings
    if untold:
        remarks.append(f"The candidate says nothing of {', '.join(sorted(untold))}, which the champion does.")
    return {
        "champion": champion.manifest.key,
        "candidate": candidate.manifest.key,
        "films": counts,
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in figures],
        "below": [figure.name for figure in figures if figure.verdict == "below"],
        "remarks": remarks,
    }


def _about(films: Dataset, findings: frozenset[str]) -> Dataset:
    """The films with what is known of these findings alone: both bundles must be judged on the same ones."""
    records = tuple(
        replace(record, findings={slug: said for slug, said in record.findings.items() if slug in findings})
        for record in films.records
    )
    return replace(films, records=records)


def _told(films: Dataset, tasks: Sequence[Task]) -> Dataset:
    """The films with the truth of these tasks alone, for a bundle is measured on whatever truth there is."""
    forgotten: dict[str, Any] = {} if "segmentation" in tasks else {"truth_kind": ""}
    forgotten |= {} if "classification" in tasks else {"findings": {}}
    return replace(films, records=tuple(replace(record, **forgotten) for record in films.records))


def _not_comparable(task: Task, candidate: Side, champion: Side, films: Dataset) -> str:
    """Why a task is not compared, or ``""``."""
    if task == "segmentation":
        copied = candidate.manifest.metrics.get("segmentation", {}).get("copied_from")
        if copied == champion.manifest.key:
            return "the candidate has the champion's own segmentation network"
        if candidate.regions != champion.regions:
            return (
                f"the candidate draws {', '.join(candidate.regions)}, the champion {', '.join(champion.regions)}, "
                "and to win among other regions is another question"
            )
    elif not candidate.findings & champion.findings:
        return "the two bundles share no finding"
    return "" if has_truth(films, candidate.manifest, task) else "nothing is known of the held-out films"


def _masks(ours: Any, theirs: Any) -> list[Figure]:
    regions = [name for name, each in ours["regions"].items() if each["scored"] and theirs["regions"][name]["scored"]]
    alike = all(each["scored"] == theirs["regions"][name]["scored"] for name, each in ours["regions"].items())
    pairs = {"mean Dice": (ours["figures"]["mean_dice"], theirs["figures"]["mean_dice"])} if alike else {}
    pairs |= {f"Dice of {name}": (ours["regions"][name]["dice"], theirs["regions"][name]["dice"]) for name in regions}
    return [_figure(name, "segmentation", *pair) for name, pair in pairs.items()]


def _findings(ours: Any, theirs: Any) -> list[Figure]:
    pairs = {"mean AUROC": (ours["figures"]["mean_auroc"], theirs["figures"]["mean_auroc"])}
    pairs |= {
        f"AUROC of {name}": (each["auroc"], theirs["findings"][name]["auroc"])
        for name, each in ours["findings"].items()
        if name in theirs["findings"]
    }
    return [_figure(name, "classification", *pair) for name, pair in pairs.items()]


_FIGURES: dict[Task, Callable[[Any, Any], list[Figure]]] = {"segmentation": _masks, "classification": _findings}


def _figure(name: str, task: Task, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Figure:
    return Figure(name, task, ours["value"], theirs["value"], theirs["low"], theirs["high"])


def _kept_apart(manifest: Manifest, task: Task) -> bool:
    """Whether a bundle's own recipe says that held-out patients were kept apart when its networks learned."""
    recipes = [trained_with(manifest, member) for member in manifest.members_of(task)]
    return all(recipe is not None and recipe.data.split.held_out for recipe in recipes)
