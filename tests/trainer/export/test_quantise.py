from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import cv2  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from phantom_bundle import PHANTOM_BUNDLE  # noqa: E402

from schema.bundle import read_manifest  # noqa: E402
from trainer.export.onnx_export import read_onnx  # noqa: E402
from trainer.export.quantise import kept_in_float, quantise  # noqa: E402
from worker.film import preprocess  # noqa: E402
from worker.inference.engines.backends import open_backend  # noqa: E402
from worker.inference.engines.base import FloatArray, Precision  # noqa: E402
from worker.inference.parity import Measure, check_parity  # noqa: E402
from worker.phantom import make_phantom  # noqa: E402

MANIFEST = read_manifest(PHANTOM_BUNDLE)
PACKAGED = {member.task: PHANTOM_BUNDLE / member.onnx for member in MANIFEST.members}
STEPS = MANIFEST.members[0].preprocess


def phantoms(seeds: range) -> list[FloatArray]:
    cv2.setNumThreads(1)
    drawn = (make_phantom(9 * 10**6 + seed, rows=240, columns=216, randomise=0.6) for seed in seeds)
    return [preprocess.apply(STEPS, phantom.image, None) for phantom in drawn]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packaged bundle's networks in 8 bits: trained ones, for random ones agree for the wrong reasons."""
    folder = tmp_path_factory.mktemp("twins")
    films = phantoms(range(12))
    for task, network in PACKAGED.items():
        quantise(network, folder / f"{task}.onnx", films)
    return {task: folder / f"{task}.onnx" for task in PACKAGED}


def answers(path: Path, films: list[FloatArray]) -> dict[str, np.ndarray]:
    engine = open_backend("openvino").compile(path, Precision.FP32, threads=1)
    parts = [engine.run(film[None]) for film in films]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def films() -> list[FloatArray]:
    """Films that no twin was calibrated on."""
    return phantoms(range(100, 110))


def test_masks_of_films_it_was_not_calibrated_on_agree(twins: dict[str, Path], films: list[FloatArray]) -> None:
    full = answers(PACKAGED["segmentation"], films)["probabilities"].argmax(axis=1)
    eight = answers(twins["segmentation"], films)["probabilities"].argmax(axis=1)
    assert (full != eight).mean() < 0.005
    for lung in (1, 2):
        common = ((full == lung) & (eight == lung)).sum()
        assert 2 * common / ((full == lung).sum() + (eight == lung).sum()) > 0.995


def test_findings_agree(twins: dict[str, Path], films: list[FloatArray]) -> None:
    full, eight = (answers(path, films) for path in (PACKAGED["classification"], twins["classification"]))
    assert np.abs(full["probabilities"] - eight["probabilities"]).max() < 0.03
    assert np.abs(full["cam"] - eight["cam"]).max() < 0.05 * full["cam"].max()


def test_the_parity_gate_finds_the_twins_near(twins: dict[str, Path]) -> None:
    for member in MANIFEST.members:
        engine = open_backend("openvino").compile(twins[member.task], Precision.FP32, threads=1)
        report = check_parity(engine, member, MANIFEST, PHANTOM_BUNDLE)
        worst = {figure.measure: figure.value for figure in report.figures}
        assert all(figure.value > 0.9 for figure in report.figures if figure.measure is Measure.DICE)
        assert worst.get(Measure.PROBABILITY, 0.0) < 0.01
        assert worst.get(Measure.CAM, 0.0) < 0.1


def test_convolutions_compute_in_eight_bits_but_for_the_ends(twins: dict[str, Path]) -> None:
    model = onnx.load(twins["segmentation"])
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    eight = [node for node in convolutions if makers.get(node.input[0]) == "DequantizeLinear"]
    assert len(convolutions) - len(eight) == 2
    assert all(makers[node.input[1]] == "DequantizeLinear" for node in eight)
    assert any(t.data_type == TensorProto.INT8 for t in model.graph.initializer)
    assert twins["segmentation"].stat().st_size < 0.75 * PACKAGED["segmentation"].stat().st_size


def test_inputs_and_outputs_stay_as_they_were(twins: dict[str, Path]) -> None:
    for task, network in PACKAGED.items():
        ours, twin = onnx.load(network), onnx.load(twins[task])
        assert [value.name for value in twin.graph.output] == [value.name for value in ours.graph.output]
        assert twin.graph.input[0].type == ours.graph.input[0].type
        assert not twin.metadata_props
        engine = open_backend("openvino").compile(twins[task], Precision.FP32, threads=1)
        assert engine.run(np.zeros((3, 1, 256, 256), np.float32))["probabilities"].shape[0] == 3


def test_heads_and_the_first_convolution_stay_in_float(bundle: Path) -> None:
    model = read_onnx(bundle / "small_classifier-1.onnx")
    by_name = {node.name: node for node in model.graph.node}
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert kept_in_float(model) == {convolutions[0], convolutions[-1]}
    assert by_name[convolutions[0]].input[0] == "image"
    # The last one makes the activation maps: nothing but a ReLU lies between it and the output.
    after = next(node for node in model.graph.node if by_name[convolutions[-1]].output[0] in node.input)
    assert (after.op_type, list(after.output)) == ("Relu", ["cam"])


def test_parallel_ends_are_all_kept() -> None:
    def conv(name: str, source: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [source, f"{name}.w"], [name], name)

    nodes = [conv("a", "image"), conv("b", "image"), helper.make_node("Add", ["a", "b"], ["sum"], "sum")]
    nodes += [conv("middle", "sum"), conv("head", "middle"), helper.make_node("Relu", ["head"], ["out"], "relu")]
    graph = helper.make_graph(nodes, "g", [], [])
    assert kept_in_float(helper.make_model(graph)) == {"a", "b", "head"}
