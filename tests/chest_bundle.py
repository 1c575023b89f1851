"""A bundle for real engines whose networks see the same plausible chest in every film.

Each version paints its chest a little further to one side, so that a stored mask tells which
version made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from passthrough import chest_labels

from schema.bundle import BundleRegion, FindingThreshold, Manifest, Member, sha256_of, write_manifest
from schema.regions import HOLSTE_REGIONS, RegionDefinition

SIZE = 64
REGIONS = len(HOLSTE_REGIONS)
FINDINGS = ("pneumonia", "no_finding")
_STEPS = (
    {"step": "min_max"},
    {"step": "resize", "height": SIZE, "width": SIZE, "mode": "area", "fit": "stretch"},
)


def labels_of(version: int) -> np.ndarray:
    """The label map that a version finds in every film, uint8 (64, 64)."""
    return np.roll(chest_labels(SIZE), version, axis=1)


def _model(name: str, nodes: list, constants: dict[str, np.ndarray], outputs: dict[str, list]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape) for output, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), constant) for constant, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def segmentation_network(
    version: int, *, regions: int = REGIONS, broken: bool = False, labels: np.ndarray | None = None
) -> onnx.ModelProto:
    """(batch, 1, 64, 64) → (batch, regions, 64, 64): the version's chest or ``labels``, whatever the picture."""
    sure, rest = np.float32(0.93), np.float32(0.07 / (regions - 1))
    shown = labels_of(version) if labels is None else labels
    chest = np.where(shown == np.arange(regions)[:, None, None], sure, rest).astype(np.float32)
    if broken:
        chest[0, 0, 0] = np.nan
    nodes = [
        helper.make_node("Mul", ["image", "nothing"], ["blank"]),
        helper.make_node("Add", ["blank", "chest"], ["probabilities"]),
    ]
    constants = {"nothing": np.float32(0.0), "chest": chest[np.newaxis]}
    return _model("regions", nodes, constants, {"probabilities": ["batch", regions, SIZE, SIZE]})


def classification_network(version: int) -> onnx.ModelProto:
    """(batch, 1, 64, 64) → probabilities (batch, 2) that rise with the version and the picture's mean, and a map."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["average"]),
        helper.make_node("Flatten", ["average"], ["mean"]),
        helper.make_node("Add", ["mean", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
        helper.make_node("AveragePool", ["image"], ["coarse"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Mul", ["coarse", "strengths"], ["cam"]),
    ]
    constants = {
        "bias": np.array([[0.1 * version, -0.1 * version]], np.float32),
        "strengths": np.array([1.0, 2.0], np.float32)[np.newaxis, :, None, None],
    }
    outputs = {"probabilities": ["batch", len(FINDINGS)], "cam": ["batch", len(FINDINGS), SIZE // 8, SIZE // 8]}
    return _model("findings", nodes, constants, outputs)


def make_chest_bundle(
    directory: Path,
    version: int,
    *,
    segmenter: onnx.ModelProto | None = None,
    regions: Sequence[RegionDefinition] = HOLSTE_REGIONS,
    labels: np.ndarray | None = None,
) -> Path:
    """Write the bundle ``chest:VERSION``.

    ``segmenter`` stands in the network's file instead of the right one; ``labels`` are found in every film, with the
    values of ``regions``.
    """
    directory.mkdir(parents=True)
    masks = segmentation_network(version, regions=len(regions), labels=labels)
    models = {"regions": masks, "findings": classification_network(version)}
    arrays: dict[str, np.ndarray] = {}
    image = np.random.default_rng(1).random((1, SIZE, SIZE)).astype(np.float16).astype(np.float32)
    for member, model in models.items():
        names = [output.name for output in model.graph.output]
        values = ReferenceEvaluator(model).run(names, {"image": image[np.newaxis]})
        arrays[f"{member}.input"] = image
        arrays |= {f"{member}.{name}": value[0] for name, value in zip(names, values, strict=True)}
    np.savez_compressed(directory / "parity-0.npz", **arrays)
    for member, model in (models | ({"regions": segmenter} if segmenter else {})).items():
        onnx.save(model, directory / f"{member}.onnx")
    tasks = {"regions": "segmentation", "findings": "classification"}
    write_manifest(
        directory,
        Manifest(
            name="chest",
            version=str(version),
            created="2026-01-01T00:00:00+00:00",
            description="The same chest for every film. For tests.",
            regions=tuple(BundleRegion(r.value, r.name, r.title, r.colour, "exact") for r in regions),
            findings=tuple(FindingThreshold(finding, 0.5) for finding in FINDINGS),
            members=tuple(
                Member(name, task, f"{name}.onnx", 1, SIZE, SIZE, _STEPS)  # type: ignore[arg-type]
                for name, task in tasks.items()
            ),
            temperature=1.0,
            parity_films=("parity-0.npz",),
            metrics={},
            recipe={},
            data_digest="",
            files={path.name: sha256_of(path) for path in sorted(directory.iterdir())},
        ),
    )
    return directory
