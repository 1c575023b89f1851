"""A network that reads nothing but a planted border is found out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnx
from chest_bundle import SIZE, make_chest_bundle
from onnx import TensorProto, helper, numpy_helper

from schema.bundle import MANIFEST_NAME, read_manifest, sha256_of, write_manifest
from trainer.data.records import Dataset, FilmRecord
from trainer.errors import DataError
from trainer.evaluation import Extras, evaluate_bundle
from trainer.evaluation.shortcuts import ENSEMBLE, ShortcutScores, measure_shortcuts, original_sizes
from worker.phantom import make_phantom

FILMS = {"train": 70, "test": 60}
_EDGE = 4


def border_reader() -> onnx.ModelProto:
    """(batch, 1, 64, 64) → probabilities (batch, 2) that depend on the outermost columns only, and a flat map."""
    names = {"start": [0], "end": [_EDGE], "axis": [3]}
    nodes = [
        helper.make_node("Slice", ["image", "start", "end", "axis"], ["edge"]),
        helper.make_node("GlobalAveragePool", ["edge"], ["average"]),
        helper.make_node("Flatten", ["average"], ["mean"]),
        helper.make_node("Mul", ["mean", "slopes"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
        helper.make_node("AveragePool", ["image"], ["coarse"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Mul", ["coarse", "nothing"], ["blank"]),
        helper.make_node("Add", ["blank", "one"], ["cam"]),
    ]
    constants = {name: np.array(value, np.int64) for name, value in names.items()}
    constants |= {"slopes": np.array([[-4.0, 4.0]], np.float32), "nothing": np.float32(0)}
    constants |= {"one": np.ones((1, 2, 1, 1), np.float32)}
    graph = helper.make_graph(
        nodes,
        "border",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["batch", 2, SIZE // 8, SIZE // 8]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_chest_bundle(tmp_path_factory.mktemp("bundles") / "border", 1)
    onnx.save(border_reader(), directory / "findings.onnx")
    manifest = read_manifest(directory, verify_files=False)
    networks = {"segmentation": "holste_unet", "classification": "small_classifier"}
    members = tuple(replace(member, network=networks[member.task]) for member in manifest.members)
    files = {path.name: sha256_of(path) for path in directory.iterdir() if path.name != MANIFEST_NAME}
    write_manifest(directory, replace(manifest, members=members, files=files))
    return directory


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Chests whose label nothing tells but a black border: four in five of the sick have one, one in five others."""
    root = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(8)
    records = []
    for part, count in FILMS.items():
        for index in range(count):
            ill = index % 2 == 0
            phantom = make_phantom(int(rng.integers(1 << 30)), rows=72, columns=72, pneumonia=False, randomise=0.1)
            picture, labels = phantom.image.copy(), phantom.labels
            if rng.random() < (0.8 if ill else 0.2):
                picture[:, :6] = 0
            name = f"Doe-{part}-{index}"
            cv2.imwrite(str(root / f"{name}.png"), np.rint(picture * 255).astype(np.uint8))
            cv2.imwrite(str(root / f"{name}-labels.png"), labels)
            findings = {"pneumonia": ill, "no_finding": not ill}
            image, truth = root / f"{name}.png", root / f"{name}-labels.png"
            records.append(FilmRecord(name, image, truth, name, findings, part=part, truth_kind="label_map"))
    return Dataset("films", tuple(records), root, {})


@pytest.fixture(scope="module")
def measured(bundle: Path, films: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("out")
    summary = evaluate_bundle(bundle, films, "test", out, extras=Extras(shortcuts=True), replicates=200)
    return summary["shortcuts"], out / "shortcuts"


@pytest.fixture(scope="module")
def scores(bundle: Path, films: Dataset, tmp_path_factory: pytest.TempPathFactory) -> ShortcutScores:
    return measure_shortcuts(
        bundle, films, "test", tmp_path_factory.mktemp("cache"), limit=40, seed=1, progress=lambda *_: None
    )


class TestPlantedBorder:
    def test_the_network_looks_good_until_its_films_are_matched(self, measured: tuple[dict, Path]) -> None:
        pneumonia = measured[0]["findings"]["pneumonia"]
        everything, matched = pneumonia["all"], pneumonia["matched"]
        assert everything["ensemble"]["value"] > 0.7
        assert everything["traits_probe"]["value"] > 0.7
        assert (everything["positive"], everything["negative"]) == (30, 30)
        assert matched["positive"] == matched["negative"] >= 8
        assert matched["ensemble"]["value"] < 0.65
        assert abs(matched["traits_probe"]["value"] - 0.5) < 0.15
        assert matched["ensemble"]["low"] < 0.5

    def test_the_border_is_named(self, measured: tuple[dict, Path]) -> None:
        table = (measured[1] / "traits.csv").read_text("utf-8").splitlines()
        rows = [line.split(",") for line in table if line.startswith("pneumonia,")]
        apart = {row[1]: abs(float(row[3])) for row in rows if not row[1].startswith('"')}
        assert max(apart, key=apart.__getitem__) == "left border"

    def test_a_flat_map_lies_in_the_lungs_as_far_as_they_reach(self, measured: tuple[dict, Path]) -> None:
        cam = measured[0]["cam_inside_lungs"]["pneumonia"]
        assert cam["ensemble"]["films"] == 30
        assert cam["ensemble"]["value"] == pytest.approx(cam["uniform"]["value"], abs=1e-6)
        assert 0.15 < cam["uniform"]["value"] < 0.6

    def test_the_report_says_so_and_names_no_film(self, measured: tuple[dict, Path]) -> None:
        summary, out = measured
        report = (out / "report.md").read_text("utf-8")
        assert "| matched |" in report
        assert "a map that is the same everywhere" in report
        assert "Doe" not in report
        assert json.loads((out / "summary.json").read_text("utf-8"))["figures"] == summary["figures"]
        assert summary["fitted_on"] == FILMS["train"]


class TestFilms:
    def test_a_few_are_enough(self, scores: ShortcutScores) -> None:
        assert len(scores.targets) == scores.fitted_on == 40
        assert set(scores.inside) == {ENSEMBLE}
        np.testing.assert_allclose(scores.ensemble.sum(axis=1), 1, atol=1e-5)

    def test_sizes_before_resizing_come_from_a_table(self, tmp_path: Path) -> None:
        (tmp_path / "images").mkdir()
        for name in "abc":
            cv2.imwrite(str(tmp_path / f"images/{name}.png"), np.zeros((40, 40), np.uint8))
        (tmp_path / "films.csv").write_text("name,h,w\na,100,50\nb,,\nc,300,70\n", "utf-8")
        (tmp_path / "dataset.toml").write_text('[films]\nfiles = [{ file = "films.csv" }]\n', "utf-8")
        sizes = original_sizes(str(tmp_path), "", ("h", "w"))
        assert sizes == {"a": (100, 50), "b": (200, 60), "c": (300, 70)}
        with pytest.raises(DataError, match="--film-size names the column 'height'"):
            original_sizes(str(tmp_path), "", ("height", "w"))
        with pytest.raises(DataError, match="which is no size"):
            original_sizes(str(tmp_path), "", ("name", "w"))

    @pytest.mark.parametrize("part", ["all", "train"])
    def test_what_was_fitted_on_is_not_measured(self, part: str, bundle: Path, films: Dataset, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="fitted on the train part"):
            evaluate_bundle(bundle, films, part, tmp_path, extras=Extras(shortcuts=True))
        assert not list(tmp_path.iterdir())
