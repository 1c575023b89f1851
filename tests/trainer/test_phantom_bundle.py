"""From two training steps to a bundle the worker accepts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

import openvino  # noqa: E402

from schema.bundle import Manifest, read_manifest  # noqa: E402
from trainer.networks.holste_unet import HolsteUNet  # noqa: E402
from trainer.phantom_bundle import Recipe, best_temperature, build, label_maps, settle_carina  # noqa: E402
from trainer.phantom_samples import draw_samples  # noqa: E402
from trainer.phantom_training import Course, HalfSizeSegmenter, Phase, segmentation_loss, train, vary  # noqa: E402

RECIPE = Recipe(seed=3, steps=4, base_width=4, phantoms=32, held_out=24)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "phantom-1"
    build(out, RECIPE, workers=1)
    return out


@pytest.fixture(scope="module")
def manifest(directory: Path) -> Manifest:
    return read_manifest(directory)


class TestBundle:
    def test_manifest_says_what_it_is(self, directory: Path, manifest: Manifest) -> None:
        assert manifest.key == "phantom:1"
        assert {region.origin for region in manifest.regions} == {"exact"}
        assert [finding.finding for finding in manifest.findings] == ["pneumonia", "no_finding"]
        assert manifest.recipe["seed"] == 3
        assert set(manifest.metrics["findings"]) == {"pneumonia", "no_finding"}
        assert len(manifest.data_digest) == 64
        card = (directory / "model-card.md").read_text("utf-8")
        assert "not a medical device" in card
        assert "Synthetic radiographs only" in card

    def test_is_small_and_tells_no_place(self, directory: Path) -> None:
        files = [path for path in directory.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 10_000_000
        for path in directory.glob("*.onnx"):
            assert b"site-packages" not in path.read_bytes()
            assert str(Path.cwd()).encode() not in path.read_bytes()

    def test_engine_gives_the_reference_outputs_at_any_batch(self, directory: Path, manifest: Manifest) -> None:
        core = openvino.Core()
        films = [np.load(directory / name) for name in manifest.parity_films]
        assert len(films) == 4
        for member in manifest.members:
            model = core.compile_model(str(directory / member.onnx), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            images = np.stack([film[f"{member.name}.input"] for film in films]).astype(np.float32)
            assert images.shape == (4, member.channels, member.height, member.width)
            for batch in (images[:1], images):
                result = model({"image": batch})
                for output in ("probabilities", "cam") if member.task == "classification" else ("probabilities",):
                    expected = np.stack([film[f"{member.name}.{output}"] for film in films[: len(batch)]])
                    assert np.abs(result[output] - expected.astype(np.float32)).max() < 2e-3

    def test_weights_are_stored_in_half_precision(self, directory: Path, manifest: Manifest) -> None:
        for member in manifest.members:
            size = (directory / member.onnx).stat().st_size
            assert size < 2.4 * member.parameters + 60_000

    def test_resume_goes_on_where_it_stopped(self, directory: Path, manifest: Manifest) -> None:
        again = build(directory, RECIPE, workers=1, resume=True)
        assert again.data_digest == manifest.data_digest
        assert again.files["regions.onnx"] == manifest.files["regions.onnx"]
        assert json.loads((directory / "bundle.json").read_text())["recipe"]["steps"] == 4


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    samples = draw_samples(1, 8)
    network = HolsteUNet(base_width=4)
    with torch.no_grad():
        before = float(segmentation_loss(network, samples, 4))
    train(network, Course("test", (Phase(12, 8, 4),), 1e-2), segmentation_loss, samples, tmp_path / "c.pt", seed=1)
    with torch.no_grad():
        assert float(segmentation_loss(network, samples, 4)) < before


def test_a_carina_that_wins_too_often_is_lowered() -> None:
    torch.manual_seed(0)
    samples = draw_samples(1, 6).chests()
    network = HalfSizeSegmenter(HolsteUNet(base_width=4).eval())
    with torch.no_grad():
        network.network.head.bias[7] += 2.5
    before = (label_maps(network, samples) == 7).sum()
    shift = settle_carina(network, samples)
    assert 0 < shift <= 3
    assert (label_maps(network, samples) == 7).sum() < before


def test_variation_keeps_pictures_in_range() -> None:
    varied = vary(torch.rand(16, 1, 32, 32))
    assert varied.min() >= 0
    assert varied.max() <= 1


def test_temperature_cools_a_network_that_is_too_sure() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((2000, 1)) < 0.5
    honest = np.where(truth, 1.0, -1.0) + rng.normal(0, 1, truth.shape)
    assert best_temperature((2.0 * honest).astype(np.float32), truth) < best_temperature(
        (6.0 * honest).astype(np.float32), truth
    )
