"""Do intervals hold what they promise?"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from worker.monitor.auc_figures import LEAST_PATIENTS, count, mean_dice, paired, performance

GAIN = 1.2
TRUE_AREA = NormalDist().cdf(GAIN / 2**0.5)


def coverage(repetitions: int, replicates: int, seed: int, patients: int = 200) -> dict[str, float]:
    """Share of intervals that hold the true area; some patients have several films, alike among themselves."""
    rng = np.random.default_rng(seed)
    held = {"bootstrap": 0, "delong": 0}
    for _ in range(repetitions):
        whose = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
        truth = (rng.random(patients) < 0.35)[whose]
        # Half of the variance is the patient's, so films of a patient are alike.
        noise = rng.normal(0, 0.5**0.5, patients)[whose] + rng.normal(0, 0.5**0.5, len(whose))
        scores = 1 / (1 + np.exp(-(noise + GAIN * truth)))
        (found,) = performance(
            truth[:, None].astype(float),
            scores[:, None],
            [0.5],
            whose,
            replicates=replicates,
            seed=int(rng.integers(2**31)),
        )
        assert found.auroc_low is not None and found.delong_low is not None
        held["bootstrap"] += found.auroc_low <= TRUE_AREA <= found.auroc_high
        held["delong"] += found.delong_low <= TRUE_AREA <= found.delong_high
    return {name: times / repetitions for name, times in held.items()}


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    found = coverage(repetitions=120, replicates=300, seed=1)
    assert all(0.89 <= share <= 0.99 for share in found.values()), found


@pytest.mark.slow
def test_intervals_cover_the_truth_in_93_to_97_of_100() -> None:
    found = coverage(repetitions=1000, replicates=2000, seed=2)
    assert all(0.93 <= share <= 0.97 for share in found.values()), found


def test_findings_are_told_each_by_its_own_films() -> None:
    rng = np.random.default_rng(3)
    truth = (rng.random((150, 3)) < 0.4).astype(float)
    scores = rng.random((150, 3))
    truth[:30, 0] = np.nan
    truth[5:, 1] = np.nan
    first, second, third = performance(truth, scores, [0.5, 0.5, float("nan")], np.arange(150), replicates=50)
    (alone,) = performance(truth[:, :1], scores[:, :1], [0.5], np.arange(150), replicates=50)
    assert first == alone and first.positives + first.negatives == 120
    assert second.too_few and second.auroc is None and second.positives + second.negatives == 5
    assert third.auroc is not None and third.threshold is None and third.sensitivity is None


def test_the_minimum_is_one_of_patients() -> None:
    truth = np.repeat([1.0, 0.0], 60)
    assert not count(truth, np.arange(120)).too_few
    few = count(truth, np.arange(120) % (LEAST_PATIENTS - 1))
    assert few.too_few and (few.positives, few.positive_patients) == (60, LEAST_PATIENTS - 1)


def test_two_bundles_on_the_same_films() -> None:
    rng = np.random.default_rng(4)
    truth = (rng.random(100) < 0.5).astype(float)
    scores = rng.random(100)
    same = paired(truth, scores, scores, np.arange(100))
    assert (same["difference"], same["p_value"]) == (0.0, 1.0)
    better = paired(truth, scores, scores + truth, np.arange(100))
    assert better["candidate_auroc"] == 1.0 and better["difference_low"] > 0
    assert paired(truth[:8], scores[:8], scores[:8], np.arange(8))["difference"] is None


def test_mean_dice_leaves_out_films_without_the_region() -> None:
    dice = np.full((60, 2), 0.9)
    dice[:50, 1] = np.nan
    whole, few = mean_dice(dice, np.arange(60), replicates=50)
    assert (whole["dice"], whole["films"], whole["too_few"]) == (pytest.approx(0.9), 60, False)
    assert (few["dice"], few["films"], few["too_few"]) == (None, 10, True)
