"""A small but whole bundle: real ONNX networks, parity films whose references come from onnx's own interpreter."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from schema.bundle import BundleRegion, FindingThreshold, Manifest, Member, sha256_of, write_manifest
from schema.regions import HOLSTE_REGIONS

SIZE = 32
CAM_SIZE = SIZE // 2
REGIONS = len(HOLSTE_REGIONS)


def _convolution(
    name: str, source: str, weights: np.ndarray, **attributes: object
) -> tuple[onnx.NodeProto, onnx.TensorProto]:
    padding = (weights.shape[-1] - 1) // 2
    node = helper.make_node(
        "Conv",
        [source, f"{name}.weight"],
        [name],
        kernel_shape=list(weights.shape[2:]),
        pads=[padding] * 4,
        **attributes,
    )
    return node, numpy_helper.from_array(weights, f"{name}.weight")


def _model(nodes: list, weights: list, outputs: dict[str, list], channels: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, SIZE, SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def segmentation_network(seed: int = 0, *, regions: int = REGIONS, channels: int = 1) -> onnx.ModelProto:
    """Two convolutions and a softmax: (batch, channels, 32, 32) → (batch, regions, 32, 32)."""
    random = np.random.default_rng(seed)
    first, first_weights = _convolution("first", "image", random.normal(0, 0.5, (8, channels, 5, 5)).astype(np.float32))
    second, second_weights = _convolution(
        "second", "active", random.normal(0, 1, (regions, 8, 1, 1)).astype(np.float32)
    )
    nodes = [
        first,
        helper.make_node("Relu", ["first"], ["active"]),
        second,
        helper.make_node("Softmax", ["second"], ["probabilities"], axis=1),
    ]
    return _model(nodes, [first_weights, second_weights], {"probabilities": ["batch", regions, SIZE, SIZE]}, channels)


def classification_network(seed: int = 0, *, findings: int = 2, channels: int = 1) -> onnx.ModelProto:
    """Convolution, class activation map, global average, sigmoid: probabilities and the map leave the network."""
    random = np.random.default_rng(seed)
    first, first_weights = _convolution(
        "first", "image", random.normal(0, 0.3, (8, channels, 3, 3)).astype(np.float32), strides=[2, 2]
    )
    cam, cam_weights = _convolution("cam", "active", random.normal(0, 1, (findings, 8, 1, 1)).astype(np.float32))
    nodes = [
        first,
        helper.make_node("Relu", ["first"], ["active"]),
        cam,
        helper.make_node("GlobalAveragePool", ["cam"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    outputs = {"probabilities": ["batch", findings], "cam": ["batch", findings, CAM_SIZE, CAM_SIZE]}
    return _model(nodes, [first_weights, cam_weights], outputs, channels)


def with_nan_weight(model: onnx.ModelProto, layer: int = 1) -> onnx.ModelProto:
    """The network with one weight of a layer that is not a number.

    In layer 0 the activation that follows may swallow it: the output is finite and wrong.
    """
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    weights = numpy_helper.to_array(broken.graph.initializer[layer]).copy()
    weights.flat[0] = np.nan
    broken.graph.initializer[layer].CopyFrom(numpy_helper.from_array(weights, broken.graph.initializer[layer].name))
    return broken


def picture(seed: int, channels: int = 1) -> np.ndarray:
    """A smooth picture of shape (channels, 32, 32), float32, exact in half precision."""
    coarse = np.random.default_rng(seed).random((channels, 8, 8))
    return np.kron(coarse, np.ones((4, 4))).astype(np.float16).astype(np.float32)


def make_bundle(
    directory: Path,
    *,
    segmenters: int = 1,
    classifiers: int = 2,
    findings: tuple[str, ...] = ("pneumonia", "no_finding"),
    temperature: float = 1.0,
    version: str = "1",
    replace: dict[str, onnx.ModelProto] | None = None,
    parity_films: int = 2,
) -> Path:
    """Write a bundle and return its directory.

    ``replace`` puts another network in a member's file after the references were made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    models = {f"regions-{index}": ("segmentation", segmentation_network(index)) for index in range(segmenters)}
    if findings:
        models |= {
            f"findings-{index}": ("classification", classification_network(10 + index, findings=len(findings)))
            for index in range(classifiers)
        }
    films = tuple(f"parity-{index}.npz" for index in range(parity_films))
    for index, name in enumerate(films):
        arrays = {}
        for member, (_, model) in models.items():
            image = picture(zlib.crc32(f"{member} {index}".encode()))
            outputs = [output.name for output in model.graph.output]
            values = ReferenceEvaluator(model).run(outputs, {"image": image[np.newaxis]})
            arrays[f"{member}.input"] = image.astype(np.float16)
            arrays |= {f"{member}.{output}": value[0] for output, value in zip(outputs, values, strict=True)}
        np.savez_compressed(directory / name, **arrays)
    for member, (_, model) in models.items():
        onnx.save((replace or {}).get(member, model), directory / f"{member}.onnx")
    manifest = Manifest(
        name="tiny",
        version=version,
        created="2026-01-01T00:00:00+00:00",
        description="Random networks for tests.",
        regions=tuple(BundleRegion(r.value, r.name, r.title, r.colour, "exact") for r in HOLSTE_REGIONS),
        findings=tuple(FindingThreshold(finding, 0.5) for finding in findings),
        members=tuple(
            Member(member, task, f"{member}.onnx", 1, SIZE, SIZE, ()) for member, (task, _) in models.items()
        ),
        temperature=temperature,
        parity_films=films,
        metrics={},
        recipe={},
        data_digest="",
        files={name: sha256_of(directory / name) for name in (*films, *(f"{member}.onnx" for member in models))},
    )
    write_manifest(directory, manifest)
    return directory
