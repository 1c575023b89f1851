"""What validation measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("lightning")

import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import roc_auc_score

from trainer.losses.registry import classification_loss, segmentation_loss
from trainer.losses.statistics import LabelStatistics
from trainer.networks.registry import build_network
from trainer.training.module import ClassificationModule, SegmentationModule, film_dice, share_outside

_MAPS = arrays.arrays(np.int64, (3, 4, 5), elements=st.integers(0, 3))


@given(_MAPS, _MAPS)
def test_dice_of_each_film_and_region(prediction: np.ndarray, truth: np.ndarray) -> None:
    found = film_dice(torch.from_numpy(prediction), torch.from_numpy(truth), 4).numpy()
    for film in range(3):
        for region in range(4):
            mine, theirs = prediction[film] == region, truth[film] == region
            sizes = mine.sum() + theirs.sum()
            expected = 2 * (mine & theirs).sum() / sizes if sizes else np.nan
            np.testing.assert_allclose(found[film, region], expected)


def test_segmentation_means_leave_out_what_is_not_there(segmentation: Any) -> None:
    recipe = segmentation()
    loss = segmentation_loss("cross_entropy", {}, recipe.data.regions)
    module = SegmentationModule(recipe, build_network(recipe), 3, loss)
    metrics = module.conclude(np.array([[1.0, 0.5, np.nan, np.nan], [0.8, 0.7, 0.2, np.nan]]))
    assert metrics["dice_left_lung"] == pytest.approx(0.6)
    assert metrics["dice_right_lung"] == pytest.approx(0.2)
    assert np.isnan(metrics["dice_mediastinum"])
    assert metrics["mean_dice"] == pytest.approx((0.9 + 0.6 + 0.2) / 3)
    assert metrics["lung_dice"] == pytest.approx(0.4)


class Fixed(torch.nn.Module):
    """Answers with the logits it was given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _picture: torch.Tensor) -> torch.Tensor:
        return self.logits


SIGMOID = {"network.activation": "sigmoid", "data.overlapping": True, "loss.name": "class_frequency_dice"}


def _sigmoid_module(recipe: Any, logits: torch.Tensor) -> SegmentationModule:
    loss = segmentation_loss(recipe.loss.name, {}, recipe.data.regions, "sigmoid")
    return SegmentationModule(recipe, Fixed(logits), 3, loss)


@pytest.mark.parametrize("loss", ["class_frequency_dice", "class_frequency_cross_entropy"])
def test_each_region_of_a_sigmoid_network_counts_from_the_threshold_on(segmentation: Any, loss: str) -> None:
    recipe = segmentation({**SIGMOID, "loss.name": loss})
    assert recipe.outputs == (4 if loss.endswith("entropy") else 3)
    bits = torch.zeros(1, 32, 32, dtype=torch.uint8)
    bits[:, :16] |= 1 << 1
    bits[:, 8:24] |= 1 << 3
    probabilities = torch.full((1, 3, 32, 32), 0.74)
    probabilities[:, 0, :16] = 0.76
    probabilities[:, 1, 0, 0] = 0.9
    probabilities[:, 2, 16:] = 0.99
    logits = torch.cat([torch.full((1, recipe.outputs - 3, 32, 32), 9.0), probabilities.logit()], dim=1)
    module = _sigmoid_module(recipe, logits)
    value, rows = module.measure({"picture": torch.zeros(1, 1, 32, 32), "labels": bits})
    np.testing.assert_allclose(rows, [[1.0, 0.0, 2 * 8 / (16 + 16)]])
    assert value > 0
    metrics = module.conclude(rows)
    assert "dice_background" not in metrics
    assert metrics["mean_dice"] == pytest.approx(0.5)


