"""A recipe that trains in seconds, and its films."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch

from trainer.data.records import Dataset, phantom_dataset
from trainer.recipe import Recipe, load_recipe

FILMS = 24

_SEGMENTATION = """
description = "tiny regions"
task = "segmentation"
preprocess = [{ step = "percentile", low = 0.5, high = 99.5 }, { step = "resize", height = 32, width = 32 }]

[network]
name = "holste_unet"
options = { base_width = 2 }

[data]
phantoms = 24
regions = ["background", "left_lung", "right_lung", "mediastinum"]

[augmentation.live]
rotation = 10.0
gamma = 0.3

[loss]
name = "cross_entropy"

[optimiser]
name = "adamw"
rate = 0.01

[schedule]
name = "cosine"

[training]
epochs = 3
steps_per_epoch = 3
batch_size = 4
monitor = "loss"
ema = 0.9
"""

_CLASSIFICATION = """
description = "tiny findings"
task = "classification"
preprocess = [{ step = "min_max" }, { step = "resize", height = 32, width = 32 }, { step = "channels", count = 3 }]

[network]
name = "small_classifier"
options = { base_width = 2 }

[data]
phantoms = 24
findings = ["pneumonia", "no_finding"]

[loss]
name = "modified_distribution_balanced"

[optimiser]
name = "sgd"
rate = 0.01

[schedule]
name = "triangular"
lowest = 0.25

[training]
epochs = 2
batch_size = 4
monitor = "mean_auroc"
"""

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def segmentation(tmp_path: Path) -> MakeRecipe:
    """Makes the segmentation recipe with changes (dotted key → value)."""
    return _maker(tmp_path / "tiny-regions.toml", _SEGMENTATION)


@pytest.fixture
def classification(tmp_path: Path) -> MakeRecipe:
    """Makes the classification recipe with changes."""
    return _maker(tmp_path / "tiny-findings.toml", _CLASSIFICATION)


@pytest.fixture(scope="session")
def films() -> Dataset:
    return phantom_dataset(FILMS)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preprocessed films, shared by all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes longer than such a training."""
    monkeypatch.setattr("trainer.training.train._export", lambda _network, _recipe, folder: folder.onnx.touch())


def _maker(path: Path, text: str) -> MakeRecipe:
    path.write_text(text, "utf-8")

    def make(changes: dict[str, Any] | None = None) -> Recipe:
        return load_recipe(path, changes)

    return make
