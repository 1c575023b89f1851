from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto  # noqa: E402
from torch import nn  # noqa: E402

from trainer.export.onnx_export import (  # noqa: E402
    OUTPUTS,
    ClassificationOutputs,
    SegmentationOutputs,
    SigmoidOutputs,
    export_onnx,
    folded,
    read_onnx,
    round_weights,
    write_onnx,
)
from trainer.networks.registry import make_network  # noqa: E402
from worker.inference.engines.backends import open_backend  # noqa: E402
from worker.inference.engines.base import Engine, Precision  # noqa: E402

LOWERED = (0.0, 0.0, 1.5)


def engine_of(path: Path) -> Engine:
    return open_backend("openvino").compile(path, Precision.FP32, threads=1)


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    torch.manual_seed(1)
    network = make_network("holste_unet", 1, 3, {"base_width": 4, "half_size": True}).eval()
    round_weights(network)
    return network


@pytest.fixture(scope="module")
def exported(segmenter: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "regions.onnx"
    export_onnx(SegmentationOutputs(segmenter, LOWERED), path, (1, 32, 64), OUTPUTS["segmentation"])
    return path


@pytest.mark.parametrize("films", [1, 3])
def test_engine_says_what_the_network_says_with_lowered_logits(
    exported: Path, segmenter: nn.Module, films: int
) -> None:
    pictures = torch.rand(films, 1, 32, 64)
    with torch.no_grad():
        logits = segmenter(pictures).numpy()
    logits[:, 2] -= 1.5
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = engine_of(exported).run(pictures.numpy())["probabilities"]
    assert found.shape == (films, 3, 32, 64)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("background", [False, True])
def test_engine_says_what_a_sigmoid_network_says(background: bool, tmp_path: Path) -> None:
    """Without its own background channel, with every region above Novikov's 0.75 where it was, the last on top."""
    network = nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([-8.0, 8.0, 20.0]).view(3, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, 0.0, -8.0]))
    module = SigmoidOutputs(network, 0.75, background=background).eval()
    export_onnx(module, tmp_path / "sigmoid.onnx", (1, 32, 64), OUTPUTS["segmentation"])
    pictures = torch.rand(2, 1, 32, 64) * 2 - 1
    with torch.no_grad():
        expected = module(pictures).numpy()
        regions = network(pictures)[:, int(background) :].sigmoid().numpy()
    found = engine_of(tmp_path / "sigmoid.onnx").run(pictures.numpy())["probabilities"]
    assert found.shape == (2, 3 if background else 4, 32, 64)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    sure = np.abs(regions - 0.75).min(axis=1) > 1e-3
    above = regions > 0.75
    assert above[:, -1].any() and (~above).all(axis=1).any() and (above.sum(axis=1) > 1).any()
    last = np.where(above.any(axis=1), regions.shape[1] - above[:, ::-1].argmax(axis=1), 0)
    assert (found.argmax(axis=1) == last)[sure].all()
    assert ((found[:, 1:] > 0.75) == above).all(axis=1)[sure].all()


def test_nothing_is_lowered_unless_asked_for(segmenter: nn.Module) -> None:
    pictures = torch.rand(1, 1, 32, 64)
    with torch.no_grad():
        plain, zero = SegmentationOutputs(segmenter)(pictures), SegmentationOutputs(segmenter, (0, 0, 0))(pictures)
        torch.testing.assert_close(plain, torch.softmax(segmenter(pictures), 1))
    assert torch.equal(plain, zero)


