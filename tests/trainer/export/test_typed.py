from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto  # noqa: E402
from torch import nn  # noqa: E402

from schema.bundle import Member  # noqa: E402
from trainer.export.onnx_export import ClassificationOutputs, SegmentationOutputs, folded, round_weights  # noqa: E402
from trainer.export.typed import FORMATS, Typed, export_typed, rounding_engine  # noqa: E402
from trainer.networks.registry import make_network  # noqa: E402
from worker.inference.engines.backends import open_backend  # noqa: E402
from worker.inference.engines.base import EngineError, Precision  # noqa: E402

HALVES = [Precision.FP16, Precision.BF16]
MASKS = Member("masks", "segmentation", "masks.onnx", 1, 32, 32, ())
FINDER = Member("finder", "classification", "finder.onnx", 1, 64, 64, ())


@pytest.fixture(scope="module")
def masks() -> nn.Module:
    torch.manual_seed(1)
    network = folded(make_network("holste_unet", 1, 3, {"base_width": 4}))
    round_weights(network)
    return SegmentationOutputs(network, (0.0, 0.0, 0.5)).eval()


@pytest.fixture(scope="module")
def finder() -> nn.Module:
    torch.manual_seed(2)
    network = folded(make_network("small_classifier", 1, 3, {"base_width": 4}))
    round_weights(network)
    return ClassificationOutputs(network).eval()


def elements(path: Path, operator: str) -> set[int]:
    """The number formats of the weights that an operator of the graph is given."""
    model = onnx.load(path)
    formats = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    formats |= {node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"}
    return {formats[node.input[1]] for node in model.graph.node if node.op_type == operator}


@pytest.mark.parametrize("precision", HALVES)
def test_computes_in_its_format_between_float32(masks: nn.Module, precision: Precision, tmp_path: Path) -> None:
    path = tmp_path / "masks.onnx"
    before = {name: tensor.clone() for name, tensor in masks.state_dict().items()}
    export_typed(masks, path, MASKS, precision)
    rounding_engine(masks, MASKS, precision)
    for name, tensor in masks.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), "the original is changed"
    model = onnx.load(path)
    ends = [*model.graph.input, *model.graph.output]
    assert [value.name for value in ends] == ["image", "probabilities"]
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    half = TensorProto.FLOAT16 if precision is Precision.FP16 else TensorProto.BFLOAT16
    assert elements(path, "Conv") == {half}
    # TensorRT-RTX builds no transposed convolution in bfloat16.
    assert elements(path, "ConvTranspose") == {half if precision is Precision.FP16 else TensorProto.FLOAT}
    content = path.read_bytes()
    assert b"site-packages" not in content and str(Path.cwd()).encode() not in content
    engine = open_backend("openvino").compile(path, Precision.FP32, threads=1)
    pictures = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        expected = masks(pictures).numpy()
    np.testing.assert_allclose(engine.run(pictures.numpy())["probabilities"], expected, atol=0.01)


@pytest.mark.parametrize("precision", HALVES)
def test_the_gates_engine_rounds_as_the_format_does(finder: nn.Module, precision: Precision) -> None:
    pictures = torch.rand(2, 1, 64, 64)
    inner = folded(make_network("small_classifier", 1, 3, {"base_width": 4}))
    inner.load_state_dict(finder.network.state_dict())
    with torch.no_grad():
        exact, (logits, _) = finder(pictures)[0].numpy(), Typed(inner, FORMATS[precision])(pictures)
    found = rounding_engine(finder, FINDER, precision).run(pictures.numpy())["probabilities"]
    error = np.abs(found - exact).max()
    # Farther from float32 than it is, as far as PyTorch's own arithmetic in the format is.
    assert 0 < error < 5 * np.abs(torch.sigmoid(logits).numpy() - exact).max() + 1e-5
    np.testing.assert_allclose(found, torch.sigmoid(logits).numpy(), atol=0.002)


def test_bfloat16_is_coarser_than_half_precision(finder: nn.Module) -> None:
    pictures = torch.rand(4, 1, 64, 64)
    with torch.no_grad():
        exact = finder(pictures)[1].numpy()
    fp16, bf16 = (
        np.abs(rounding_engine(finder, FINDER, each).run(pictures.numpy())["cam"] - exact).max() for each in HALVES
    )
    assert bf16 > 3 * fp16


def test_numbers_beyond_half_precision_are_seen() -> None:
    torch.manual_seed(2)
    network = folded(make_network("small_classifier", 1, 3, {"base_width": 4}))
    with torch.no_grad():
        next(network.parameters()).mul_(1e6)
        list(network.parameters())[2].mul_(1e-6)
    outputs = ClassificationOutputs(network).eval()
    picture = np.ones((1, 1, 64, 64), np.float32)
    assert np.isfinite(rounding_engine(outputs, FINDER, Precision.BF16).run(picture)["probabilities"]).all()
    with pytest.raises(EngineError, match="not finite"):
        rounding_engine(outputs, FINDER, Precision.FP16).run(picture)