def test_a_mixed_films_truth_is_the_mixture_of_both(segmentation: Any) -> None:
    recipe = segmentation(SIGMOID)
    seen = []
    module = _sigmoid_module(recipe, torch.zeros(2, 3, 32, 32))
    module.loss = lambda logits, truth, _weights: seen.append(truth) or logits.sum()  # type: ignore[func-returns-value]
    own, other = torch.full((2, 32, 32), 6, dtype=torch.uint8), torch.full((2, 32, 32), 4, dtype=torch.uint8)
    other[1] = 0
    share = torch.tensor([0.25, 0.75])
    module.batch_loss({"picture": torch.zeros(2, 1, 32, 32), "labels": own, "mixed_labels": other, "share": share})
    assert seen[0][:, :, 0, 0].tolist() == [[0, 0.25, 1, 0], [0.25, 0.75, 0.75, 0]]


def test_auroc_on_known_labels_only(classification: Any) -> None:
    recipe = classification()
    statistics = LabelStatistics(recipe.data.findings, (10, 10), 20)
    loss = classification_loss("binary_cross_entropy", {}, statistics)
    module = ClassificationModule(recipe, build_network(recipe), 3, loss)
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, 2))
    targets = (rng.random((40, 2)) < 0.5).astype(float)
    targets[rng.random((40, 2)) < 0.3] = np.nan
    targets[0] = 1, 0
    targets[1] = 0, 1
    metrics = module.conclude(np.concatenate([logits, targets], axis=1))
    expected = []
    for column in range(2):
        known = ~np.isnan(targets[:, column])
        expected.append(roc_auc_score(targets[known, column], logits[known, column]))
    assert metrics["auroc_pneumonia"] == pytest.approx(expected[0])
    assert metrics["mean_auroc"] == pytest.approx(np.mean(expected))


def test_one_class_only_has_no_auroc(classification: Any) -> None:
    recipe = classification()
    module = ClassificationModule(recipe, build_network(recipe), 3, lambda logits, _targets: logits.sum())
    metrics = module.conclude(np.array([[0.1, 0.2, 1.0, 0.0], [0.3, 0.1, 1.0, 1.0]]))
    assert np.isnan(metrics["auroc_pneumonia"])
    assert metrics["mean_auroc"] == metrics["auroc_no_finding"] == 0.0


def test_all_channels_show_the_one_stored_plane(classification: Any) -> None:
    recipe = classification({"training.channels_last": True})
    module = ClassificationModule(recipe, build_network(recipe), 3, lambda logits, _targets: logits.sum())
    picture = module.picture({"picture": torch.rand(2, 1, 32, 32)})
    assert picture.shape == (2, 3, 32, 32)
    assert torch.equal(picture[:, 0], picture[:, 2])
    assert picture.is_contiguous(memory_format=torch.channels_last)


@given(
    arrays.arrays(np.float32, (3, 2, 4, 4), elements=st.floats(0, 8, width=32)),
    arrays.arrays(np.bool_, (3, 1, 8, 8)),
)
def test_share_outside_is_what_is_not_inside(maps: np.ndarray, lungs: np.ndarray) -> None:
    drawn = torch.from_numpy(lungs.astype(np.float32))
    outside = float(share_outside(torch.from_numpy(maps), drawn))
    inside = float(share_outside(torch.from_numpy(maps), 1 - drawn))
    mass = maps.sum((2, 3), dtype=np.float64)
    assert 0 <= outside <= 1
    assert outside + inside == pytest.approx((mass / (mass + 1e-3)).mean(), abs=1e-5)


def test_share_outside_of_films_whose_lungs_are_known() -> None:
    maps = torch.zeros(3, 1, 2, 2)
    maps[0, 0, 0, 0], maps[0, 0, 1, 1], maps[1, 0, 0, 1] = 3000, 1000, 1000
    lungs = torch.zeros(3, 1, 8, 8)
    lungs[:, :, :4, :4] = 1
    lungs[2] = torch.nan
    assert float(share_outside(maps, lungs)) == pytest.approx((0.25 + 1.0) / 2, abs=1e-4)
    assert float(share_outside(maps[2:], lungs[2:])) == 0
