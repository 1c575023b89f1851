"""Every recipe that comes with the trainer trains: two steps of its own network and loss, on phantoms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("lightning")

import torch

from schema.regions import HOLSTE_REGIONS
from trainer.data.records import phantom_dataset
from trainer.data.splits import split
from trainer.networks.registry import build_network
from trainer.recipe import Recipe, load_recipe, recipe_names
from trainer.training.train import train

RECIPES = {name: load_recipe(name) for name in recipe_names()}
SINGLE = [name for name, recipe in RECIPES.items() if not recipe.grid and not recipe.search]
GRIDS = [name for name, recipe in RECIPES.items() if recipe.grid]

#: Network → what makes its steps take less than a second or two; all else is the recipe's own.
NARROW = {
    "original_unet": {"base_width": 8},
    "all_dropout": {"base_width": 8},
    "all_convolutional": {"base_width": 8},
    "inverted_net": {"base_width": 64},
    "attention_bcdu": {"base_width": 8},
}
#: Phantoms have lungs, but neither heart nor clavicles.
LUNGS = ["background", "left_lung", "right_lung"]


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
    """The recipe with few small films and two steps; of findings and regions, those that phantoms show."""
    recipe = RECIPES[name]
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
    elif not set(recipe.data.regions) <= {str(region.name) for region in HOLSTE_REGIONS}:
        changes["data.regions"] = LUNGS
    if recipe.network.checkpoint:
        changes["network.checkpoint"] = ""  # weights of a run that is not here
    if recipe.network.name in NARROW:
        changes["network.options"] = {**recipe.network.options, **NARROW[recipe.network.name]}
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
    cells = [load_recipe(name, {**cell.set, "network.checkpoint": ""}) for cell in recipe.grid.cells]
    networks = {cell.network.model_dump_json() + str(cell.outputs): cell for cell in cells}
    for own in networks.values():
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

    def test_novikov(self) -> None:
        recipe = load_recipe("novikov")
        assert [step["step"] for step in recipe.preprocess] == ["resize", "standardise"]
        assert recipe.input_shape == (1, 256, 256)
        assert (recipe.network.name, recipe.network.options["elu"]) == ("inverted_net", True)
        assert (recipe.network.activation, recipe.network.threshold) == ("sigmoid", 0.75)
        assert (recipe.loss.name, recipe.data.overlapping, recipe.outputs) == ("class_frequency_dice", True, 3)
        assert (recipe.optimiser.name, recipe.optimiser.rate) == ("adam", 1e-5)

    @pytest.mark.parametrize("name", ["inverted-net", "all-dropout", "all-convolutional", "original-unet"])
    def test_novikovs_networks_are_compared_by_cross_entropy(self, name: str) -> None:
        recipe = load_recipe(f"novikov-{name}")
        assert recipe.network.name == name.replace("-", "_")
        assert recipe.network.activation == ("softmax" if name == "original-unet" else "sigmoid")
        assert not recipe.network.options.get("elu")
        assert (recipe.loss.name, recipe.data.overlapping, recipe.outputs) == (
            "class_frequency_cross_entropy",
            False,
            4,
        )

    def test_novikovs_splits_share_their_test_films(self) -> None:
        dataset = phantom_dataset(90)
        tests, shares = set(), []
        for table in ("novikov-table-4", "novikov-table-5"):
            grid = load_recipe(table).grid
            assert grid is not None
            for cell in grid.cells:
                parts = split(dataset.records, load_recipe(table, cell.set).data.split)
                tests.add(parts.test)
                shares.append((len(parts.train), len(parts.validation), len(parts.test)))
        assert len(tests) == 1
        assert {test for _, _, test in shares} == {30}
        assert len(set(shares)) == 3

    def test_maga(self) -> None:
        recipe = load_recipe("maga")
        assert [step["step"] for step in recipe.preprocess] == ["resize", "clahe"]
        assert recipe.input_shape == (1, 512, 512)
        assert recipe.network.name == "attention_bcdu"
        assert (recipe.loss.name, recipe.loss.options) == (
            "focal_tversky",
            {"alpha": 0.6, "beta": 0.4, "exponent": 0.675},
        )
        assert (recipe.optimiser.name, recipe.training.patience, recipe.training.keep) == ("adam", 0, "last")
        assert (recipe.data.films, recipe.training.epochs, recipe.data.split.train) == (209, 50, 0.85)

    def test_magas_table_has_fifteen_cells(self) -> None:
        recipe = load_recipe("maga-table-1")
        assert recipe.grid is not None
        cells = {
            (cell.set["data.films"], cell.set["training.epochs"], cell.set["augmentation.mixup"])
            for cell in recipe.grid.cells
        }
        sizes = ((10, 1000), (20, 500), (209, 50))
        assert cells == {(films, epochs, delta) for films, epochs in sizes for delta in (0.0, 0.1, 0.2, 0.3, 0.4)}
        assert recipe.grid.repeats > 1
        assert recipe.training.training_metrics

    def test_wang(self) -> None:
        recipe = load_recipe("wang")
        assert recipe.input_shape == (3, 256, 256)
        assert (recipe.network.name, recipe.network.activation) == ("resnet34_unet", "sigmoid")
        assert (recipe.loss.name, recipe.training.batch_size) == ("binary_cross_entropy_jaccard", 1)
        assert recipe.augmentation.saved.copies == 4
        assert recipe.outputs == 5

    def test_wangs_regions_have_their_own_optimisers(self) -> None:
        grid = load_recipe("wang-regions").grid
        assert grid is not None
        chosen = {}
        for cell in grid.cells:
            recipe = load_recipe("wang-regions", cell.set)
            assert recipe.outputs == 1
            chosen[recipe.data.regions[1]] = (recipe.optimiser.name, recipe.optimiser.rate)
        assert chosen == {
            "heart": ("sgd", 0.07879),
            "left_clavicle": ("sgd", 0.1),
            "left_lung": ("sgd", 0.00358),
            "right_clavicle": ("rmsprop", 0.00035),
            "right_lung": ("sgd", 0.00139),
        }

    def test_wangs_search_holds_what_the_poster_found(self) -> None:
        search = load_recipe("wang-search").search
        assert search is not None
        rates = search.ranges["optimiser.rate"]
        assert rates.log
        assert rates.low < 0.00035
        assert rates.high >= 0.1
        assert {"sgd", "rmsprop"} <= set(search.choices["optimiser.name"])


def test_one_films_prediction_is_kept_after_every_epoch(tmp_path: Path, cache: Path) -> None:
    changes = {
        "preprocess": [
            {"step": "min_max"},
            {"step": "resize", "height": 64, "width": 64},
            {"step": "channels", "count": 3},
        ],
        "network": {"name": "original_unet", "options": {"base_width": 4}, "activation": "sigmoid"},
        "data.regions": LUNGS,
        "data.phantoms": 16,
        "augmentation.saved.copies": 0,
        "training.epochs": 3,
        "training.steps_per_epoch": 1,
        "training.batch_size": 2,
        "training.training_metrics": True,
    }
    run = train(load_recipe("wang", changes), phantom_dataset(16), tmp_path / "run", cache=cache)
    strips = [cv2.imread(str(run.folder / "progression" / f"epoch-000{epoch}.png"), 0) for epoch in (1, 2, 3)]
    assert {strip.shape for strip in strips} == {(64, 128)}
    assert (strips[0] != strips[2]).any()
    assert cv2.imread(str(run.folder / "progression.png")).std() > 10
    assert all(0 <= row["train_mean_dice"] <= 1 and row["train_loss"] != row["loss"] for row in run.metrics)
