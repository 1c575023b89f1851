"""A small but whole bundle: real ONNX networks, parity films whose references come from onnx's own interpreter."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its first convolution in 8 bits: QuantizeLinear and DequantizeLinear before it.

    (Not the second: where a result of that is an output as well, OpenVINO 2026.4 loses the scale on the way to
    the average. The parity gate finds such things, and the trainer leaves heads in floating point.)
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    weights = twin.graph.initializer[0]
    name, values = weights.name, numpy_helper.to_array(weights)
    scales = np.abs(values).max(axis=(1, 2, 3)).astype(np.float32) / 127
    constants = {
        f"{name}.whole": np.round(values / scales[:, None, None, None]).astype(np.int8),
        f"{name}.scale": scales,
        f"{name}.zero": np.zeros(len(scales), np.int8),
        "image.scale": np.float32(1 / 255),
        "image.zero": np.uint8(0),
    }
    twin.graph.initializer.remove(weights)
    twin.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    image, kernel = (["image.scale", "image.zero"], [f"{name}.scale", f"{name}.zero"])
    nodes = [
        helper.make_node("QuantizeLinear", ["image", *image], ["image.whole"]),
        helper.make_node("DequantizeLinear", ["image.whole", *image], ["image.float"]),
        helper.make_node("DequantizeLinear", [f"{name}.whole", *kernel], [name], axis=0),
        *twin.graph.node,
    ]
    nodes[3].input[0] = "image.float"
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    onnx.checker.check_model(twin)
    return twin


def typed(model: onnx.ModelProto, dtype: int) -> onnx.ModelProto:
    """The network computing in half precision or bfloat16 between float32 input and outputs, as TensorRT wants it."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    outputs = [output.name for output in twin.graph.output]
    for node in twin.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{name}.typed" if name in {"image", *outputs} else name for name in names]
    for tensor in twin.graph.initializer:
        values = helper.make_tensor(tensor.name, dtype, tensor.dims, numpy_helper.to_array(tensor).ravel().tolist())
        tensor.CopyFrom(values)
    casts = [helper.make_node("Cast", [f"{name}.typed"], [name], to=TensorProto.FLOAT) for name in outputs]
    nodes = [helper.make_node("Cast", ["image"], ["image.typed"], to=dtype), *twin.graph.node, *casts]
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    onnx.checker.check_model(twin)
    return twin


#: Key of ``Member.variants`` → how to make that file of a network.
VARIANTS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "int8": quantised,
    "fp16": lambda model: typed(model, TensorProto.FLOAT16),
    "bf16": lambda model: typed(model, TensorProto.BFLOAT16),
}


def write_variant(model: onnx.ModelProto, variant: str, path: Path) -> None:
    """Write a network's file for a key of ``Member.variants``."""
    if variant == "torch":
        from tiny_program import write_tiny_program

        write_tiny_program(model, path)
    else:
        onnx.save(VARIANTS[variant](model), path)


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
    variants: tuple[str, ...] = (),
    preprocess: tuple[dict[str, Any], ...] = (),
) -> Path:
    """Write a bundle and return its directory.

    ``replace`` puts another network in a member's file after the references were made; ``variants`` are keys of
    VARIANTS or "torch", written for every member.
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
    named = {
        member: {variant: f"{member}.{'pt2' if variant == 'torch' else f'{variant}.onnx'}" for variant in variants}
        for member in models
    }
    for member, (_, model) in models.items():
        onnx.save((replace or {}).get(member, model), directory / f"{member}.onnx")
        for variant, name in named[member].items():
            write_variant(model, variant, directory / name)
    manifest = Manifest(
        name="tiny",
        version=version,
        created="2026-01-01T00:00:00+00:00",
        description="Random networks for tests.",
        regions=tuple(BundleRegion(r.value, r.name, r.title, r.colour, "exact") for r in HOLSTE_REGIONS),
        findings=tuple(FindingThreshold(finding, 0.5) for finding in findings),
        members=tuple(
            Member(member, task, f"{member}.onnx", 1, SIZE, SIZE, preprocess, variants=named[member])
            for member, (task, _) in models.items()
        ),
        temperature=temperature,
        parity_films=films,
        metrics={},
        recipe={},
        data_digest="",
        files={path.name: sha256_of(path) for path in sorted(directory.iterdir())},
    )
    write_manifest(directory, manifest)
    return directory
