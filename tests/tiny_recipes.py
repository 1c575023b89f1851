"""Recipes of networks that learn for seconds."""

from __future__ import annotations

from pathlib import Path

REGIONS = """
description = "tiny regions"
task = "segmentation"
preprocess = [{ step = "percentile", low = 0.5, high = 99.5 }, { step = "resize", height = 64, width = 64 }]

[network]
name = "holste_unet"
options = { base_width = 2 }

[data]
phantoms = 60
regions = ["background", "left_lung", "right_lung", "mediastinum"]

[loss]
name = "cross_entropy"

[training]
epochs = 2
steps_per_epoch = 2
batch_size = 4

[bundle]
name = "tiny-regions"
"""

FINDINGS = """
description = "tiny findings"
task = "classification"
preprocess = [{ step = "min_max" }, { step = "resize", height = 32, width = 32 }]

[network]
name = "small_classifier"
options = { base_width = 2 }

[data]
phantoms = 60
findings = ["pneumonia", "no_finding"]

[loss]
name = "binary_cross_entropy"

[optimiser]
rate = 0.01

[training]
epochs = 3
batch_size = 4
monitor = "mean_auroc"

[bundle]
name = "tiny-findings"
"""


def write_recipe(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path
