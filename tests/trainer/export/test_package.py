"""From finished runs to a bundle that the worker takes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from finished_runs import NETWORKS, PARTS, SECRET

from schema.bundle import Manifest, read_manifest, sha256_of
from trainer.commands.package import package as command
from trainer.errors import RunError
from trainer.evaluation.films import trained_with
from trainer.export.package import package
from trainer.recipe import BundleTable
from trainer.training.run_folder import Run, RunFolder
from worker.inference.bundles import PACKAGED_BUNDLE, load_bundle
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import Precision
from worker.metrics import youden_threshold
from worker.monitor.drift_nights import reference_of

MakeRun = Callable[..., Run]
TRUTH = {"pneumonia": True, "no_finding": False}


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


class TestBundle:
    def test_has_the_members_in_order(self, manifest: Manifest) -> None:
        assert manifest.key == "tiny-segmentation:1"
        assert [(m.name, m.task) for m in manifest.members] == [
            ("holste_unet", "segmentation"),
            ("small_classifier-1", "classification"),
            ("small_classifier-2", "classification"),
        ]
        assert [finding.finding for finding in manifest.findings] == ["pneumonia", "bronchitis", "no_finding"]
        for member in manifest.members:
            assert member.variants == {
                "int8": f"{member.name}-int8.onnx",
                "fp16": f"{member.name}-fp16.onnx",
                "torch": f"{member.name}.pt2",
            }
        assert [member.parameters for member in manifest.members] == [34_380, 7_057, 7_057]

    def test_is_taken_by_the_worker(self, bundle: Path, tmp_path: Path) -> None:
        loaded = load_bundle(bundle, home=tmp_path, backend="openvino", precision="fp32", threads=1)
        assert all(report["passed"] for report in loaded.parity.values())
        loaded.close()

    def test_a_sigmoid_network_answers_like_any_other(self, untrained: MakeRun, tmp_path: Path) -> None:
        network = {**NETWORKS["segmentation"], "activation": "sigmoid", "threshold": 0.5}
        run = untrained("sigmoid", "segmentation", {"network": network, "loss": {"name": "class_frequency_dice"}})
        manifest = package([run], tmp_path / "bundle", replicates=50)
        (member,) = manifest.members
        told = trained_with(manifest, member)
        assert told is not None and (told.network.activation, told.network.threshold) == ("sigmoid", 0.5)
        with np.load(tmp_path / "bundle" / manifest.parity_films[0]) as film:
            said = film[f"{member.name}.probabilities"].astype(np.float32)
        assert len(said) == len(manifest.regions) == run.recipe.outputs + 1
        highest = said[1:].max(axis=0)
        sure = np.abs(highest - 0.5) > 1e-3
        assert sure.any()
        assert ((said.argmax(axis=0) > 0) == (highest > 0.5))[sure].all()
        loaded = load_bundle(tmp_path / "bundle", home=tmp_path, backend="openvino", precision="fp32", threads=1)
        assert all(report["passed"] for report in loaded.parity.values())
        loaded.close()

    def test_remembers_how_it_came_about(self, manifest: Manifest, masks: Run, finders: tuple[Run, Run]) -> None:
        for member, run in zip(manifest.members, (masks, *finders), strict=True):
            assert trained_with(manifest, member) == run.recipe
            facts = manifest.recipe["runs"][member.name]
            assert facts["data"]["digest"] == run.data["digest"]
            assert facts["training"]["chosen_epoch"] == 2
        assert len(manifest.data_digest) == 64

    def test_lists_every_file(self, bundle: Path, manifest: Manifest) -> None:
        present = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
        assert present == {"bundle.json", *manifest.files}
        assert "model-card.md" in present
        assert not list(bundle.parent.glob(".package-*"))


def contents(bundle: Path) -> Iterator[tuple[str, bytes]]:
    """Every file, and every array of the compressed ones."""
    for path in bundle.rglob("*"):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                for name in arrays.files:
                    stream = io.BytesIO()
                    np.save(stream, arrays[name])
                    yield f"{path.name} {name}", stream.getvalue()
        elif path.is_file():
            yield path.name, path.read_bytes()


def test_no_path_no_film_no_patient(bundle: Path, masks: Run) -> None:
    forbidden = [SECRET, "patient of", str(masks.folder), str(masks.folder.parents[1]), str(Path.cwd()), str(bundle)]
    assert "patient of" in (masks.folder / "split.csv").read_text()
    for name, content in contents(bundle):
        for words in forbidden:
            assert words.encode() not in content, f"{name} holds {words}"


def test_parity_films_are_phantoms_and_no_films_of_the_runs(bundle: Path, manifest: Manifest, masks: Run) -> None:
    films = np.concatenate([np.asarray(masks.samples(part).pictures, np.float32) for part in PARTS])
    for name in manifest.parity_films:
        with np.load(bundle / name) as arrays:
            picture = arrays["holste_unet.input"].astype(np.float32)
        assert np.abs(films - picture).mean(axis=(1, 2, 3)).min() > 0.05


class TestOperatingPoint:
    def scaled(self, bundle: Path, manifest: Manifest, runs: tuple[Run, ...], part: str) -> np.ndarray:
        """The ensemble's scaled mean, one network after the other, without the trainer's code."""
        members = manifest.members_of("classification")
        scores = []
        for member, run in zip(members, runs, strict=True):
            engine = open_backend("openvino").compile(bundle / member.onnx, Precision.FP32, threads=1)
            p = engine.run(np.asarray(run.samples(part).pictures, np.float32))["probabilities"].astype(np.float64)
            p = np.clip(p, 1e-7, 1 - 1e-7)
            scores.append(1 / (1 + np.exp(-np.log(p / (1 - p)) / manifest.temperature)))
        return np.mean(scores, axis=0)

    def test_thresholds_are_youdens_on_the_validation_films(
        self, bundle: Path, manifest: Manifest, finders: tuple[Run, Run]
    ) -> None:
        scores = self.scaled(bundle, manifest, finders, "validation")
        truth = finders[0].samples("validation").targets
        for column, finding in enumerate(manifest.findings):
            if finding.finding == "bronchitis":  # of which nothing is known
                assert finding.threshold == 0.5
                continue
            expected = youden_threshold(truth[:, column] == 1, scores[:, column])
            assert finding.threshold == pytest.approx(expected, abs=2e-5)
        assert manifest.metrics["no_threshold"] == ["bronchitis"]

    def test_the_distribution_of_the_test_films_scores_is_kept(
        self, bundle: Path, manifest: Manifest, finders: tuple[Run, Run]
    ) -> None:
        scores = self.scaled(bundle, manifest, finders, "test")
        for column, finding in enumerate(manifest.findings):
            kept = reference_of({"metrics": manifest.metrics}, finding.finding)
            assert kept is not None and kept.sum() == PARTS["test"]
            tenths = np.minimum((scores[:, column] * 10).astype(int), 9)
            assert np.abs(kept - np.bincount(tenths, minlength=10)).sum() <= 2, "an engine may round another way"

    def test_figures_are_of_the_test_films(self, bundle: Path, manifest: Manifest, finders: tuple[Run, Run]) -> None:
        scores = self.scaled(bundle, manifest, finders, "test")
        truth = finders[0].samples("test").targets
        figures = manifest.metrics["classification"]
        assert figures["films"] == PARTS["test"]
        for column, finding in enumerate(manifest.findings):
            if finding.finding not in TRUTH:
                assert finding.finding not in figures["findings"]
                continue
            positive = scores[truth[:, column] == 1, column]
            negative = scores[truth[:, column] == 0, column]
            area = np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative])
            assert figures["findings"][finding.finding]["auroc"]["value"] == pytest.approx(area, abs=1e-9)
            assert figures["findings"][finding.finding]["auroc"]["replicates"] > 0
        assert 0.25 <= manifest.temperature <= 4

    def test_masks_are_measured_too(self, bundle: Path, manifest: Manifest, masks: Run) -> None:
        engine = open_backend("openvino").compile(bundle / "holste_unet.onnx", Precision.FP32, threads=1)
        films = masks.samples("test")
        assert films.labels is not None
        found = engine.run(np.asarray(films.pictures, np.float32))["probabilities"].argmax(axis=1)
        lung = [
            2 * ((f == 1) & (t == 1)).sum() / ((f == 1).sum() + (t == 1).sum())
            for f, t in zip(found, films.labels, strict=True)
        ]
        figures = manifest.metrics["segmentation"]["regions"]["left_lung"]
        assert figures["dice"]["value"] == pytest.approx(float(np.mean(lung)), abs=1e-6)
        assert not any(isinstance(value, float) and math.isnan(value) for value in numbers(manifest.metrics))


def numbers(value: object) -> Iterator[object]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    else:
        yield value


def test_segmentation_can_be_taken_from_the_packaged_bundle(finders: tuple[Run, Run], tmp_path: Path) -> None:
    table = BundleTable(name="mixed", version="2", segmentation="packaged")
    manifest = package([finders[0]], tmp_path / "mixed", bundle=table, replicates=50)
    source = read_manifest(PACKAGED_BUNDLE)
    (taken,) = source.members_of("segmentation")
    assert manifest.regions == source.regions
    assert [member.task for member in manifest.members] == ["segmentation", "classification"]
    assert manifest.members[0] == taken
    assert manifest.files[taken.onnx] == source.files[taken.onnx]
    assert manifest.metrics["segmentation"] == {"copied_from": source.key}
    loaded = load_bundle(tmp_path / "mixed", home=tmp_path / "home", backend="openvino", precision="fp32", threads=1)
    loaded.close()
    card = (tmp_path / "mixed" / "model-card.md").read_text("utf-8")
    assert f"taken from the bundle {source.key}" in card


def test_without_test_films_nothing_is_measured_but_a_weighted_carina_is_settled(
    untrained: MakeRun, tmp_path: Path
) -> None:
    loss = {"name": "cross_entropy", "options": {"class_weights": {"carina": 28.0}}}
    run = untrained("m", "segmentation", {"loss": loss}, parts={"train": 6, "validation": 4})
    manifest = package([run], tmp_path / "out", bundle=BundleTable(name="b"))
    assert manifest.metrics == {}
    assert set(manifest.recipe["runs"]["holste_unet"]["lowered_logits"]) == {"carina"}
    card = (tmp_path / "out" / "model-card.md").read_text("utf-8")
    assert "no films were kept back" in card
    assert "its logit was lowered by" in card


class TestTarget:
    def test_anything_else_is_left_alone(self, masks: Run, bundle: Path, tmp_path: Path) -> None:
        for name, content in (("thesis.txt", b"years of work"), ("bundle.json", b"{}")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(RunError, match="holds other things than a bundle"):
                package([masks], tmp_path, bundle=BundleTable(name="b"))
            assert (tmp_path / name).read_bytes() == content

    @pytest.mark.parametrize(("name", "version"), [("Mine", "1"), ("mine", "1 2")])
    def test_a_name_nobody_could_register_is_refused_at_once(
        self, masks: Run, tmp_path: Path, name: str, version: str
    ) -> None:
        with pytest.raises(RunError, match="lower-case letters"):
            package([masks], tmp_path / "out", bundle=BundleTable(name=name, version=version))
        assert not (tmp_path / "out").exists()

    def test_a_failure_leaves_nothing(self, untrained: MakeRun, tmp_path: Path) -> None:
        loss = {"name": "cross_entropy", "options": {"class_weights": {"carina": 28.0}}}
        run = untrained("m", "segmentation", {"loss": loss}, parts={"train": 2, "validation": 2})
        (run.folder / "cache" / "pictures.npy").unlink()
        with pytest.raises(RunError, match="are gone"):
            package([run], tmp_path / "out", bundle=BundleTable(name="b"))
        assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_variant_that_does_not_exist(masks: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no variant fp8: choose among int8, fp16, bf16, torch"):
        package([masks], tmp_path / "out", variants=["fp8", "fp16"])


class TestCommand:
    def test_writes_what_it_was_told_and_replaces_an_earlier_bundle(self, untrained: MakeRun, tmp_path: Path) -> None:
        run = untrained("m", "segmentation", parts={"train": 6, "validation": 2})
        out = tmp_path / "out"
        result = CliRunner().invoke(command, [str(run.folder), "--out", str(out), "--name", "mine", "--version", "3"])
        assert result.exit_code == 0, result.output
        assert f"carina bundle add {out} --promote" in result.output
        assert read_manifest(out).key == "mine:3"
        arguments = [str(run.folder), "--out", str(out), "--variant", "bf16", "--int8", "--json"]
        manifest = json.loads(CliRunner().invoke(command, arguments).stdout)
        assert manifest["files"]["model-card.md"] == sha256_of(out / "model-card.md")
        assert list(manifest["members"][0]["variants"]) == ["int8", "bf16"]

    def test_says_which_variant_misses_the_gate(self, untrained: MakeRun, tmp_path: Path) -> None:
        run = untrained("m", "segmentation", parts={"train": 6, "validation": 2})
        weights = RunFolder(run.folder).weights
        network = torch.load(weights)
        first = next(iter(network))
        network[first] = 1e7 * network[first]  # far beyond what half precision can hold
        torch.save(network, weights)
        result = CliRunner().invoke(command, [str(run.folder), "--out", str(tmp_path / "out"), "--variant", "fp16"])
        assert result.exit_code == 0, result.output
        assert "fp16 of holste_unet misses the parity gate: " in result.output
        assert "| holste_unet | passed |" not in (tmp_path / "out/model-card.md").read_text("utf-8")

    def test_a_folder_that_is_no_run(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "out")])
        assert isinstance(result.exception, RunError)
        assert "is no run folder" in str(result.exception)