def test_weights_are_halved_and_nothing_else(exported: Path) -> None:
    model = onnx.load(exported)
    halves = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert halves
    assert all(len(tensor.dims) > 1 for tensor in halves)
    large = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) >= 256]
    assert all(len(tensor.dims) == 1 for tensor in large)
    assert [value.name for value in model.graph.input] == ["image"]
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def test_reading_takes_the_casts_back(exported: Path, tmp_path: Path) -> None:
    plain = read_onnx(exported)
    assert not any(node.op_type == "Cast" for node in plain.graph.node)
    onnx.checker.check_model(plain)
    write_onnx(plain, tmp_path / "again.onnx")
    pictures = np.random.default_rng(1).random((1, 1, 32, 64), np.float32)
    first, second = (engine_of(path).run(pictures)["probabilities"] for path in (exported, tmp_path / "again.onnx"))
    np.testing.assert_array_equal(first, second)


def test_tells_no_place(exported: Path) -> None:
    content = exported.read_bytes()
    assert b"site-packages" not in content
    assert str(Path.cwd()).encode() not in content
    assert b"torch/" not in content


def test_a_weight_beyond_half_precision_stays_as_it_is(tmp_path: Path) -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = 1e6
    before = layer.weight.detach().clone()
    round_weights(layer)
    assert torch.equal(layer.weight, before)
    export_onnx(layer, tmp_path / "large.onnx", (16, 8, 8), ["answer"])
    pictures = torch.rand(1, 16, 8, 8)
    found = engine_of(tmp_path / "large.onnx").run(pictures.numpy())["answer"]
    np.testing.assert_allclose(found, layer(pictures).detach().numpy(), rtol=1e-4, atol=1e-2)


def test_rounding_leaves_vectors_alone() -> None:
    layer = nn.Linear(300, 300)
    bias, weight = layer.bias.detach().clone(), layer.weight.detach().clone()
    round_weights(layer)
    assert torch.equal(layer.bias, bias)
    assert not torch.equal(layer.weight, weight)
    assert torch.equal(layer.weight, weight.half().float())


def test_a_classifier_has_its_map_as_second_output(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = make_network("small_classifier", 3, 4, {"base_width": 4}).eval()
    round_weights(network)
    export_onnx(ClassificationOutputs(network), tmp_path / "f.onnx", (3, 64, 64), OUTPUTS["classification"])
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        logits, maps = network(pictures)
    found = engine_of(tmp_path / "f.onnx").run(pictures.numpy())
    np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-logits.numpy())), atol=1e-3)
    np.testing.assert_allclose(found["cam"], maps.numpy(), atol=2e-3)


class TestFolding:
    """The exporter folds batch normalisations into convolutions: done before rounding, nothing is rounded twice."""

    def statistics_as_after_training(self, network: nn.Module) -> None:
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)

    def farthest(self, network: nn.Module, path: Path) -> float:
        """Largest difference of the exported heat maps from the network's own, as a share of the highest."""
        round_weights(network)
        module = ClassificationOutputs(network)
        export_onnx(module, path, (1, 64, 64), OUTPUTS["classification"])
        picture = torch.rand(1, 1, 64, 64)
        with torch.no_grad():
            maps = module(picture)[1].numpy()
        found = engine_of(path).run(picture.numpy())["cam"]
        return float(np.abs(found - maps).max() / maps.max())

    def test_says_the_same_without_batch_normalisations(self) -> None:
        torch.manual_seed(3)
        network = make_network("small_classifier", 1, 3, {"guided": True, "half_size": True}).eval()
        self.statistics_as_after_training(network)
        pictures = torch.rand(2, 1, 64, 64)
        plain = folded(network)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
        with torch.no_grad():
            for ours, theirs in zip(plain(pictures), network(pictures), strict=True):
                torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("name", ["small_classifier", pytest.param("resnet101", marks=pytest.mark.slow)])
    def test_is_what_brings_the_bundle_close_to_the_reference(self, name: str, tmp_path: Path) -> None:
        if name == "resnet101":
            pytest.importorskip("monai")
        torch.manual_seed(1)
        network = make_network(name, 1, 3).eval()
        self.statistics_as_after_training(network)
        plain = folded(network)
        near, far = (self.farthest(each, tmp_path / "network.onnx") for each in (plain, network))
        assert near < 2e-5
        assert near < far / 5
