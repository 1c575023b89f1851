"""Hand-made runs, their networks exported once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from handmade_runs import SIZE, ColumnReader, HandmadeRun, MapReader, make_recipe

from trainer.data.store import Samples
from trainer.export.onnx_export import ClassificationOutputs, SegmentationOutputs, export_onnx


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task → folder of a run with its ``member.onnx``."""
    folders = {task: tmp_path_factory.mktemp(task) for task in ("segmentation", "classification")}
    shape = (1, SIZE, SIZE)
    segmentation, classification = SegmentationOutputs(MapReader()), ClassificationOutputs(ColumnReader())
    export_onnx(segmentation, folders["segmentation"] / "member.onnx", shape, ["probabilities"])
    export_onnx(classification, folders["classification"] / "member.onnx", shape, ["probabilities", "cam"])
    return folders


MakeRun = Callable[..., HandmadeRun]


@pytest.fixture(scope="session")
def make_run(networks: dict[str, Path]) -> MakeRun:
    """``make_run(task, recipe changes, part=samples, ...)``."""

    def make(task: str, changes: dict[str, Any] | None = None, **parts: Samples) -> HandmadeRun:
        return HandmadeRun(networks[task], make_recipe(task, **(changes or {})), parts)

    return make
