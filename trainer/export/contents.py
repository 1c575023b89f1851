"""What a bundle is made of, and what the runs know about that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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

    The first recipe that has a bundle table decides, and the first segmentation recipe about regions.
    """
    tables = [run.recipe.bundle for run in runs if run.recipe.bundle]
    table = tables[0] if tables else BundleTable(name=runs[0].recipe.name)
    changes: dict[str, Any] = {"name": name or table.name, "version": version or table.version}
    if masks := next((run for run in runs if run.recipe.task == "segmentation"), None):
        own = masks.recipe.bundle or BundleTable(name=table.name)
        changes |= {name: getattr(own, name) for name in ("origin", "derived", "notes", "segmentation", "postprocess")}
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
    """The runs of an ensemble of segmentation networks, or a copied one, and those of an ensemble of classifiers."""

    segmenters: tuple[Run, ...]
    copied: CopiedSegmentation | None
    classifiers: tuple[Run, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, in the order of the bundle's members."""
        return (*self.segmenters, *self.classifiers)

    @property
    def findings(self) -> tuple[str, ...]:
        """What the classifiers tell, in the order of their outputs."""
        return self.classifiers[0].recipe.data.findings if self.classifiers else ()

    def regions(self, bundle: BundleTable) -> tuple[BundleRegion, ...]:
        """The regions and how their truth was made: see :mod:`trainer.region_origins`.

        A region that was derived for one network of an ensemble counts as derived.
        """
        if not self.segmenters:
            return self.copied.manifest.regions if self.copied else ()
        recipe = self.segmenters[0].recipe
        if all(run.data["name"] == PHANTOMS for run in self.segmenters):
            return exact(regions_of(recipe, bundle))
        return regions_of(recipe, bundle, [name for run in self.segmenters for name in _derived(run.data)])

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
        No segmentation, segmentation networks whose answers cannot be averaged, or classifiers of different findings.
    schema.bundle.BundleError
        The bundle that the segmentation is taken from is unusable.
    """
    masks = tuple(run for run in runs if run.recipe.task == "segmentation")
    classifiers = tuple(run for run in runs if run.recipe.task == "classification")
    _check_averages(masks)
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
        return Contents(masks, None, classifiers)
    source = PACKAGED_BUNDLE if bundle.segmentation == PACKAGED else Path(bundle.segmentation).expanduser()
    return Contents((), CopiedSegmentation(source, read_manifest(source)), classifiers)


def _check_averages(masks: Sequence[Run]) -> None:
    """See that the probabilities of segmentation networks mean the same, pixel by pixel; preprocessing may differ."""
    for run in masks[1:]:
        for ours, theirs in zip(_answer(masks[0].recipe), _answer(run.recipe), strict=True):
            if ours != theirs:
                raise RunError(
                    f"{masks[0].folder} learned {ours} and {run.folder} learned {theirs}: the masks of an ensemble are "
                    "averaged pixel by pixel, so package the two apart, or train one of them again."
                )


def _answer(recipe: Recipe) -> Iterator[str]:
    """What a segmentation network's channels are, in words."""
    _, height, width = recipe.input_shape
    yield ", ".join(recipe.data.regions)
    yield f"masks of {height} x {width}"
    yield f"regions that {'overlap' if recipe.data.overlapping else 'exclude each other'}"
    network = recipe.network
    yield network.activation + (f" with the threshold {network.threshold:g}" if network.activation == "sigmoid" else "")


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
