"""TensorRT's parser and builder on our networks, by the build of it that needs no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from phantom_bundle import PHANTOM_BUNDLE
from tiny_bundle import SIZE, VARIANTS, classification_network, segmentation_network

from schema.bundle import read_manifest
from worker.inference.engines.base import EngineBuildError
from worker.inference.engines.tensorrt_plan import build_plan

pytestmark = pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")

trt = pytest.importorskip("tensorrt_rtx", reason="the extra dev has it")


def network(
    folder: Path,
    nodes: list[onnx.NodeProto],
    *,
    shape: tuple[int | str, ...] = ("batch", 1, 8, 8),
    dtype: int = TensorProto.FLOAT,
    output: int = TensorProto.FLOAT,
    initializers: list[onnx.TensorProto] | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info("out", output, None)],
        initializers or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "network.onnx"
    onnx.save(model, path)
    return path


def packaged(task: str) -> Path:
    """The network of the packaged bundle for a task."""
    (member,) = (member for member in read_manifest(PHANTOM_BUNDLE).members if member.task == task)
    return PHANTOM_BUNDLE / member.onnx


def test_the_packaged_networks_build_with_their_names_types_and_shapes():
    regions = build_plan(trt, packaged("segmentation"))
    assert [str(tensor) for tensor in regions.spec.inputs] == ["image float32 (batch, 1, 256, 256)"]
    assert [str(tensor) for tensor in regions.spec.outputs] == ["probabilities float32 (batch, 8, 256, 256)"]
    findings = build_plan(trt, packaged("classification"))
    assert [tensor.name for tensor in findings.spec.outputs] == ["probabilities", "cam"]
    assert findings.spec.outputs[0].shape == (None, 2)
    assert len(regions.content) > 100_000 and len(findings.content) > 100_000


def test_a_timing_cache_is_taken_up_again():
    first = build_plan(trt, packaged("classification"))
    again = build_plan(trt, packaged("classification"), timings=first.timings)
    assert again.spec == first.spec


def test_an_unusable_timing_cache_does_not_stop_the_build():
    assert build_plan(trt, packaged("classification"), timings=b"not a cache").content


def test_a_batch_without_a_profile_is_refused():
    network = packaged("classification")
    with pytest.raises(EngineBuildError, match=rf"cannot build {network.name}.*profile"):
        build_plan(trt, network, profile=False)


def test_sixteen_bit_integers_are_refused(tmp_path):
    path = network(
        tmp_path, [helper.make_node("Cast", ["image"], ["out"], to=TensorProto.FLOAT)], dtype=TensorProto.INT16
    )
    with pytest.raises(EngineBuildError, match=r"network\.onnx"):
        build_plan(trt, path)


def test_an_antialiased_resize_is_refused(tmp_path):
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 0.5, 0.5])
    node = helper.make_node("Resize", ["image", "", "scales"], ["out"], mode="linear", antialias=1)
    with pytest.raises(EngineBuildError, match="antialias"):
        build_plan(trt, network(tmp_path, [node], initializers=[scales]))


def test_an_unknown_operator_is_named(tmp_path):
    with pytest.raises(EngineBuildError, match="Wonder"):
        build_plan(trt, network(tmp_path, [helper.make_node("Wonder", ["image"], ["out"])]))


def test_a_fixed_batch_is_refused(tmp_path):
    path = network(tmp_path, [helper.make_node("Relu", ["image"], ["out"])], shape=(4, 1, 8, 8))
    with pytest.raises(EngineBuildError, match="batches of 4 only"):
        build_plan(trt, path)


def test_outputs_of_another_type_are_refused(tmp_path):
    path = network(
        tmp_path,
        [helper.make_node("Cast", ["image"], ["out"], to=TensorProto.FLOAT16)],
        output=TensorProto.FLOAT16,
    )
    with pytest.raises(EngineBuildError, match="out is float16"):
        build_plan(trt, path)


def test_a_file_that_is_no_network_is_refused(tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(EngineBuildError, match=r"cannot read network\.onnx"):
        build_plan(trt, path)


def test_a_file_that_is_absent_is_refused(tmp_path):
    with pytest.raises(EngineBuildError, match=r"cannot read absent\.onnx"):
        build_plan(trt, tmp_path / "absent.onnx")


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("model", [segmentation_network(), classification_network()], ids=["regions", "findings"])
def test_the_typed_networks_of_the_contract_suite_build(tmp_path, model, variant):
    onnx.save(VARIANTS[variant](model), tmp_path / "network.onnx")
    plan = build_plan(trt, tmp_path / "network.onnx")
    assert [tensor.name for tensor in plan.spec.outputs] == [output.name for output in model.graph.output]
    assert plan.profile == tuple((batch, 1, SIZE, SIZE) for batch in (1, 16, 32))


def test_zero_points_are_refused(tmp_path):
    """Why 8 bits are not among TensorRT's precisions: the activations of a bundle's 8-bit graph have zero points."""
    model = VARIANTS["int8"](segmentation_network())
    (zero,) = (tensor for tensor in model.graph.initializer if tensor.name == "image.zero")
    zero.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.uint8), "image.zero"))
    onnx.save(model, tmp_path / "network.onnx")
    with pytest.raises(EngineBuildError, match="Non-zero zero point is not supported"):
        build_plan(trt, tmp_path / "network.onnx")


def test_two_inputs_are_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Add", ["image", "other"], ["out"])],
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ("batch", 1, 8, 8)) for n in ("image", "other")],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(EngineBuildError, match="one input"):
        build_plan(trt, path)
