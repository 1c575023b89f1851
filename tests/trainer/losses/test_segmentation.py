"""Holste's two losses against plain loops, gradcheck, torch and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from monai.losses import GeneralizedDiceLoss  # noqa: E402
from torch.nn import functional  # noqa: E402

from trainer.losses.segmentation import CrossEntropy, CrossEntropyDice, GeneralisedDice  # noqa: E402

CLASS_WEIGHTS = (0.3, 1.0, 4.0, 2.0)
LOSSES = [CrossEntropy(), GeneralisedDice(), CrossEntropyDice()]


def batch(seed: int, films: int = 3, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of four classes, labels (no film has class 3, the last film not class 2 either) and weights, float64."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (films, 4, 5, 6))
    labels = rng.integers(0, 3, (films, 5, 6))
    labels[-1] = np.minimum(labels[-1], 1)
    weights = rng.uniform(0.1, 9, (films, 5, 6))
    return torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(weights)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def cross_entropy_by_loops(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, class_weights: tuple[float, ...]
) -> float:
    films = []
    for z, y, w in zip(logits.numpy(), labels.numpy(), weights.numpy(), strict=True):
        total = measure = 0.0
        for place in np.ndindex(y.shape):
            weight = w[place] * class_weights[y[place]]
            total -= weight * math.log(softmax(z[:, *place])[y[place]])
            measure += weight
        films.append(total / measure)
    return sum(films) / len(films)


def dice_by_loops(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    """1 − 2 Σ v Σ w y ŷ / Σ v Σ w (y + ŷ) as printed by Sudre et al., an absent class as heavy as the smallest."""
    films = []
    for z, y, w in zip(logits.numpy(), labels.numpy(), weights.numpy(), strict=True):
        shared, sizes, volumes = [0.0] * 4, [0.0] * 4, [0.0] * 4
        for place in np.ndindex(y.shape):
            for c, probability in enumerate(softmax(z[:, *place])):
                truth = float(y[place] == c)
                shared[c] += w[place] * truth * probability
                sizes[c] += w[place] * (truth + probability)
                volumes[c] += w[place] * truth
        largest = max(1 / volume**2 for volume in volumes if volume)
        heavy = [1 / volume**2 if volume else largest for volume in volumes]
        numerator = sum(v * s for v, s in zip(heavy, shared, strict=True))
        denominator = sum(v * s for v, s in zip(heavy, sizes, strict=True))
        films.append(1 - 2 * numerator / denominator)
    return sum(films) / len(films)


class TestByDefinition:
    def test_cross_entropy(self) -> None:
        logits, labels, weights = batch(1)
        ones = torch.ones_like(weights)
        plain = cross_entropy_by_loops(logits, labels, ones, (1.0,) * 4)
        assert CrossEntropy()(logits, labels).item() == pytest.approx(plain, rel=1e-12)
        weighted = cross_entropy_by_loops(logits, labels, weights, (1.0,) * 4)
        assert CrossEntropy()(logits, labels, weights).item() == pytest.approx(weighted, rel=1e-12)
        assert weighted != pytest.approx(plain, rel=1e-3)
        both = cross_entropy_by_loops(logits, labels, weights, CLASS_WEIGHTS)
        loss = CrossEntropy(torch.tensor(CLASS_WEIGHTS, dtype=torch.float64))
        assert loss(logits, labels, weights).item() == pytest.approx(both, rel=1e-12)

    def test_generalised_dice(self) -> None:
        logits, labels, weights = batch(2)
        assert not (labels[-1] == 2).any()
        plain = dice_by_loops(logits, labels, torch.ones_like(weights))
        assert GeneralisedDice()(logits, labels).item() == pytest.approx(plain, rel=1e-12)
        weighted = dice_by_loops(logits, labels, weights)
        assert GeneralisedDice()(logits, labels, weights).item() == pytest.approx(weighted, rel=1e-12)

    def test_the_sum_is_the_sum(self) -> None:
        logits, labels, weights = batch(3)
        expected = cross_entropy_by_loops(logits, labels, weights, CLASS_WEIGHTS) + dice_by_loops(
            logits, labels, weights
        )
        loss = CrossEntropyDice(torch.tensor(CLASS_WEIGHTS, dtype=torch.float64))
        assert loss(logits, labels, weights).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("loss", [*LOSSES, CrossEntropyDice(torch.tensor(CLASS_WEIGHTS))])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_gradients(self, loss: CrossEntropyDice, weighted: bool) -> None:
        logits, labels, weights = batch(4)
        logits = logits.requires_grad_()
        assert torch.autograd.gradcheck(lambda z: loss(z, labels, weights if weighted else None), (logits,))


class TestAgainstLibraries:
    def test_unweighted_cross_entropy_is_torchs(self) -> None:
        logits, labels, _ = batch(5)
        assert CrossEntropy()(logits, labels).item() == pytest.approx(functional.cross_entropy(logits, labels).item())

    def test_class_weights_are_torchs_in_one_film(self) -> None:
        logits, labels, _ = batch(6, films=1)
        weights = torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)
        expected = functional.cross_entropy(logits, labels, weights)
        assert CrossEntropy(weights)(logits, labels).item() == pytest.approx(expected.item())

    def test_unweighted_dice_is_monais(self) -> None:
        logits, labels, _ = batch(7)
        reference = GeneralizedDiceLoss(to_onehot_y=True, softmax=True, smooth_nr=0.0, smooth_dr=0.0)
        assert GeneralisedDice()(logits, labels).item() == pytest.approx(reference(logits, labels[:, None]).item())


class TestAlways:
    @pytest.mark.parametrize("loss", LOSSES)
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), factor=st.floats(1e-3, 1e3), scale=st.floats(0, 30))
    def test_of_weights_only_the_ratios_count(
        self, loss: CrossEntropyDice, seed: int, factor: float, scale: float
    ) -> None:
        logits, labels, weights = batch(seed, scale=scale)
        value = loss(logits, labels, weights).item()
        assert value >= 0
        assert loss(logits, labels, weights * factor).item() == pytest.approx(value, rel=1e-9, abs=1e-12)
        ones = loss(logits, labels, torch.full_like(weights, factor)).item()
        assert ones == pytest.approx(loss(logits, labels).item(), rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("loss", LOSSES)
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
    def test_neither_films_nor_pixels_have_an_order(self, loss: CrossEntropyDice, seed: int, order: list[int]) -> None:
        logits, labels, weights = batch(seed, films=4)
        value = loss(logits, labels, weights).item()
        assert loss(logits[order], labels[order], weights[order]).item() == pytest.approx(value, rel=1e-9)
        turned = loss(logits.transpose(2, 3), labels.transpose(1, 2), weights.transpose(1, 2)).item()
        assert turned == pytest.approx(value, rel=1e-9)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_batch_is_the_mean_of_its_films(self, loss: CrossEntropyDice) -> None:
        logits, labels, weights = batch(8)
        films = [loss(logits[i : i + 1], labels[i : i + 1], weights[i : i + 1]).item() for i in range(3)]
        assert loss(logits, labels, weights).item() == pytest.approx(sum(films) / 3, rel=1e-12)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_a_pixel_of_weight_2_counts_as_two(self, loss: CrossEntropyDice) -> None:
        logits, labels, _ = batch(9)
        weights = torch.ones(3, 5, 6)
        weights[:, :, 0] = 2
        twice = [torch.cat([t, t[..., :1]], -1) for t in (logits, labels)]
        assert loss(logits, labels, weights).item() == pytest.approx(loss(*twice).item(), rel=1e-12)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("right", [True, False])
    def test_certain_logits_give_finite_losses_and_gradients(
        self, loss: CrossEntropyDice, dtype: torch.dtype, right: bool
    ) -> None:
        _, labels, weights = batch(10)
        chosen = labels if right else (labels + 1) % 4
        logits = (160.0 * functional.one_hot(chosen, 4).movedim(-1, 1) - 80).to(dtype).requires_grad_()
        value = loss(logits, labels, weights.float())
        value.backward()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(logits.grad).all()
        low, high = {True: (0, 1e-6), False: (0.4, 162)}[right]
        assert low <= value.item() <= high

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), scale=st.floats(0, 60))
    def test_dice_lies_between_0_and_1(self, seed: int, scale: float) -> None:
        logits, labels, weights = batch(seed, scale=scale)
        assert 0 <= GeneralisedDice()(logits, labels, weights).item() <= 1 + 1e-12

    def test_painting_an_absent_class_costs(self) -> None:
        labels = torch.zeros(1, 16, 16, dtype=torch.int64)
        labels[:, 8:] = 1
        logits = 12.0 * functional.one_hot(labels, 4).movedim(-1, 1)
        painted = logits.clone()
        painted[:, 3, :2, :2] = 40.0
        assert GeneralisedDice()(painted, labels) > GeneralisedDice()(logits, labels) + 0.005

    def test_a_full_size_film_in_float32_is_as_in_float64(self) -> None:
        rng = np.random.default_rng(11)
        labels = torch.zeros(1, 256, 256, dtype=torch.int64)
        labels[:, 60:200, 40:210] = 1
        labels[:, 100:105, 120:125] = 2
        weights = torch.tensor([0.3, 0.8, 300.0])[labels]
        logits = torch.from_numpy(rng.normal(0, 3, (1, 3, 256, 256)))
        for loss in LOSSES:
            exact = loss(logits, labels, weights.double()).item()
            assert loss(logits.float(), labels, weights).item() == pytest.approx(exact, rel=1e-5)
