"""The losses of Novikov, Maga and Wang: plain loops, MONAI, and what must hold of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from monai.losses import TverskyLoss  # noqa: E402

from trainer.losses import segmentation_loss  # noqa: E402
from trainer.losses.class_frequency import ClassFrequencyCrossEntropy, ClassFrequencyDice  # noqa: E402
from trainer.losses.jaccard import BinaryCrossEntropyJaccard  # noqa: E402
from trainer.losses.truth import as_channels  # noqa: E402
from trainer.losses.tversky import Tversky  # noqa: E402
from trainer.region_losses import REGION_LOSSES  # noqa: E402

Activation = Literal["softmax", "sigmoid"]

REGIONS = ("background", "lungs", "clavicles", "heart")
#: Every loss that takes soft truth with every activation it takes.
CASES = [(name, activation) for name, kind in REGION_LOSSES.items() if kind.soft for activation in kind.activations]
each_case = pytest.mark.parametrize(("name", "activation"), CASES)


def channels_of(name: str, activation: str) -> int:
    return 4 if activation == "softmax" or REGION_LOSSES[name].background else 3


def batch(seed: int, channels: int, films: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels (the last film has only background and lungs) and pixel weights, float64."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (films, 5, 6))
    labels[-1] = np.minimum(labels[-1], 1)
    logits = rng.normal(0, 2, (films, channels, 5, 6))
    return torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(rng.uniform(0.5, 9, (films, 5, 6)))


def probabilities(logits: torch.Tensor, activation: str) -> np.ndarray:
    return (logits.softmax(1) if activation == "softmax" else logits.sigmoid()).numpy()


def certain(truth: torch.Tensor, channels: int, sharpness: float = 40.0) -> torch.Tensor:
    """Logits that say what is true."""
    return sharpness * (2 * as_channels(truth, 4, torch.zeros(1, dtype=torch.float64))[:, -channels:] - 1)


class TestNovikov:
    """Equations 3 to 8, one pixel after the other."""

    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    @pytest.mark.parametrize("weighted", [True, False])
    def test_cross_entropy(self, activation: Activation, weighted: bool) -> None:
        logits, labels, _ = batch(1, 4)
        predicted, truth = probabilities(logits, activation), labels.numpy()
        pixels = truth.size
        total = 0.0
        for region in range(4):
            frequency = (truth == region).sum() / pixels if weighted else 1.0
            for film, row, column in np.ndindex(truth.shape):
                p = predicted[film, region, row, column]
                if truth[film, row, column] == region:
                    total -= math.log(p) / pixels / frequency
                elif activation == "sigmoid":
                    total -= math.log(1 - p) / pixels / (1 - frequency if weighted else 1.0)
        found = ClassFrequencyCrossEntropy(activation, weighted=weighted)(logits, labels)
        assert found.item() == pytest.approx(total, rel=1e-12)

    @pytest.mark.parametrize("weighted", [True, False])
    def test_dice(self, weighted: bool) -> None:
        logits, labels, _ = batch(2, 3)
        predicted, truth = probabilities(logits, "sigmoid"), labels.numpy()
        films = []
        for film, true in enumerate(truth):
            loss = 0.0
            for region in (1, 2, 3):
                frequency = (truth == region).sum() / truth.size if weighted else 1.0
                own, p = true == region, predicted[film, region - 1]
                dice = (2 * p[own].sum() + 1) / (own.sum() + p.sum() + 1)
                loss += (1 - dice) / frequency
            films.append(loss)
        found = ClassFrequencyDice("sigmoid", weighted=weighted)(logits, labels)
        assert found.item() == pytest.approx(np.mean(films), rel=1e-12)

    def test_by_hand(self) -> None:
        """Two of four pixels lung, one clavicle, every probability a half."""
        labels = torch.tensor([[[1, 1], [2, 0]]])
        logits = torch.zeros(1, 3, 2, 2)
        lungs, clavicles, heart = 1 - (2 + 1) / (2 + 2 + 1), 1 - (1 + 1) / (1 + 2 + 1), 1 - 1 / (2 + 1)
        # No heart: it weighs as much as the rarest class that is there.
        expected = 2 * lungs + 4 * clavicles + 4 * heart
        assert ClassFrequencyDice("sigmoid")(logits, labels).item() == pytest.approx(expected)
        entropy = ClassFrequencyCrossEntropy("softmax")(torch.zeros(1, 3, 2, 2), labels)
        assert entropy.item() == pytest.approx(3 * math.log(3))

    def test_dice_has_no_background_under_softmax_either(self) -> None:
        logits, labels, _ = batch(3, 4)
        equal = torch.log(logits.softmax(1)[:, 1:] / (1 - logits.softmax(1)[:, 1:]))
        softmax, sigmoid = ClassFrequencyDice("softmax")(logits, labels), ClassFrequencyDice("sigmoid")(equal, labels)
        assert softmax.item() == pytest.approx(sigmoid.item(), rel=1e-9)

    def test_a_trace_of_a_class_does_not_outweigh_the_others(self) -> None:
        logits, labels, _ = batch(4, 4)
        truth = as_channels(labels.clamp(max=2), 4, logits)
        trace = truth.clone()
        trace[0, :, 0, 0] = torch.tensor([0.0, 0.999, 0.0, 0.001])
        loss = ClassFrequencyCrossEntropy("sigmoid")
        assert loss(logits, trace).item() == pytest.approx(loss(logits, truth).item(), rel=0.05)


class TestMaga:
    @pytest.mark.parametrize("exponent", [1.0, 0.675])
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_by_loops(self, activation: Activation, exponent: float) -> None:
        logits, labels, _ = batch(5, 4 if activation == "softmax" else 3)
        predicted, truth = probabilities(logits, activation)[:, -3:], labels.numpy()
        films = []
        for film, true in enumerate(truth):
            loss = 0.0
            for region in (1, 2, 3):
                own, p = true == region, predicted[film, region - 1]
                right, missed, added = p[own].sum(), (1 - p)[own].sum(), p[~own].sum()
                loss += (1 - (right + 1) / (right + 0.6 * missed + 0.4 * added + 1)) ** exponent
            films.append(loss)
        assert Tversky(activation, exponent=exponent)(logits, labels).item() == pytest.approx(np.mean(films), rel=1e-12)

    def test_monai_says_the_same_with_the_names_exchanged(self) -> None:
        logits, labels, _ = batch(6, 4)
        theirs = TverskyLoss(
            include_background=False, softmax=True, alpha=0.4, beta=0.6, smooth_nr=1, smooth_dr=1, to_onehot_y=True
        )
        ours = Tversky("softmax", alpha=0.6, beta=0.4)(logits, labels)
        assert ours.item() == pytest.approx(3 * theirs(logits, labels[:, None]).item(), rel=1e-6)

    def test_missing_costs_more_than_adding(self) -> None:
        truth = torch.zeros(1, 8, 8, dtype=torch.int64)
        truth[:, 2:6, 2:6] = 1
        missed, added = truth.clone(), truth.clone()
        missed[:, 2:4, 2:6] = 0
        added[:, 0:2, 2:6] = 1
        loss = Tversky("sigmoid", exponent=0.675)
        costs = [loss(40.0 * (2 * found[:, None].double() - 1), truth).item() for found in (missed, added)]
        assert costs[0] > costs[1]


class TestWang:
    def test_by_loops(self) -> None:
        logits, labels, _ = batch(7, 1)
        true = (labels == 1).long()
        films = []
        for film, own in enumerate(true.numpy() == 1):
            p = probabilities(logits, "sigmoid")[film, 0]
            entropy = -np.where(own, np.log(p), np.log(1 - p)).mean()
            jaccard = (p[own].sum() + 1) / (own.sum() + p[~own].sum() + 1)
            films.append(entropy + 0.5 * (1 - jaccard))
        found = BinaryCrossEntropyJaccard(jaccard_weight=0.5)(logits, true)
        assert found.item() == pytest.approx(np.mean(films), rel=1e-12)


@each_case
class TestAllOfThem:
    def loss(self, name: str, activation: Activation) -> Callable[..., torch.Tensor]:
        return segmentation_loss(name, {}, REGIONS, activation)

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_right_costs_nothing_and_anything_else_something_finite(
        self, name: str, activation: Activation, seed: int
    ) -> None:
        channels = channels_of(name, activation)
        logits, labels, weights = batch(seed, channels)
        loss = self.loss(name, activation)
        assert 0 <= loss(certain(labels, channels), labels).item() < 1e-3
        value = loss(logits, labels, weights).item()
        assert 0 < value < math.inf
        if "tversky" in name:
            assert value <= 3
        if name == "class_frequency_dice":
            volumes = [weights[labels == region].sum() for region in (1, 2, 3)]
            assert value <= sum(weights.sum() / volume for volume in volumes)

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10**6), order=st.permutations([1, 2, 3]), films=st.permutations([0, 1, 2]))
    def test_order_of_regions_and_films_is_no_matter(
        self, name: str, activation: Activation, seed: int, order: list[int], films: list[int]
    ) -> None:
        channels = channels_of(name, activation)
        logits, labels, _ = batch(seed, channels)
        first = 4 - channels
        moved = logits[:, [place - first for place in ([0, *order] if channels == 4 else order)]][films]
        truth = as_channels(labels, 4, logits)[:, [0, *order]][films]
        loss = self.loss(name, activation)
        assert loss(moved, truth).item() == pytest.approx(loss(logits, labels).item(), rel=1e-9)

    @pytest.mark.parametrize("values", [[0], [1], [0, 1, 2, 3]])
    @pytest.mark.parametrize("sharpness", [0.0, 60.0, -60.0])
    def test_gradient_is_finite_where_all_is_right_wrong_or_empty(
        self, name: str, activation: Activation, values: list[int], sharpness: float
    ) -> None:
        channels = channels_of(name, activation)
        labels = torch.tensor(values).repeat(32)[:32].reshape(2, 4, 4)
        logits = certain(labels, channels, sharpness).float().requires_grad_()
        value = self.loss(name, activation)(logits, labels)
        value.backward()
        assert value.isfinite()
        assert logits.grad is not None and logits.grad.isfinite().all()

    def test_gradient(self, name: str, activation: Activation) -> None:
        channels = channels_of(name, activation)
        logits, labels, weights = batch(8, channels, films=2)
        soft = 0.7 * as_channels(labels, 4, logits) + 0.3 * as_channels(labels.flip(0), 4, logits)
        loss = self.loss(name, activation)
        assert torch.autograd.gradcheck(lambda own: loss(own, soft, weights), logits.requires_grad_())

    def test_label_maps_and_channels_say_the_same(self, name: str, activation: Activation) -> None:
        logits, labels, weights = batch(9, channels_of(name, activation))
        loss = self.loss(name, activation)
        channels = as_channels(labels, 4, logits)
        assert loss(logits, channels, weights).item() == loss(logits, labels, weights).item()
        mixed = 0.5 * channels + 0.5 * channels.flip(0)
        assert loss(logits, mixed).item() != loss(logits, labels).item()

    def test_bfloat16_is_computed_in_full_precision(self, name: str, activation: Activation) -> None:
        logits, labels, _ = batch(10, channels_of(name, activation))
        half = logits.bfloat16()
        loss = self.loss(name, activation)
        assert loss(half, labels).item() == loss(half.float(), labels).item()
