"""Films of a data set as a network sees them: of another data set than a run's own, or for a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schema.bundle import Manifest, Member, Task
from trainer.data.records import PARTS, Dataset
from trainer.data.splits import split
from trainer.data.store import Samples, build_samples
from trainer.errors import DataError
from trainer.evaluation.subjects import FilmSource, FinishedRun, Progress
from trainer.recipe import Recipe, check_recipe, nearest

#: Every film of a data set, whatever its part.
ALL = "all"


def films_from(dataset: Dataset, folder: Path, progress: Progress) -> FilmSource:
    """A source of films for runs: those of ``dataset`` instead of their own; see :func:`read_films`."""

    def source(run: FinishedRun, part: str) -> Samples:
        return read_films(dataset, run.recipe, part, folder, progress)

    return source


def read_films(dataset: Dataset, recipe: Recipe, part: str, folder: Path, progress: Progress) -> Samples:
    """The films of ``part`` as the recipe's network sees them.

    Parameters
    ----------
    dataset
        Need not say anything about some of the recipe's findings: these are then not known of any film.
    part
        ``train``, ``validation`` or ``test``: the films whose part the data set fixes; where it fixes none,
        the recipe's split. ``all``: every film.
    folder
        Keeps what was read, so that it is read once.

    Raises
    ------
    DataError
        There is no such part, it is empty, the data say nothing that the recipe learns, films cannot be read.
    """
    usable, places = films_of_part(dataset, recipe, part)
    return build_samples(
        usable,
        places,
        recipe,
        folder,
        lambda done, total: progress("reading films", done, total),
    )


def films_of_part(dataset: Dataset, recipe: Recipe, part: str) -> tuple[Dataset, Sequence[int]]:
    """The data set as the recipe's network may be judged on it, and the places of the films of ``part`` in it.

    Arguments and errors as for :func:`read_films`; no film is read.
    """
    if part not in (ALL, *PARTS):
        raise DataError(f"There is no part {part!r}{nearest(part, (ALL, *PARTS))}.")
    known = known_findings(dataset, recipe.data.findings)
    if recipe.task == "classification" and not known:
        raise DataError(
            f"{dataset.name} says nothing about {', '.join(recipe.data.findings)}: evaluate on other films."
        )
    asked = {"findings": known, "added_phantoms": 0}
    usable = dataset.for_recipe(recipe.model_copy(update={"data": recipe.data.model_copy(update=asked)}))
    return usable, _places(usable, recipe, part)


def known_findings(dataset: Dataset, findings: Sequence[str]) -> tuple[str, ...]:
    """Those of ``findings`` of which at least one film says something."""
    said = {slug for record in dataset.records for slug, present in record.findings.items() if present is not None}
    return tuple(finding for finding in findings if finding in said)


def has_truth(dataset: Dataset, manifest: Manifest, task: Task) -> bool:
    """Whether any film could tell how well the bundle does ``task``."""
    if task == "segmentation":
        return any(record.truth_kind for record in dataset.records)
    return bool(known_findings(dataset, [finding.finding for finding in manifest.findings]))


def recipe_of(manifest: Manifest, member: Member) -> Recipe:
    """What :func:`read_films` needs to know of a bundle's member: preprocessing, classes, the split it learned by."""
    trained = trained_with(manifest, member)
    data: dict[str, Any] = trained.data.model_dump() if trained else {}
    data |= {
        "regions": [region.name for region in manifest.regions] if member.task == "segmentation" else [],
        "findings": [each.finding for each in manifest.findings] if member.task == "classification" else [],
    }
    table = {
        "name": member.name.lower(),
        "description": "",
        "task": member.task,
        "network": {
            "name": member.network,
            "activation": trained.network.activation if trained else "softmax",
            "threshold": trained.network.threshold if trained else 0.75,
        },
        "preprocess": list(member.preprocess),
        "data": data,
        "loss": {"name": "none"},
        "training": {"epochs": 1, "batch_size": 1},
    }
    return check_recipe(table, f"of {member.name} in {manifest.key}")


def trained_with(manifest: Manifest, member: Member) -> Recipe | None:
    """The recipe of a member as the bundle keeps it, under the member's name or for all; None if it does not."""
    for table in (manifest.recipe.get(member.name), manifest.recipe):
        if isinstance(table, dict) and table.get("task") == member.task:
            return check_recipe(table, f"of {member.name} in {manifest.key}")
    return None


def _places(dataset: Dataset, recipe: Recipe, part: str) -> Sequence[int]:
    if part == ALL:
        return range(len(dataset.records))
    fixed = [place for place, record in enumerate(dataset.records) if record.part == part]
    places = fixed or split(dataset.records, recipe.data.split).part(part)
    if not places:
        raise DataError(f"The {part} part of {dataset.name} has no films: choose another part, or {ALL}.")
    return places
