"""Every network of the trainer, as the trainer exports it, through TensorRT's parser and builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="the extra dev has it")
torch = pytest.importorskip("torch", reason="the extra train has it")
pytest.importorskip("monai", reason="the extra train has it")

import onnx  # noqa: E402
from torch import nn  # noqa: E402

from schema.bundle import Member  # noqa: E402
from trainer.export.onnx_export import (  # noqa: E402
    OUTPUTS,
    ClassificationOutputs,
    SegmentationOutputs,
    SigmoidOutputs,
    export_onnx,
    folded,
    graph_of,
)
from trainer.export.typed import export_typed  # noqa: E402
from trainer.networks.registry import NETWORKS, make_network  # noqa: E402
from worker.inference.engines.base import BUCKETS, EngineBuildError, Precision  # noqa: E402
from worker.inference.engines.tensorrt_plan import (  # noqa: E402
    LARGEST_BATCH,
    SMALLEST_BATCH,
    TUNED_BATCH,
    build_plan,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")

SIZE = 64
CLASSES = 5
#: Network → its input channels and its options; small ones stand for what a recipe may ask besides.
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "holste_unet": ("holste_unet", 1, {}),
    "holste_unet half size": ("holste_unet", 1, {"base_width": 4, "half_size": True}),
    "original_unet": ("original_unet", 1, {"base_width": 8}),
    "all_dropout": ("all_dropout", 1, {"base_width": 8, "elu": True}),
    "all_convolutional": ("all_convolutional", 1, {"base_width": 8}),
    "inverted_net": ("inverted_net", 1, {"base_width": 32}),
    "attention_bcdu": ("attention_bcdu", 1, {"base_width": 4}),
    "resnet34_unet": ("resnet34_unet", 3, {}),
    "small_classifier guided": ("small_classifier", 1, {"guided": True}),
    "densenet121": ("densenet121", 3, {}),
    "densenet169": ("densenet169", 3, {}),
    "resnet101": ("resnet101", 3, {}),
}
#: DenseNet-121 stands for them in the short suite, and the small classifier for it where graphs are half typed.
LARGE = {"densenet169", "resnet101"}
SLOW = {*LARGE, "densenet121", "resnet34_unet", "attention_bcdu"}


def cases(slow: set[str]) -> list[Any]:
    return [pytest.param(case, marks=pytest.mark.slow if case in slow else ()) for case in CASES]


def outputs_of(name: str, channels: int, options: dict[str, Any]) -> tuple[nn.Module, str]:
    task = NETWORKS[name].task
    network = make_network(name, channels, CLASSES, options)
    return (SegmentationOutputs if task == "segmentation" else ClassificationOutputs)(network).eval(), task


def shape(channels: int) -> tuple[int, int, int]:
    return (channels, SIZE, SIZE)


@pytest.mark.parametrize("case", cases(slow=LARGE))
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


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("case", cases(slow=SLOW))
def test_its_half_typed_graphs_build_too(case: str, precision: Precision, tmp_path: Path) -> None:
    name, channels, options = CASES[case]
    module, task = outputs_of(name, channels, options)
    module.network = folded(module.network)
    member = Member("network", task, "network.onnx", *shape(channels), ())
    export_typed(module, tmp_path / "network.onnx", member, precision)
    plan = build_plan(trt, tmp_path / "network.onnx")
    assert {tensor.dtype for tensor in (*plan.spec.inputs, *plan.spec.outputs)} == {"float32"}
    assert [tensor.name for tensor in plan.spec.outputs] == list(OUTPUTS[task])


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_sigmoid_heads_build_too(precision: Precision, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, CLASSES, 3, padding=1))
    module, path = SigmoidOutputs(folded(network), 0.75).eval(), tmp_path / "network.onnx"
    if precision is Precision.FP32:
        export_onnx(module, path, shape(1), OUTPUTS["segmentation"])
    else:
        export_typed(module, path, Member("network", "segmentation", path.name, *shape(1), ()), precision)
    (answer,) = build_plan(trt, path).spec.outputs
    assert (answer.name, answer.shape, answer.dtype) == ("probabilities", (None, CLASSES + 1, SIZE, SIZE), "float32")


def test_transposed_convolutions_in_bfloat16_are_refused_by_name(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7 does not build them, which is why the trainer writes them in float32."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1).bfloat16()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layer(image.bfloat16()).float()

    onnx.save(graph_of(Bare(), (8, SIZE, SIZE), ["answer"]), tmp_path / "network.onnx")
    with pytest.raises(EngineBuildError, match=r"cannot build network\.onnx: .*deconv"):
        build_plan(trt, tmp_path / "network.onnx")
