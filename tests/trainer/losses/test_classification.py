"""The five losses of the classifier's Table 6 against plain loops, gradcheck and torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from schema.findings import Finding  # noqa: E402
from trainer.errors import DataError, RecipeError  # noqa: E402
from trainer.losses import CLASSIFICATION_LOSSES, LabelStatistics, classification_loss  # noqa: E402
from trainer.losses.classification import DistributionBalanced  # noqa: E402

#: Table 1, training set.
PAPER = LabelStatistics(
    tuple(str(finding) for finding in Finding), (402, 1116, 453, 477, 730, 438, 417, 354, 396, 1387), 3550
)
SMALL = LabelStatistics(("bronchitis", "pneumonia", "no_finding"), (30, 12, 55), 100, (90, 100, 80))

Batch = tuple[torch.Tensor, torch.Tensor]


def batch(seed: int, films: int = 6, scale: float = 3.0, unknown: float = 0.25) -> Batch:
    """Logits and targets (films, 3), float64; every film has a positive label, some labels are not known."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (films, 3))
    targets = (rng.random((films, 3)) < 0.4).astype(float)
    targets[rng.random((films, 3)) < unknown] = np.nan
    targets[np.arange(films), rng.integers(0, 3, films)] = 1
    return torch.from_numpy(logits), torch.from_numpy(targets)


def mean_over_known(batch: Batch, term: Callable[[float, float, int, np.ndarray], float]) -> float:
    """Mean of term(z, y, k, film's targets) over the entries that are known."""
    logits, targets = (tensor.numpy() for tensor in batch)
    terms = []
    for z, y in zip(logits, targets, strict=True):
        for k in range(len(z)):
            if not math.isnan(y[k]):
                terms.append(term(float(z[k]), float(y[k]), k, y))
    return sum(terms) / len(terms)


def probability(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def plain(z: float, y: float, k: int, film: np.ndarray) -> float:
    p = probability(z)
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def weighted(z: float, y: float, k: int, film: np.ndarray) -> float:
    p, positive, known = probability(z), SMALL.positives[k], SMALL.known[k]
    return -((known - positive) / known * y * math.log(p) + positive / known * (1 - y) * math.log(1 - p))


def focal(gamma: float, alpha: float) -> Callable[[float, float, int, np.ndarray], float]:
    def term(z: float, y: float, k: int, film: np.ndarray) -> float:
        p_t = probability(z) if y else 1 - probability(z)
        return -(alpha if y else 1 - alpha) * (1 - p_t) ** gamma * math.log(p_t)

    return term


def ratio_by_loops(statistics: LabelStatistics, film: np.ndarray, k: int, modified: bool) -> float:
    """Eq. 2-4, 6 and 7 as printed, k running from 1."""
    n = statistics.positives
    count = len(n)
    of_class = 1 / count * 1 / n[k]
    of_instance = 1 / count * sum(1 / n[j] for j in range(count) if film[j] == 1)
    fixed = 1 / count**2 * sum(1 / n[j] for j in range(count))
    if modified and statistics.findings[k] == "no_finding":
        return of_class / (of_instance + fixed)
    return of_class / of_instance


def balanced(
    modified: bool, alpha: float = 0.1, beta: float = 10, mu: float = 0.2, lam: float = 2, kappa: float = 0.05
) -> Callable[[float, float, int, np.ndarray], float]:
    def term(z: float, y: float, k: int, film: np.ndarray) -> float:
        r = ratio_by_loops(SMALL, film, k, modified)
        smooth = alpha + 1 / (1 + math.exp(-beta * (r - mu)))
        v = kappa * math.log(SMALL.known[k] / SMALL.positives[k] - 1)
        positive = y * math.log(1 + math.exp(-(z - v)))
        negative = 1 / lam * (1 - y) * math.log(1 + math.exp(lam * (z - v)))
        return smooth * (positive + negative)

    return term


CASES = [
    ("binary_cross_entropy", {}, plain),
    ("weighted_binary_cross_entropy", {}, weighted),
    ("focal", {}, focal(2, 0.25)),
    ("focal", {"gamma": 0.7, "alpha": 0.9}, focal(0.7, 0.9)),
    ("focal", {"gamma": 0, "alpha": 0.5}, focal(0, 0.5)),
    ("distribution_balanced", {}, balanced(False)),
    ("modified_distribution_balanced", {}, balanced(True)),
    (
        "modified_distribution_balanced",
        {"alpha": 0.2, "beta": 4, "mu": 0.3, "lambda": 5, "kappa": 0.3},
        balanced(True, 0.2, 4, 0.3, 5, 0.3),
    ),
]
EVERY = pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)


