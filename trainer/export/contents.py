"""What a bundle is made of, and what the runs know about that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schema.bundle import BundleRegion, Manifest, Member, read_manifest
from trainer.data.description import PHANTOMS
from trainer.errors import RunError
from trainer.export.parity_films import CopiedFilms
from trainer.recipe import BundleTable, Recipe
from trainer.region_origins import exact, regions_of
from trainer.training.run_folder import Run
from worker.inference.bundles import PACKAGED_BUNDLE

PACKAGED = "packaged"
#: Facts about a run's data and training that a bundle repeats; none of them tells where anything lies.
_DATA_FACTS = ("name", "digest", "films", "parts", "patients", "origin", "findings")
_RUN_FACTS = (
    "epochs",
    "chosen_epoch",
    "steps",
    "seconds",
    "films_per_second",
    "device",
    "precision",
    "versions",
    "finished",
)


def bundle_table(runs: Sequence[Run], name: str = "", version: str = "") -> BundleTable:
    """What the runs' recipes say about their bundle; ``name`` and ``version`` count more.

    The first recipe that has a bundle table decides, and the segmentation recipe about regions.
    """
    tables = [run.recipe.bundle for run in runs if run.recipe.bundle]
    table = tables[0] if tables else BundleTable(name=runs[0].recipe.name)
    changes: dict[str, Any] = {"name": name or table.name, "version": version or table.version}
    for run in runs:
        if run.recipe.task == "segmentation":
            own = run.recipe.bundle or BundleTable(name=table.name)
            changes |= {
                name: getattr(own, name) for name in ("origin", "derived", "notes", "segmentation", "postprocess")
            }
    return table.model_copy(update=changes)


@dataclass(frozen=True)
class CopiedSegmentation:
    """Segmentation members that are taken from an existing bundle."""

    directory: Path
    manifest: Manifest

    @property
    def members(self) -> tuple[Member, ...]:
        """As they are called there."""
        return self.manifest.members_of("segmentation")

    @property
    def films(self) -> CopiedFilms:
        """The films they are checked by."""
        return CopiedFilms(self.directory, self.manifest.parity_films, tuple(member.name for member in self.members))


@dataclass(frozen=True)
class Contents:
    """One segmentation, by a run or copied, and the runs of an ensemble of classifiers."""

    segmentation: Run | None
    copied: CopiedSegmentation | None
    classifiers: tuple[Run, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, in the order of the bundle's members."""
        return (*([self.segmentation] if self.segmentation else []), *self.classifiers)

    @property
    def findings(self) -> tuple[str, ...]:
        """What the classifiers tell, in the order of their outputs."""
        return self.classifiers[0].recipe.data.findings if self.classifiers else ()

    def regions(self, bundle: BundleTable) -> tuple[BundleRegion, ...]:
        """The regions and how their truth was made: see :mod:`trainer.region_origins`."""
        if self.segmentation is None:
            return self.copied.manifest.regions if self.copied else ()
        recipe, data = self.segmentation.recipe, self.segmentation.data
        return (
            exact(regions_of(recipe, bundle))
            if data["name"] == PHANTOMS
            else regions_of(recipe, bundle, _derived(data))
        )

    def description(self, bundle: BundleTable) -> str:
        """What the bundle is in one sentence."""
        count = len(self.regions(bundle))
        learned = ", ".join(sorted({str(run.data["name"]) for run in self.runs}))
        findings = f" and {len(self.findings)} findings" if self.findings else ""
        return f"{count} chest regions{findings}, learned from {learned}. Research use."

    @property
    def data_digest(self) -> str:
        """The digest of a single run's data, else one over those of all that was learned from."""
        digests = [str(run.data["digest"]) for run in self.runs]
        digests += [self.copied.manifest.data_digest] if self.copied else []
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def contents_of(runs: Sequence[Run], bundle: BundleTable) -> Contents:
    """Sort runs into a bundle's parts.

    Raises
    ------
    RunError
        No segmentation or two of them, or classifiers of different findings.
    schema.bundle.BundleError
        The bundle that the segmentation is taken from is unusable.
    """
    masks = [run for run in runs if run.recipe.task == "segmentation"]
    classifiers = tuple(run for run in runs if run.recipe.task == "classification")
    if len(masks) > 1:
        folders = " and ".join(str(run.folder) for run in masks)
        raise RunError(f"A bundle has one segmentation network, and {folders} trained one each: name one of them.")
    if masks and bundle.segmentation:
        raise RunError(
            f"{masks[0].folder} trained a segmentation network, and bundle.segmentation takes another one "
            f"({bundle.segmentation}): leave one of the two out."
        )
    if not masks and not bundle.segmentation:
        raise RunError(
            "A bundle needs a segmentation network: name a run that trained one, or set bundle.segmentation to an "
            f"existing bundle's folder or to {PACKAGED!r}."
        )
    for run in classifiers[1:]:
        ours, theirs = classifiers[0].recipe.data.findings, run.recipe.data.findings
        if ours != theirs:
            raise RunError(
                f"{classifiers[0].folder} learned {', '.join(ours)} and {run.folder} learned {', '.join(theirs)}: "
                "the networks of an ensemble need the same findings in the same order."
            )
    if masks:
        return Contents(masks[0], None, classifiers)
    source = PACKAGED_BUNDLE if bundle.segmentation == PACKAGED else Path(bundle.segmentation).expanduser()
    return Contents(None, CopiedSegmentation(source, read_manifest(source)), classifiers)


def facts_of_run(run: Run) -> dict[str, Any]:
    """What a bundle repeats about a run: ``data`` and ``training``."""
    return {
        "data": {key: run.data[key] for key in _DATA_FACTS if key in run.data},
        "training": {key: run.facts[key] for key in _RUN_FACTS if key in run.facts},
    }


def recipe_without_places(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values; of files and folders only the last name stays."""
    table = recipe.to_dict()
    table.pop("grid", None)
    table["network"]["checkpoint"] = Path(table["network"]["checkpoint"]).name
    if own := table.get("bundle"):
        own["segmentation"] = Path(own["segmentation"]).name
        own["members"] = [Path(member).stem for member in own["members"]]
    return table


def _derived(data: Mapping[str, Any]) -> list[str]:
    """The regions that the data set made by rule, as its origin tells."""
    told = [words for what, words in data.get("origin", {}).items() if what.startswith("derived")]
    return [region.strip() for words in told for region in words.split(",")]
