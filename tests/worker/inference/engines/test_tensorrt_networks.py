"""Every network of the trainer, as the trainer exports it, through TensorRT's parser and builder."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="the extra dev has it")
torch = pytest.importorskip("torch", reason="the extra train has it")
pytest.importorskip("monai", reason="the extra train has it")

import onnx  # noqa: E402
from torch import nn  # noqa: E402

from trainer.export.onnx_export import (  # noqa: E402
    OPSET,
    OUTPUTS,
    ClassificationOutputs,
    SegmentationOutputs,
    export_onnx,
)
from trainer.networks.registry import NETWORKS, make_network  # noqa: E402
from worker.inference.engines.base import BUCKETS, EngineBuildError  # noqa: E402
from worker.inference.engines.tensorrt_plan import (  # noqa: E402
    LARGEST_BATCH,
    SMALLEST_BATCH,
    TUNED_BATCH,
    Plan,
    build_plan,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")

SIZE = 64
CLASSES = 5
#: Network → its input channels and its options; small ones stand for what a recipe may ask besides.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "holste_unet": ("holste_unet", 1, {}),
    "holste_unet half size": ("holste_unet", 1, {"base_width": 4, "half_size": True}),
    "small_classifier guided": ("small_classifier", 1, {"guided": True}),
    "densenet121": ("densenet121", 3, {}),
    "densenet169": ("densenet169", 3, {}),
    "resnet101": ("resnet101", 3, {}),
}
SLOW = {"densenet169", "resnet101"}


def outputs_of(name: str, channels: int, options: dict[str, Any]) -> tuple[nn.Module, str]:
    task = NETWORKS[name].task
    network = make_network(name, channels, CLASSES, options)
    return (SegmentationOutputs if task == "segmentation" else ClassificationOutputs)(network).eval(), task


def shape(channels: int) -> tuple[int, int, int]:
    return (channels, SIZE, SIZE)


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_builds_with_its_names_types_shapes_and_profile(case: str, tmp_path: Path) -> None:
    name, channels, options = CASES[case]
    module, task = outputs_of(name, channels, options)
    path = tmp_path / "network.onnx"
    export_onnx(module, path, shape(channels), OUTPUTS[task])
    plan = build_plan(trt, path)
    assert [str(tensor) for tensor in plan.spec.inputs] == [f"image float32 (batch, {channels}, {SIZE}, {SIZE})"]
    with torch.no_grad():
        answers = module(torch.zeros(2, *shape(channels)))
    expected = [tuple(answer.shape[1:]) for answer in ((answers,) if task == "segmentation" else answers)]
    assert [tensor.name for tensor in plan.spec.outputs] == list(OUTPUTS[task])
    assert [tensor.shape for tensor in plan.spec.outputs] == [(None, *sizes) for sizes in expected]
    assert {tensor.dtype for tensor in plan.spec.outputs} == {"float32"}
    assert plan.profile == tuple((batch, *shape(channels)) for batch in (SMALLEST_BATCH, TUNED_BATCH, LARGEST_BATCH))
    assert (BUCKETS[0], BUCKETS[-1]) == (SMALLEST_BATCH, LARGEST_BATCH) and TUNED_BATCH in BUCKETS
    # Weights are stored in half precision in the graph and computed with in float32.
    assert len(plan.content) > sum(tensor.numel() for tensor in module.parameters())


def test_every_network_of_the_trainer_is_built_here() -> None:
    assert {name for name, _, _ in CASES.values()} == set(NETWORKS)


class Typed(nn.Module):
    """A network that computes in another format between a float32 input and float32 outputs."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module.to(dtype), dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        answers = self.module(image.to(self.dtype))
        return answers.float() if isinstance(answers, torch.Tensor) else tuple(answer.float() for answer in answers)


def give_folded_weights_their_type(model: onnx.ModelProto) -> None:
    """Where the exporter folds a batch normalisation into a bfloat16 convolution, it leaves float32 weights."""
    products = [node for node in model.graph.node if node.op_type in {"Conv", "ConvTranspose", "Gemm"}]
    weights = {name for node in products for name in node.input[1:]}
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).ravel().tolist()
            tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, onnx.TensorProto.BFLOAT16, tensor.dims, values))


def typed_plan(name: str, dtype: torch.dtype, path: Path) -> Plan:
    """The network computing in ``dtype``, exported and built."""
    module, task = outputs_of(name, 1, {"base_width": 4})
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Typed(module, dtype).eval(),
            (torch.zeros(2, 1, SIZE, SIZE),),
            input_names=["image"],
            output_names=list(OUTPUTS[task]),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=256)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    if dtype is torch.bfloat16:
        give_folded_weights_their_type(model)
    onnx.save(model, path)
    return build_plan(trt, path)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("holste_unet", torch.float16), ("small_classifier", torch.float16), ("small_classifier", torch.bfloat16)],
)
def test_half_typed_graphs_build_strongly_typed(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plan = typed_plan(name, dtype, tmp_path / "network.onnx")
    assert {tensor.dtype for tensor in (*plan.spec.inputs, *plan.spec.outputs)} == {"float32"}
    assert [tensor.name for tensor in plan.spec.outputs] == list(OUTPUTS[NETWORKS[name].task])


def test_transposed_convolutions_in_bfloat16_are_refused_by_name(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 does not build them; an engine then falls to the next precision, and says this."""
    with pytest.raises(EngineBuildError, match=r"cannot build network\.onnx: .*deconv"):
        typed_plan("holste_unet", torch.bfloat16, tmp_path / "network.onnx")