class TestByDefinition:
    @pytest.mark.parametrize(("name", "options", "term"), CASES)
    @pytest.mark.parametrize("unknown", [0.0, 0.4])
    def test_value(
        self, name: str, options: dict, term: Callable[[float, float, int, np.ndarray], float], unknown: float
    ) -> None:
        given = batch(1, unknown=unknown)
        value = classification_loss(name, options, SMALL)(*given)
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(mean_over_known(given, term), rel=1e-9)

    @pytest.mark.parametrize(("name", "options", "term"), CASES)
    def test_gradients(self, name: str, options: dict, term: object) -> None:
        logits, targets = batch(2)
        loss = classification_loss(name, options, SMALL)
        assert torch.autograd.gradcheck(lambda z: loss(z, targets), (logits.requires_grad_(),))

    def test_the_five_differ(self) -> None:
        values = {classification_loss(name, {}, SMALL)(*batch(3)).item() for name in CLASSIFICATION_LOSSES}
        assert len(values) == 5


class TestAgainstTorch:
    def test_binary_cross_entropy(self) -> None:
        logits, targets = batch(4, unknown=0)
        expected = functional.binary_cross_entropy_with_logits(logits, targets)
        assert classification_loss("binary_cross_entropy", {}, SMALL)(logits, targets).item() == pytest.approx(
            expected.item()
        )

    def test_weighted_binary_cross_entropy(self) -> None:
        logits, targets = batch(5, unknown=0)
        positives = torch.tensor(SMALL.positives, dtype=torch.float64)
        negatives = torch.tensor(SMALL.negatives, dtype=torch.float64)
        expected = functional.binary_cross_entropy_with_logits(
            logits, targets, weight=positives / (positives + negatives), pos_weight=negatives / positives
        )
        loss = classification_loss("weighted_binary_cross_entropy", {}, SMALL)
        assert loss(logits, targets).item() == pytest.approx(expected.item())

    def test_both_sides_of_weighted_binary_cross_entropy_weigh_the_same(self) -> None:
        statistics = LabelStatistics(("pneumonia",), (3,), 20)
        targets = torch.tensor([1.0] * 3 + [0.0] * 17, dtype=torch.float64)[:, None]
        logits = torch.zeros(20, 1, dtype=torch.float64, requires_grad=True)
        classification_loss("weighted_binary_cross_entropy", {}, statistics)(logits, targets).backward()
        assert logits.grad.sum().item() == pytest.approx(0, abs=1e-12)

    def test_half_focal_without_focus_is_half_binary_cross_entropy(self) -> None:
        given = batch(6)
        value = classification_loss("focal", {"gamma": 0, "alpha": 0.5}, SMALL)(*given)
        assert 2 * value.item() == pytest.approx(classification_loss("binary_cross_entropy", {}, SMALL)(*given).item())

    def test_balanced_without_balance_is_binary_cross_entropy(self) -> None:
        given = batch(7)
        flat = {"alpha": 0.5, "beta": 1e-12, "lambda": 1, "kappa": 0}
        value = classification_loss("distribution_balanced", flat, SMALL)(*given)
        assert value.item() == pytest.approx(classification_loss("binary_cross_entropy", {}, SMALL)(*given).item())


class TestThePapersRatio:
    """Section 3.3: with Table 1's counts r of *no finding* falls from 1 to 0.2668."""

    TARGETS = torch.eye(10, dtype=torch.float64)[9:]

    def test_is_1_before(self) -> None:
        before = DistributionBalanced(PAPER, modified=False).ratios(self.TARGETS)
        assert before[0, 9].item() == 1

    def test_is_2668_after(self) -> None:
        after = DistributionBalanced(PAPER, modified=True).ratios(self.TARGETS)
        counts = PAPER.positives
        expected = (1 / 1387) / (1 / 1387 + sum(1 / n for n in counts) / 10)
        assert after[0, 9].item() == pytest.approx(expected, rel=1e-12)
        assert round(after[0, 9].item(), 4) == 0.2668

    def test_no_other_finding_is_touched(self) -> None:
        targets = torch.eye(10, dtype=torch.float64)
        targets[0, 4] = 1
        before = DistributionBalanced(PAPER, modified=False).ratios(targets)
        after = DistributionBalanced(PAPER, modified=True).ratios(targets)
        assert torch.equal(before[:, :9], after[:, :9])
        assert (after[:, 9] < before[:, 9]).all()

    @pytest.mark.parametrize("modified", [False, True])
    def test_every_ratio_is_eq_2_and_7(self, modified: bool) -> None:
        rng = np.random.default_rng(8)
        targets = (rng.random((20, 10)) < 0.3).astype(float)
        targets[:, 3] = 1
        found = DistributionBalanced(PAPER, modified=modified).ratios(torch.from_numpy(targets)).numpy()
        for i, k in np.ndindex(found.shape):
            assert found[i, k] == pytest.approx(ratio_by_loops(PAPER, targets[i], k, modified), rel=1e-12)

    def test_the_margin_is_eq_9(self) -> None:
        margins = DistributionBalanced(PAPER, modified=True).margins
        assert margins[9].item() == pytest.approx(0.05 * math.log(3550 / 1387 - 1), rel=1e-12)
        assert margins[7].item() == pytest.approx(0.05 * math.log(3550 / 354 - 1), rel=1e-12)


