"""Every recipe that comes with the trainer trains: two steps of its own network and loss, on phantoms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning")

import torch

from trainer.data.records import phantom_dataset
from trainer.networks.registry import build_network
from trainer.recipe import Recipe, load_recipe, recipe_names
from trainer.training.train import train

SINGLE = [name for name in recipe_names() if load_recipe(name).grid is None]
GRIDS = [name for name in recipe_names() if load_recipe(name).grid is not None]


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread; no export, which tests/trainer/networks does for every network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("trainer.training.train._export", lambda _network, _recipe, folder: folder.onnx.touch())
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _shrunk(name: str) -> Recipe:
    """The recipe with few small films and two steps; of findings, those that phantoms show."""
    recipe = load_recipe(name)
    steps = [dict(step) for step in recipe.preprocess]
    for step in steps:
        if step["step"] == "resize":
            step |= {"height": 64, "width": 64}
    changes: dict[str, Any] = {
        "preprocess": steps,
        "data.phantoms": 16,
        "data.split.train": 0.5,
        "data.split.validation": 0.25,
        "data.split.test": 0.25,
        "training.epochs": 1,
        "training.steps_per_epoch": 2,
        "training.batch_size": 2,
    }
    if recipe.task == "classification":
        changes["data.findings"] = ["pneumonia", "no_finding"]
    return load_recipe(name, changes)


@pytest.mark.parametrize("name", SINGLE)
def test_two_steps(name: str, tmp_path: Path, cache: Path) -> None:
    recipe = _shrunk(name)
    torch.manual_seed(recipe.training.seed)
    before = build_network(recipe).state_dict()
    run = train(recipe, phantom_dataset(16), tmp_path / "run", cache=cache)
    (row,) = run.metrics
    assert row["step"] == run.facts["steps"] == 2
    assert np.isfinite([row["train_loss"], row["loss"], row["rate"]]).all()
    after = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    weights = after.get("current_model_state", after["state_dict"])
    moved = [name for name in before if not torch.equal(weights[f"network.{name}"], before[name])]
    assert len(moved) > 0.9 * len([name for name in before if not name.endswith("num_batches_tracked")])
    monitored = row["mean_dice" if recipe.task == "segmentation" else "mean_auroc"]
    assert 0 <= monitored <= 1


@pytest.mark.parametrize("name", SINGLE)
def test_members_of_its_bundle_are_recipes(name: str) -> None:
    recipe = load_recipe(name)
    for member in recipe.bundle.members if recipe.bundle else ():
        other = load_recipe(member)
        assert other.data.split == recipe.data.split
        if other.task == recipe.task:
            assert other.data.findings == recipe.data.findings
            assert other.preprocess == recipe.preprocess


@pytest.mark.parametrize("name", GRIDS)
def test_every_cell_of_a_grid_builds(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.grid is not None
    for cell in recipe.grid.cells:
        own = load_recipe(name, {**cell.set, "network.checkpoint": ""})
        assert sum(weight.numel() for weight in build_network(own).parameters()) > 1_000_000


class TestSettingsOfThePapers:
    """What sections 2.2 (Holste) and 3.3 to 4.1 (pediatric classifier) print."""

    def test_holste(self) -> None:
        recipe = load_recipe("holste")
        assert [step["step"] for step in recipe.preprocess] == ["min_max", "resize"]
        assert recipe.input_shape == (1, 256, 256)
        assert recipe.outputs == 8
        assert (recipe.augmentation.saved.copies, recipe.augmentation.saved.elastic_sigma) == (3, 5.0)
        assert recipe.augmentation.saved.rotation == 15.0
        assert (recipe.data.split.train, recipe.data.split.validation, recipe.data.split.test) == (0.70, 0.15, 0.15)

    @pytest.mark.parametrize("name", ["densenet121", "densenet169", "resnet101"])
    def test_pediatric_classifier(self, name: str) -> None:
        recipe = load_recipe(name)
        assert recipe.network.name == name
        assert [step["step"] for step in recipe.preprocess] == ["equalise", "resize", "channels"]
        assert recipe.input_shape == (3, 512, 512)
        assert recipe.outputs == 10
        assert (recipe.optimiser.name, recipe.optimiser.momentum, recipe.optimiser.rate) == ("sgd", 0.9, 1e-3)
        assert (recipe.training.epochs, recipe.training.batch_size) == (80, 32)
        assert recipe.schedule.name == "triangular"
        assert recipe.training.epochs % recipe.schedule.cycle == 0
        assert recipe.loss.name == "modified_distribution_balanced"

    def test_the_ensemble_is_the_three(self) -> None:
        recipe = load_recipe("pediatric-classifier")
        assert recipe.bundle is not None
        assert {recipe.network.name, *recipe.bundle.members} == {"densenet121", "densenet169", "resnet101"}
