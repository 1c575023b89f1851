"""Features, deactivated filters and clipped lungs, on networks whose weights are known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_runs import SIZE, chest_map, make_recipe, make_samples, map_picture, pixels_of

pytest.importorskip("torch")

import torch

from trainer.errors import DataError, RunError
from trainer.evaluation.inside import (
    agreement,
    clip_lungs,
    clip_to,
    deactivated,
    features_of,
    found_again,
    group_filters,
    lungs_of,
    overlap_without,
    steps_of,
)
from trainer.evaluation.inside_report import write_inside
from trainer.networks.registry import make_network
from trainer.recipe import Recipe

NARROW: dict[str, dict[str, Any]] = {
    "holste_unet": {"base_width": 4},
    "original_unet": {"base_width": 4},
    "all_dropout": {"base_width": 4},
    "all_convolutional": {"base_width": 4},
    "inverted_net": {"base_width": 32},
    "attention_bcdu": {"base_width": 4},
}


@dataclass(frozen=True)
class LookedInto:
    """A run with fresh weights."""

    folder: Path
    recipe: Recipe

    def network(self) -> Any:
        torch.manual_seed(1)
        return make_network("holste_unet", 1, 8, {"base_width": 4}).eval()


@pytest.fixture
def run(tmp_path: Path) -> LookedInto:
    return LookedInto(tmp_path / "run", make_recipe("segmentation"))


@pytest.fixture(scope="module")
def samples() -> Any:
    pictures = [map_picture(chest_map(shift).astype(float)) for shift in range(3)]
    return make_samples(
        [*pictures, np.zeros_like(pictures[0])], labels=[*[chest_map()] * 3, np.zeros_like(chest_map())]
    )


class TestSteps:
    @pytest.mark.parametrize(("name", "options"), NARROW.items())
    def test_every_network_has_them(self, name, options):
        network = make_network(name, 1, 3, options).eval()
        steps = steps_of(network)
        picture = np.random.default_rng(1).random((1, 32, 32), np.float32)
        sizes = [features_of(network, each, picture).shape[1:] for each in (steps.upsampling, steps.early, steps.deep)]
        assert sizes == [(16, 16), (8, 8), (2, 2)]

    def test_resnets_too_and_networks_of_half_size(self):
        network = make_network("resnet34_unet", 3, 2, {}).eval()
        steps = steps_of(network)
        assert features_of(network, steps.early, np.zeros((3, 64, 64), np.float32)).shape == (64, 16, 16)
        assert features_of(network, steps.deep, np.zeros((3, 64, 64), np.float32)).shape == (512, 2, 2)
        half = make_network("holste_unet", 1, 3, {"base_width": 4, "half_size": True}).eval()
        assert features_of(half, steps_of(half).early, np.zeros((1, 64, 64), np.float32)).shape == (16, 8, 8)

    def test_another_form_is_refused(self):
        with pytest.raises(RunError, match="no steps up and down"):
            steps_of(torch.nn.Conv2d(1, 1, 1))


class TestFilters:
    def test_groups_are_told_by_activation(self):
        rng = np.random.default_rng(1)
        maps = 0.01 * rng.random((12, 8, 8)).astype(np.float32)
        maps[[2, 5, 7]] += 3.0
        groups = group_filters(maps, seed=1)
        assert groups.high.tolist() == [2, 5, 7]
        assert sorted([*groups.low, *groups.high]) == list(range(12))

    def test_a_deactivated_filter_gives_nothing_and_comes_back(self):
        module = torch.nn.Conv2d(1, 4, 1)
        picture = torch.ones(1, 1, 2, 2)
        before = module(picture)
        with deactivated(module, np.array([1, 3])):
            during = module(picture)
        assert (during[:, [1, 3]] == 0).all()
        assert torch.equal(during[:, [0, 2]], before[:, [0, 2]])
        assert torch.equal(module(picture), before)

    def test_filters_that_nothing_uses_change_nothing(self, run):
        network = run.network()
        early = steps_of(network).early
        picture = np.random.default_rng(2).random((1, SIZE, SIZE), np.float32)
        rng = np.random.default_rng(3)
        every = np.arange(16)
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.copy_(torch.arange(8.0))
        told = {"picture": picture, "rng": rng}
        assert overlap_without(network, run.recipe, early, every, 0.25, **told) == 1.0
        assert np.isnan(overlap_without(network, run.recipe, early, every[:0], 0.25, **told))

    def test_filters_that_decide_are_missed(self, run):
        network = run.network()
        last = network.expanding[-1]
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.weight[1] = 1.0  # region 1 wherever anything is activated
            network.head.bias.zero_()
            network.head.bias[0] = 1e-4
        told = {"picture": np.ones((1, SIZE, SIZE), np.float32), "rng": np.random.default_rng(3)}
        assert overlap_without(network, run.recipe, last, np.arange(4), 1.0, **told) == 0.0

    def test_agreement(self):
        first = np.array([[0, 1, 1, 2]], np.uint8)
        assert agreement(first, first) == 1.0
        assert agreement(first, np.array([[0, 1, 0, 0]], np.uint8)) == pytest.approx((0.5 + 0.0) / 2)
        assert agreement(np.zeros((1, 2), np.uint8), np.zeros((1, 2), np.uint8)) == 1.0


class TestClipping:
    def test_only_lungs_and_padding_are_left(self, run, samples):
        lungs = lungs_of(samples, run.recipe, 0)
        assert (lungs == np.isin(chest_map(), (1, 2))).all()
        picture = np.full((1, SIZE, SIZE), 0.7, np.float32)
        picture[0, 0, 0] = 0.1
        clipped = clip_to(picture, lungs)
        assert (clipped[0][lungs] == np.float32(0.7)).all()
        assert clipped[0, -1, 0] == np.float32(0.1)
        assert lungs.sum() < (clipped[0] == np.float32(0.7)).sum() < 0.8 * SIZE * SIZE

    def test_overlapping_lungs_are_read_from_their_bits(self, samples):
        recipe = make_recipe(
            "segmentation",
            network={"name": "holste_unet", "activation": "sigmoid"},
            data={"regions": ["background", "left_lung", "heart"], "overlapping": True},
            loss={"name": "class_frequency_dice"},
        )
        labels = np.zeros((SIZE, SIZE), np.uint8)
        labels[:8], labels[4:12] = 0b010, labels[4:12] | 0b100
        labels[4:8] |= 0b010
        bits = make_samples([map_picture(chest_map())], labels=[labels])
        assert (lungs_of(bits, recipe, 0) == (np.arange(SIZE) < 8)[:, None]).all()

    def test_without_lungs_it_is_said(self, samples):
        with pytest.raises(RunError, match="knows no lungs"):
            lungs_of(samples, make_recipe("segmentation", data={"regions": ["background", "spine"]}), 0)

    def test_what_is_found_again_is_counted_over_all_films(self, run, samples):
        network = run.network()
        clipped = [clip_lungs(network, run.recipe, samples, row) for row in (0, 1)]
        results = found_again(clipped, run.recipe)
        for place, name in enumerate(run.recipe.data.regions[1:], 1):
            both = sum(((film.found == place) & (film.found_clipped == place)).sum() for film in clipped)
            either = sum(((film.found == place) | (film.found_clipped == place)).sum() for film in clipped)
            assert results[name] == (pytest.approx(both / either) if either else None)


class TestReport:
    def test_words_numbers_and_pictures(self, run, samples, tmp_path):
        summary = write_inside(run, samples, tmp_path / "inside", lambda *_told: None)
        assert summary == json.loads((tmp_path / "inside" / "summary.json").read_text())
        assert summary["films"] == 3  # the fourth shows no chest
        assert set(summary["overlap"]) == {"lower", "upper", "deep"}
        assert all(0 <= value <= 1 for value in summary["overlap"].values())
        text = (tmp_path / "inside" / "report.md").read_text()
        assert "Research use, not a medical device." in text
        assert "Doe^Jane" not in text
        for name in ("features.png", "filters.png", "clipped.png"):
            assert f"({name})" in text
            assert pixels_of(tmp_path / "inside" / name).std() > 5

    def test_classifiers_are_refused(self, tmp_path, samples):
        with pytest.raises(RunError, match="classifies films"):
            write_inside(LookedInto(tmp_path, make_recipe("classification")), samples, tmp_path, lambda *_told: None)

    def test_films_without_a_chest_are_refused(self, run, samples, tmp_path):
        with pytest.raises(DataError, match="no film with a chest"):
            write_inside(run, samples.subset([3]), tmp_path, lambda *_told: None)
