"""From finished runs to a bundle: networks, operating point, parity films, figures, model card, manifest.

A bundle has segmentation networks, trained by runs or taken from an existing bundle, and any number of classifiers. The
probabilities of several are averaged (masks: Novikov et al., section IV-A and Table III; findings: classifier paper,
section 3.5.2). What it says about itself comes from the runs; no path, film name or patient key goes into it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from schema.bundle import (
    MANIFEST_NAME,
    BundleError,
    FindingThreshold,
    Manifest,
    Member,
    is_name,
    read_manifest,
    sha256_of,
    write_manifest,
)
from schema.regions import Region
from trainer.data.store import Samples
from trainer.errors import RunError
from trainer.evaluation.evaluate import say_nothing
from trainer.evaluation.subjects import Progress, member_names
from trainer.export import VARIANTS
from trainer.export.contents import (
    Contents,
    CopiedSegmentation,
    bundle_table,
    contents_of,
    facts_of_run,
    recipe_without_places,
)
from trainer.export.measured import check_engines, measure_findings, measure_segmentation
from trainer.export.model_card import model_card
from trainer.export.onnx_export import (
    OUTPUTS,
    export_onnx,
    folded,
    outputs_of,
    round_weights,
)
from trainer.export.operating_point import NO_THRESHOLD, settle_carina, weighs_the_carina
from trainer.export.parity_films import write_parity_films
from trainer.export.shared_films import shared_films
from trainer.export.variants import Draft, write_variant
from trainer.recipe import BundleTable
from trainer.training.run_folder import Run
from worker.bootstrap import REPLICATES

_CARD = "model-card.md"
#: Of :class:`trainer.networks.small_classifier.GuidedClassifier`.
_PLACE_HEAD = "place"


def package(
    runs: Sequence[Run],
    out: Path,
    *,
    bundle: BundleTable | None = None,
    variants: Collection[str] = (),
    replicates: int = REPLICATES,
    progress: Progress = say_nothing,
) -> Manifest:
    """Write a bundle to ``out``; it appears there whole or not at all.

    Parameters
    ----------
    runs
        Segmentation runs of the same regions on the same grid, and classification runs of the same findings.
    out
        The bundle's folder. An earlier bundle there is replaced, anything else refused.
    bundle
        Name, version, and where the segmentation network comes from when no run trained one; what the runs' recipes
        say if None.
    variants
        Those of :data:`trainer.export.VARIANTS` that are also written of every network that a run trained.
    replicates
        Bootstrap replicates of the figures' intervals.
    progress
        Called with what is done, how much of it, and how much there is.

    Raises
    ------
    RunError
        There is no such variant; the runs do not make a bundle, share no validation or test film, or their films are
        gone; a network does not say in the bundle what it said; ``out`` holds something else.
    schema.bundle.BundleError
        The bundle that the segmentation network is taken from is unusable.
    """
    if unknown := sorted({*variants} - {*VARIANTS}):
        raise RunError(f"There is no variant {', '.join(unknown)}: choose among {', '.join(VARIANTS)}.")
    bundle = bundle or bundle_table(runs)
    _check_target(out, bundle)
    contents = contents_of(runs, bundle)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".package-") as scratch:
        draft = Path(scratch) / "bundle"
        draft.mkdir()
        _Draft(draft, contents, replicates, progress).write(bundle, [each for each in VARIANTS if each in variants])
        if out.exists():
            out.rename(Path(scratch) / "earlier")
        draft.rename(out)
    return read_manifest(out)


def _check_target(out: Path, bundle: BundleTable) -> None:
    for what, text in (("name", bundle.name), ("version", bundle.version)):
        if not is_name(text):
            raise RunError(
                f"{text!r} cannot be a bundle's {what}: use lower-case letters, digits, '.', '_' and '-' "
                f"(carina package --{what})."
            )
    if out.exists() and not _may_be_replaced(out):
        raise RunError(f"{out} holds other things than a bundle: choose another folder for the bundle.")


def _may_be_replaced(out: Path) -> bool:
    """Whether ``out`` is an empty folder or a bundle and nothing beside it."""
    if not out.is_dir():
        return False
    files = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}
    try:
        return not files or files <= {MANIFEST_NAME, *read_manifest(out, verify_files=False).files}
    except BundleError:
        return False


@dataclass
class _Network:
    """A run's network on its way into the bundle; ``lowered`` is region → how much its logit is lowered."""

    run: Run
    member: Member
    outputs: nn.Module
    lowered: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Draft:
    """A bundle that is being written to ``directory``."""

    directory: Path
    contents: Contents
    replicates: int
    progress: Progress

    def write(self, bundle: BundleTable, variants: Sequence[str]) -> None:
        """All files, the manifest last."""
        copied = self.contents.copied
        networks = self._networks()
        self._export(networks)
        said = [(network.member, network.outputs) for network in networks]
        manifest = Manifest(
            name=bundle.name,
            version=bundle.version,
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            description=bundle.description or self.contents.description(bundle),
            regions=self.contents.regions(bundle),
            findings=tuple(FindingThreshold(finding, NO_THRESHOLD) for finding in self.contents.findings),
            members=(*(copied.members if copied else ()), *(network.member for network in networks)),
            temperature=1.0,
            parity_films=write_parity_films(self.directory, said, copied.films if copied else None),
            metrics={},
            recipe=_recipe(networks, copied),
            data_digest=self.contents.data_digest,
            files={},
            postprocess=copied.manifest.postprocess if copied else bundle.postprocess,
        )
        self._write_manifest(manifest)
        check_engines(self.directory, manifest)
        manifest = self._with_figures(manifest, networks)
        manifest = self._with_variants(manifest, networks, variants)
        (self.directory / _CARD).write_text(model_card(manifest), "utf-8")
        self._write_manifest(manifest)

    def _networks(self) -> list[_Network]:
        taken = [member.name for member in self.contents.copied.members] if self.contents.copied else []
        runs = self.contents.runs
        names = member_names([*taken, *(run.recipe.network.name for run in runs)])[len(taken) :]
        return [_network(run, name) for run, name in zip(runs, names, strict=True)]

    def _export(self, networks: Sequence[_Network]) -> None:
        for done, network in enumerate(networks, 1):
            member = network.member
            shape = (member.channels, member.height, member.width)
            export_onnx(network.outputs, self.directory / member.onnx, shape, OUTPUTS[member.task])
            self.progress("networks exported", done, len(networks))
        copied = self.contents.copied
        for name in (name for member in (copied.members if copied else ()) for name in member.networks):
            assert copied is not None
            (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(copied.directory / name, self.directory / name)

    def _with_figures(self, manifest: Manifest, networks: Sequence[_Network]) -> Manifest:
        """The manifest with operating point and figures."""
        recipes = {network.member.name: network.run.recipe for network in networks}
        finders = [network for network in networks if network.member.task == "classification"]
        metrics: dict[str, Any] = {}
        if self.contents.copied:
            metrics["segmentation"] = {"copied_from": self.contents.copied.manifest.key}
        elif test := _test_films([network for network in networks if network.member.task == "segmentation"]):
            metrics["segmentation"] = measure_segmentation(
                self.directory, recipes, test, replicates=self.replicates, progress=self.progress
            )
        if not finders:
            return replace(manifest, metrics=metrics)
        found = measure_findings(
            self.directory,
            recipes,
            _films(finders, "validation"),
            _test_films(finders),
            replicates=self.replicates,
            progress=self.progress,
        )
        metrics |= {"classification": found.metrics} if found.metrics else {}
        metrics |= {"no_threshold": list(found.unsettled)} if found.unsettled else {}
        return replace(manifest, temperature=found.temperature, findings=found.thresholds, metrics=metrics)

    def _with_variants(self, manifest: Manifest, networks: Sequence[_Network], variants: Sequence[str]) -> Manifest:
        """The manifest with the variants of every trained member, and what the parity gate says of each."""
        files: dict[str, dict[str, str]] = {network.member.name: {} for network in networks}
        gates: dict[str, dict[str, Any]] = {variant: {} for variant in variants}
        wanted = [(variant, network) for variant in variants for network in networks]
        for done, (variant, network) in enumerate(wanted, 1):
            draft = Draft(self.directory, manifest, network.run, network.member, network.outputs)
            file, gate = write_variant(variant, draft)
            files[network.member.name][variant] = file
            gates[variant][network.member.name] = gate.to_json()
            self.progress("variants written", done, len(wanted))
        members = tuple(
            replace(member, variants=files[member.name]) if member.name in files else member
            for member in manifest.members
        )
        metrics = {**manifest.metrics, "variants": gates} if gates else manifest.metrics
        return replace(manifest, members=members, metrics=metrics)

    def _write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest with the SHA-256 of every file that is there."""
        paths = sorted(path for path in self.directory.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
        files = {str(path.relative_to(self.directory)): sha256_of(path) for path in paths}
        write_manifest(self.directory, replace(manifest, files=files))
        read_manifest(self.directory)


def _network(run: Run, name: str) -> _Network:
    recipe = run.recipe
    trained = run.network()
    member = Member(
        name,
        recipe.task,
        f"{name}.onnx",
        *recipe.input_shape,
        preprocess=tuple(dict(step) for step in recipe.preprocess),
        network=recipe.network.name,
        parameters=sum(weights.numel() for name, weights in trained.named_parameters() if not _is_left_out(name)),
    )
    network = folded(trained)
    round_weights(network)
    lowered = _lowered(run, network)
    amounts = [lowered.get(region, 0.0) for region in recipe.data.regions]
    return _Network(run, member, outputs_of(recipe, network, amounts).eval(), lowered)


def _is_left_out(parameter: str) -> bool:
    """Whether a parameter belongs to the head that is there for training only."""
    return _PLACE_HEAD in parameter.split(".")


def _lowered(run: Run, network: nn.Module) -> dict[str, float]:
    if not weighs_the_carina(run.recipe) or not run.split.validation:
        return {}
    carina = run.recipe.data.regions.index(Region.CARINA)
    return {str(Region.CARINA): settle_carina(network, run.samples("validation"), carina)}


def _films(networks: Sequence[_Network], part: str) -> dict[str, Samples]:
    """Member name → the films that all networks may be judged on."""
    films = shared_films([network.run for network in networks], part)
    return {network.member.name: samples for network, samples in zip(networks, films, strict=True)}


def _test_films(networks: Sequence[_Network]) -> dict[str, Samples] | None:
    """None where the runs kept no films back: nothing is measured then, and the model card says so."""
    return _films(networks, "test") if any(network.run.split.test for network in networks) else None


def _recipe(networks: Sequence[_Network], copied: CopiedSegmentation | None) -> dict[str, Any]:
    """Member → its resolved recipe, and under ``runs`` member → what is known of its training."""
    recipes: dict[str, Any] = {}
    runs: dict[str, Any] = {}
    for member in copied.members if copied else ():
        assert copied is not None
        source = copied.manifest
        runs[member.name] = {"copied_from": source.key, "data_digest": source.data_digest}
        recipes |= {member.name: source.recipe[member.name]} if member.name in source.recipe else {}
    for network in networks:
        name = network.member.name
        recipes[name] = recipe_without_places(network.run.recipe)
        runs[name] = {**facts_of_run(network.run), **({"lowered_logits": network.lowered} if network.lowered else {})}
    return {**recipes, "runs": runs}
