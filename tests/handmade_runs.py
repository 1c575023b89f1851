"""Runs whose network reads its answer from the picture: any prediction can be written down by hand.

The networks are real, exported by the trainer and run by the worker's engine; only what they
learned is set by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from torch import nn  # noqa: E402

from schema.regions import HOLSTE_REGIONS  # noqa: E402
from trainer.data.store import Samples  # noqa: E402
from trainer.recipe import Recipe, check_recipe  # noqa: E402

SIZE = 64
LABELS = len(HOLSTE_REGIONS)
FINDINGS = ("pneumonia", "bronchitis", "no_finding")
SHARPNESS, SLOPE = 20.0, 12.0


class MapReader(nn.Module):
    """Reads the label of a pixel from its grey value, label / 7."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Conv2d(1, LABELS, 1)
        label = torch.arange(LABELS, dtype=torch.float32)
        with torch.no_grad():
            self.read.weight.copy_((2 * SHARPNESS * label * (LABELS - 1)).view(-1, 1, 1, 1))
            self.read.bias.copy_(-SHARPNESS * label**2)

    def forward(self, picture: Any) -> Any:
        return self.read(picture)


class ColumnReader(nn.Module):
    """Reads the score of finding k from the mean grey of the k-th of F columns of the picture."""

    def forward(self, picture: Any) -> Any:
        columns = nn.functional.adaptive_avg_pool2d(picture, (1, len(FINDINGS)))[:, 0, 0]
        maps = nn.functional.adaptive_avg_pool2d(picture, (8, 8)).expand(-1, len(FINDINGS), -1, -1)
        return SLOPE * (columns - 0.5), maps


def map_picture(grey: np.ndarray) -> np.ndarray:
    """A picture (1, SIZE, SIZE) that the map reader sees as the labels ``grey``; halves lie between two labels."""
    return (grey / (LABELS - 1)).astype(np.float16)[None]


def column_picture(scores: Sequence[float]) -> np.ndarray:
    """A picture (1, SIZE, SIZE) with the mean grey of each of the F columns."""
    column = np.minimum(np.arange(SIZE) * len(FINDINGS) // SIZE, len(FINDINGS) - 1)
    return np.broadcast_to(np.asarray(scores)[column], (1, SIZE, SIZE)).astype(np.float16)


def make_samples(
    pictures: Sequence[np.ndarray],
    *,
    labels: Sequence[np.ndarray] | None = None,
    targets: Sequence[Sequence[float]] | None = None,
    ages: Sequence[float] | None = None,
    patients: Sequence[str] | None = None,
) -> Samples:
    count = len(pictures)
    names = tuple(f"Doe^Jane/{index}.dcm" for index in range(count))
    return Samples(
        pictures=np.stack(pictures) if count else np.empty((0, 1, SIZE, SIZE), np.float16),
        labels=None if labels is None else np.stack(labels).astype(np.uint8),
        targets=np.empty((count, 0), np.float32) if targets is None else np.asarray(targets, np.float32),
        places=None,
        names=names,
        patients=tuple(patients) if patients else names,
        ages=np.full(count, np.nan, np.float32) if ages is None else np.asarray(ages, np.float32),
        digest=hashlib.sha256(str(count).encode()).hexdigest(),
    )


def make_recipe(task: str, **changes: Any) -> Recipe:
    segmentation = task == "segmentation"
    table: dict[str, Any] = {
        "name": f"tiny-{task}",
        "description": "For tests",
        "task": task,
        "network": {"name": "holste_unet" if segmentation else "densenet121"},
        "preprocess": [{"step": "min_max"}, {"step": "resize", "height": SIZE, "width": SIZE}],
        "data": {"regions": [r.name for r in HOLSTE_REGIONS]} if segmentation else {"findings": list(FINDINGS)},
        "loss": {"name": "cross_entropy" if segmentation else "binary_cross_entropy"},
        "training": {"epochs": 1, "batch_size": 1},
        **changes,
    }
    return check_recipe(table, "of a test")


@dataclass(frozen=True)
class HandmadeRun:
    """A finished run as evaluation sees it."""

    folder: Path
    recipe: Recipe
    parts: dict[str, Samples] = field(default_factory=dict)

    def samples(self, part: str) -> Samples:
        return self.parts[part]


def chest_map(shift: int = 0) -> np.ndarray:
    """A sound label map, uint8 (SIZE, SIZE), moved ``shift`` pixels to the right."""
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[8:44, 8:26] = 2
    labels[8:44, 38:56] = 1
    labels[44:58, 8:30] = 4
    labels[44:58, 34:56] = 3
    labels[8:44, 26:38] = 6
    labels[8:58, 30:34] = 5
    labels[20:22, 31:33] = 7
    return np.roll(labels, shift, axis=1)


def pixels_of(path: Path) -> np.ndarray:
    """A PNG's pixels; fails when it is none."""
    import cv2

    pixels = cv2.imread(str(path))
    assert pixels is not None, f"{path.name} is no picture"
    return pixels
