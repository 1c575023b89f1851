"""Finished runs and one bundle of them, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from finished_runs import make_run, run_recipe  # noqa: E402

from trainer.export.package import package  # noqa: E402
from trainer.training.run_folder import Run  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks lose more by sharing than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A segmentation run."""
    return make_run(tmp_path_factory.mktemp("runs") / "masks", run_recipe("segmentation"))


@pytest.fixture(scope="session")
def finders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two classification runs on the same films, the second with a head that a bundle leaves out."""
    folder = tmp_path_factory.mktemp("runs")
    network = {"name": "small_classifier", "options": {"base_width": 2, "guided": True}}
    guided = run_recipe("classification", network=network, loss={"name": "binary_cross_entropy", "guidance": 1.0})
    return make_run(folder / "1", run_recipe("classification")), make_run(folder / "2", guided, seed=2)


@pytest.fixture
def untrained(tmp_path: Path) -> Callable[..., Run]:
    """``untrained(name, task, recipe changes, ...)``: a run that learned nothing."""

    def make(name: str, task: str, changes: dict[str, Any] | None = None, **more: Any) -> Run:
        return make_run(tmp_path / name, run_recipe(task, **(changes or {})), steps=0, **more)

    return make


@pytest.fixture(scope="session")
def bundle(masks: Run, finders: tuple[Run, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all three with variants."""
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    package([masks, *finders], out, variants=["torch", "fp16", "int8"], replicates=200)
    return out
