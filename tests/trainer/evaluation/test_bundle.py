"""A packaged bundle measured on films of a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from phantom_bundle import PHANTOM_BUNDLE

from schema.bundle import read_manifest
from trainer.data.records import Dataset, FilmRecord, phantom_dataset
from trainer.errors import DataError
from trainer.evaluation import evaluate_bundle
from trainer.evaluation.evaluate import say_nothing
from trainer.evaluation.films import read_films, recipe_of, trained_with
from trainer.recipe import load_recipe
from worker.metrics import auroc, region_overlaps
from worker.phantom import make_phantom

FILMS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms as PNG films with label maps, half of them with pneumonia."""
    root = tmp_path_factory.mktemp("films")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for index in range(FILMS):
        phantom = make_phantom(100 + index, rows=240, columns=220, pneumonia=index % 2 == 0, randomise=0.3)
        cv2.imwrite(str(root / "images" / f"Doe-{index}.png"), np.rint(phantom.image * 255).astype(np.uint8))
        cv2.imwrite(str(root / "labels" / f"Doe-{index}.png"), phantom.labels)
    return root


def records_of(folder: Path, *, masks: bool = True, findings: bool = True) -> Dataset:
    records = tuple(
        FilmRecord(
            f"Doe-{index}",
            folder / "images" / f"Doe-{index}.png",
            folder / "labels" / f"Doe-{index}.png" if masks else None,
            f"patient-{index}",
            {"pneumonia": index % 2 == 0} if findings else {},
            truth_kind="label_map" if masks else "",
        )
        for index in range(FILMS)
    )
    return Dataset("films", records, folder, {})


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("evaluation")
    return evaluate_bundle(PHANTOM_BUNDLE, records_of(folder), "all", out, replicates=50), out


class TestPackagedBundle:
    def test_gives_masks_and_findings(self, measured: tuple[dict, Path]) -> None:
        summary, out = measured
        assert summary["bundle"] == "phantom:2"
        assert summary["masks"]["films"] == summary["findings"]["films"] == FILMS
        assert summary["masks"]["figures"]["lung_dice"]["value"] > 0.9
        assert {region["truth"] for region in summary["masks"]["regions"].values()} == {"exact"}
        assert json.loads((out / "summary.json").read_text("utf-8"))["masks"]["figures"] == summary["masks"]["figures"]
        for name in ("report.md", "masks/report.md", "masks/comparison.png", "findings/report.md", "findings/roc.png"):
            assert (out / name).stat().st_size > 100
        for report in out.rglob("report.md"):
            assert "Doe" not in report.read_text("utf-8")

    def test_takes_thresholds_and_temperature_from_the_bundle(self, measured: tuple[dict, Path]) -> None:
        manifest = read_manifest(PHANTOM_BUNDLE)
        findings = measured[0]["findings"]
        assert manifest.temperature != 1.0
        assert findings["findings"]["pneumonia"]["threshold"] == manifest.findings[0].threshold
        assert set(findings["findings"]) == {"pneumonia"}  # of no_finding these films say nothing
        assert findings["findings"]["pneumonia"]["auroc"]["value"] is not None

    def test_agrees_with_its_network_run_by_another_engine(self, folder: Path, measured: tuple[dict, Path]) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        manifest = read_manifest(PHANTOM_BUNDLE)
        member = manifest.members_of("segmentation")[0]
        cache = measured[1] / "cache"
        films = read_films(records_of(folder), recipe_of(manifest, member), "all", cache, say_nothing)
        session = onnxruntime.InferenceSession(str(PHANTOM_BUNDLE / member.onnx), providers=["CPUExecutionProvider"])
        (probabilities,) = session.run(["probabilities"], {"image": np.asarray(films.pictures, np.float32)})
        found = probabilities.argmax(axis=1).astype(np.uint8)
        dice = [
            [each.dice for each in region_overlaps(np.asarray(truth), labels, manifest.region_definitions).values()]
            for truth, labels in zip(films.labels, found, strict=True)
        ]
        expected = np.nanmean(np.array(dice), axis=1).mean()
        assert measured[0]["masks"]["figures"]["mean_dice"]["value"] == pytest.approx(expected, abs=1e-3)
        classifier = manifest.members_of("classification")[0]
        films = read_films(records_of(folder), recipe_of(manifest, classifier), "all", cache, say_nothing)
        session = onnxruntime.InferenceSession(str(PHANTOM_BUNDLE / classifier.onnx))
        (scores,) = session.run(["probabilities"], {"image": np.asarray(films.pictures, np.float32)})
        area = auroc(films.targets[:, 0] == 1, scores[:, 0])
        assert measured[0]["findings"]["findings"]["pneumonia"]["auroc"]["value"] == pytest.approx(area)

    def test_without_findings_there_are_only_masks(self, folder: Path, tmp_path: Path) -> None:
        summary = evaluate_bundle(PHANTOM_BUNDLE, records_of(folder, findings=False), "all", tmp_path, replicates=5)
        assert summary["findings"] is None
        assert summary["masks"]["films"] == FILMS

    def test_films_that_say_nothing_are_refused(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="neither masks nor findings"):
            evaluate_bundle(PHANTOM_BUNDLE, records_of(folder, masks=False, findings=False), "all", tmp_path)

    def test_an_unknown_part_is_refused_with_the_nearest(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="did you mean 'test'"):
            evaluate_bundle(PHANTOM_BUNDLE, records_of(folder), "tests", tmp_path)