class TestRefusals:
    @pytest.mark.parametrize("name", ["distribution_balanced", "modified_distribution_balanced"])
    @pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.0, math.nan, 0.0], [math.nan] * 3])
    def test_a_film_without_a_positive_label(self, name: str, row: list[float]) -> None:
        logits, targets = batch(9)
        targets[4] = torch.tensor(row)
        with pytest.raises(ValueError, match=r"films \[4\] of the batch have no positive label"):
            classification_loss(name, {}, SMALL)(logits, targets)

    @pytest.mark.parametrize(("positive", "word"), [(0, "in no training film"), (100, "in every training film")])
    def test_a_finding_that_cannot_be_weighed(self, positive: int, word: str) -> None:
        statistics = LabelStatistics(("bronchitis", "pneumonia"), (30, positive), 100)
        with pytest.raises(DataError, match=f"pneumonia is positive {word}"):
            classification_loss("distribution_balanced", {}, statistics)

    def test_the_modification_without_no_finding(self) -> None:
        statistics = LabelStatistics(("bronchitis", "pneumonia"), (30, 12), 100)
        with pytest.raises(RecipeError, match="needs the finding no_finding"):
            classification_loss("modified_distribution_balanced", {}, statistics)

    @EVERY
    def test_a_rare_finding_of_weighted_loss_stays_finite(self, name: str) -> None:
        statistics = LabelStatistics(("bronchitis", "pneumonia", "no_finding"), (1, 1, 99_999), 100_000)
        assert torch.isfinite(classification_loss(name, {}, statistics)(*batch(10)))


class TestAlways:
    @EVERY
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), scale=st.floats(0, 60), order=st.permutations(range(6)))
    def test_is_no_less_than_0_whatever_the_order(self, name: str, seed: int, scale: float, order: list[int]) -> None:
        logits, targets = batch(seed, scale=scale)
        loss = classification_loss(name, {}, SMALL)
        value = loss(logits, targets).item()
        assert value >= 0
        assert loss(logits[order], targets[order]).item() == pytest.approx(value, rel=1e-9)

    @EVERY
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6))
    def test_what_is_not_known_does_not_matter(self, name: str, seed: int) -> None:
        logits, targets = batch(seed)
        loss = classification_loss(name, {}, SMALL)
        other = torch.where(targets.isnan(), logits.flip(0) + 7, logits).requires_grad_()
        value = loss(other, targets)
        value.backward()
        assert value.item() == pytest.approx(loss(logits, targets).item(), rel=1e-12)
        assert (other.grad[targets.isnan()] == 0).all()

    @EVERY
    def test_of_a_films_entries_each_counts_once(self, name: str) -> None:
        logits, targets = batch(11, unknown=0)
        loss = classification_loss(name, {}, SMALL)
        twice = loss(torch.cat([logits, logits]), torch.cat([targets, targets])).item()
        assert twice == pytest.approx(loss(logits, targets).item(), rel=1e-12)

    @EVERY
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_certain_logits_give_finite_losses_and_gradients(self, name: str, dtype: torch.dtype, sign: int) -> None:
        _, targets = batch(12)
        logits = (sign * 80 * (2 * targets.nan_to_num(0) - 1)).to(dtype).requires_grad_()
        value = classification_loss(name, {}, SMALL)(logits, targets.float())
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(logits.grad).all()
        low, high = {1: (0, 1e-6), -1: (5, 100)}[sign]
        assert low <= value.item() <= high

    @pytest.mark.parametrize("name", ["binary_cross_entropy", "weighted_binary_cross_entropy", "focal"])
    def test_a_batch_of_which_nothing_is_known_gives_0(self, name: str) -> None:
        logits = torch.randn(2, 3, requires_grad=True)
        value = classification_loss(name, {}, SMALL)(logits, torch.full((2, 3), math.nan))
        value.backward()
        assert value.item() == 0
        assert (logits.grad == 0).all()

    @EVERY
    def test_float32_is_as_float64(self, name: str) -> None:
        logits, targets = batch(13)
        loss = classification_loss(name, {}, SMALL)
        assert loss(logits.float(), targets.float()).item() == pytest.approx(loss(logits, targets).item(), rel=1e-5)
