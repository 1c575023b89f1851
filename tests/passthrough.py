"""A bundle whose networks cost nothing: every film gets the same plausible chest.

For tests and benchmarks of the ledger, the pipeline and the database, which need the full
payload (eight regions, ten findings, heat maps) and no arithmetic. It has the surface of
``worker.inference.bundles.LoadedBundle`` and is not part of the installed program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from schema.bundle import BundleRegion, FindingThreshold, Manifest, Member
from schema.findings import Finding
from schema.regions import HOLSTE_REGIONS
from worker.inference.engines.base import Engine, EngineSpec, FloatArray, Precision, TensorSpec

_REGIONS = len(HOLSTE_REGIONS)
#: Label value → ellipse (row, column, half height, half width) in fractions of the grid, later ones on top.
_CHEST: tuple[tuple[int, tuple[float, float, float, float]], ...] = (
    (3, (0.80, 0.72, 0.10, 0.18)),
    (4, (0.80, 0.28, 0.10, 0.18)),
    (1, (0.47, 0.72, 0.30, 0.15)),
    (2, (0.47, 0.28, 0.30, 0.15)),
    (5, (0.75, 0.50, 0.24, 0.05)),
    (6, (0.45, 0.50, 0.28, 0.10)),
    (7, (0.36, 0.50, 0.012, 0.012)),
)


def chest_labels(size: int) -> np.ndarray:
    """The label map, uint8 (size, size); the patient's right is on the left of the picture."""
    rows, columns = (np.indices((size, size)) + 0.5) / size
    labels = np.zeros((size, size), np.uint8)
    for value, (row, column, height, width) in _CHEST:
        labels[((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1.0] = value
    return labels


def chest_probabilities(size: int) -> FloatArray:
    """Probabilities (regions, size, size) that sum to 1 and have :func:`chest_labels` as argmax."""
    sure, rest = 0.93, 0.07 / (_REGIONS - 1)
    return np.where(chest_labels(size) == np.arange(_REGIONS)[:, None, None], sure, rest).astype(np.float32)


class PassthroughEngine(Engine):
    """Gives each picture a copy of ``outputs``; findings move with the picture's mean."""

    def __init__(self, member: Member, outputs: dict[str, FloatArray]) -> None:
        super().__init__(
            backend="passthrough",
            backend_version="1",
            device="none",
            precision=Precision.FP32,
            spec=EngineSpec(
                (TensorSpec("image", (None, member.channels, member.height, member.width), "float32"),),
                tuple(TensorSpec(name, (None, *value.shape), "float32") for name, value in outputs.items()),
            ),
        )
        self._outputs = outputs
        self._task = member.task

    def export(self) -> bytes:
        """Nothing is compiled."""
        return b""

    def _execute(self, batch: FloatArray) -> dict[str, FloatArray]:
        results = {name: np.repeat(value[np.newaxis], len(batch), axis=0) for name, value in self._outputs.items()}
        if self._task == "classification":
            means = batch.mean(axis=(1, 2, 3), dtype=np.float64)[:, np.newaxis]
            logits = results["probabilities"] + 2.0 * np.tanh(means)
            results["probabilities"] = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        return results

    def _release(self) -> None:
        pass


class PassthroughBundle:
    """Stands in for a loaded bundle.

    ``preprocess`` are the steps every member asks of the decoder; their result must have the
    shape (1, ``size``, ``size``).
    """

    def __init__(
        self,
        *,
        size: int = 256,
        findings: Sequence[str] = tuple(Finding),
        classifiers: Sequence[str] = ("densenet121", "densenet169", "resnet101"),
        preprocess: Sequence[dict[str, Any]] = (),
        version: str = "1",
    ) -> None:
        steps = tuple(preprocess)
        members = (Member("regions", "segmentation", "regions.onnx", 1, size, size, steps),)
        if findings:
            members += tuple(
                Member(name, "classification", f"{name}.onnx", 1, size, size, steps) for name in classifiers
            )
        self.manifest = Manifest(
            name="passthrough",
            version=version,
            created="2026-01-01T00:00:00+00:00",
            description="No networks: the same plausible chest for every film. For tests and benchmarks.",
            regions=tuple(BundleRegion(r.value, r.name, r.title, r.colour, "exact") for r in HOLSTE_REGIONS),
            findings=tuple(FindingThreshold(finding, 0.5) for finding in findings),
            members=members,
            temperature=1.0,
            parity_films=(),
            metrics={},
            recipe={},
            data_digest="",
            files={member.onnx: "0" * 64 for member in members},
        )
        self.notes = ("passthrough: no networks were run",)
        self.parity: dict[str, dict[str, Any]] = {}
        self.engines = {member.name: PassthroughEngine(member, self._outputs_of(member)) for member in members}

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the manifest."""
        return hashlib.sha256(json.dumps(self.manifest.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def engine_description(self) -> dict[str, Any]:
        """As a loaded bundle describes its engines."""
        return {
            "backend": "passthrough",
            "backend_version": "1",
            "device": "none",
            "precision": "fp32",
            "members": dict.fromkeys(self.engines, "fp32"),
        }

    @property
    def plan(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """Member name → preprocessing steps."""
        return {member.name: member.preprocess for member in self.manifest.members}

    def close(self) -> None:
        """Close the engines."""
        for engine in self.engines.values():
            engine.close()

    def _outputs_of(self, member: Member) -> dict[str, FloatArray]:
        if member.task == "segmentation":
            return {"probabilities": chest_probabilities(member.height)}
        count, index = len(self.manifest.findings), [m.name for m in self.manifest.members].index(member.name)
        rows, columns = (np.indices((16, 16)) + 0.5) / 16
        cam = np.exp(-(((rows - 0.55) / 0.15) ** 2) - ((columns - 0.3) / 0.15) ** 2)
        strengths = np.linspace(0.5, 2.0, count)[:, None, None]
        return {
            "probabilities": (np.linspace(-2.0, 2.0, count) + 0.1 * index).astype(np.float32),
            "cam": (strengths * cam).astype(np.float32),
        }