class TestFilms:
    def test_a_data_set_of_test_films_only_needs_no_split(self, folder: Path, tmp_path: Path) -> None:
        manifest = read_manifest(PHANTOM_BUNDLE)
        recipe = recipe_of(manifest, manifest.members_of("segmentation")[0])
        dataset = records_of(folder)
        fixed = replace(dataset, records=tuple(replace(record, part="test") for record in dataset.records[:2]))
        assert read_films(fixed, recipe, "test", tmp_path, say_nothing).names == ("Doe-0", "Doe-1")
        with pytest.raises(DataError, match="train part"):
            read_films(fixed, recipe, "train", tmp_path, say_nothing)

    def test_otherwise_the_split_is_the_one_the_bundle_learned_by(self, tmp_path: Path) -> None:
        recipe = load_recipe("holste")
        manifest = read_manifest(PHANTOM_BUNDLE)
        member = manifest.members_of("segmentation")[0]
        assert trained_with(replace(manifest, recipe={}), member) is None
        table = recipe.to_dict()
        table["data"]["split"]["seed"] = 77
        for kept in (table, {member.name: table}):
            learned = recipe_of(replace(manifest, recipe=kept), member)
            assert learned.data.split.seed == 77
            assert learned.input_shape == (1, 256, 256)
        other = manifest.members_of("classification")[0]
        assert recipe_of(replace(manifest, recipe=table), other).data.split.seed == 1

    def test_findings_that_no_film_knows(self, tmp_path: Path) -> None:
        recipe = load_recipe(
            "holste", {"task": "classification", "data.findings": ["bronchitis"], "training.monitor": "loss"}
        )
        with pytest.raises(DataError, match="says nothing about bronchitis"):
            read_films(phantom_dataset(8), recipe, "all", tmp_path, say_nothing)

    def test_what_was_derived_from_lungs_is_never_scored(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "masks").mkdir()
        drawn = records_of(folder, findings=False)
        records = []
        for record in drawn.records:
            assert record.truth is not None
            lungs = np.isin(cv2.imread(str(record.truth), cv2.IMREAD_GRAYSCALE), (1, 2))
            path = tmp_path / "masks" / record.truth.name
            cv2.imwrite(str(path), lungs.astype(np.uint8) * 255)
            records.append(replace(record, truth=path, truth_kind="lungs"))
        dataset = replace(drawn, records=tuple(records))
        summary = evaluate_bundle(PHANTOM_BUNDLE, dataset, "all", tmp_path / "out", replicates=5)["masks"]
        truth = {name: region["truth"] for name, region in summary["regions"].items()}
        assert {name for name, origin in truth.items() if origin == "exact"} == {"left_lung", "right_lung"}
        assert set(truth.values()) == {"exact", "derived"}
        lungs_dice = [summary["regions"][name]["dice"]["value"] for name in ("left_lung", "right_lung")]
        assert summary["figures"]["mean_dice"]["value"] == pytest.approx(np.mean(lungs_dice))
