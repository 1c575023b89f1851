from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from schema.regions import HOLSTE_REGIONS
from worker import metrics

MASKS = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random((2, 9, 11)) < 0.3)


def close(value, expected):
    return (math.isnan(value) and math.isnan(expected)) or value == pytest.approx(expected, abs=1e-5)


class TestOverlap:
    @settings(max_examples=40, deadline=None)
    @given(MASKS)
    def test_against_sets(self, masks):
        first, second = ({tuple(point) for point in np.argwhere(mask)} for mask in masks)
        found = metrics.overlap(*masks)
        assert found.dice == pytest.approx(2 * len(first & second) / (len(first) + len(second)))
        assert found.jaccard == pytest.approx(len(first & second) / len(first | second))
        assert found.jaccard == pytest.approx(found.dice / (2 - found.dice))

    def test_regions_against_masks(self):
        rng = np.random.default_rng(0)
        truth, prediction = rng.integers(0, 7, (2, 30, 20)).astype(np.uint8)
        found = metrics.region_overlaps(truth, prediction, HOLSTE_REGIONS)
        for region in HOLSTE_REGIONS[:7]:
            expected = metrics.overlap(truth == region.value, prediction == region.value)
            assert found[region.name] == expected
        assert math.isnan(found["carina"].dice)
        assert math.isnan(found["carina"].jaccard)

    def test_missing_in_one_map_is_zero(self):
        empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
        assert metrics.overlap(full, empty) == metrics.Overlap(0.0, 0.0)
        assert math.isnan(metrics.overlap(empty, empty).dice)

    def test_accuracy(self):
        truth = np.arange(8, dtype=np.uint8).reshape(2, 4)
        prediction = truth.copy()
        prediction[0, :2] = 7
        assert metrics.pixel_accuracy(truth, prediction) == 0.75

    def test_confusion_matrix(self):
        counts = metrics.confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
        assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="shape"):
            metrics.confusion_matrix(np.zeros(3, int), np.zeros(4, int), 2)
        with pytest.raises(ValueError, match="between 0 and 1"):
            metrics.confusion_matrix(np.array([0, 2]), np.array([0, 0]), 2)
        with pytest.raises(ValueError, match="shape"):
            metrics.pixel_accuracy(np.zeros((2, 2), np.uint8), np.zeros((4,), np.uint8))


def brute_surface(mask):
    rows, columns = mask.shape
    points = []
    for row, column in np.argwhere(mask):
        near = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        if any(not (0 <= r < rows and 0 <= c < columns) or not mask[r, c] for r, c in near):
            points.append((row, column))
    return points


def brute_distances(first, second, spacing):
    return [min(math.hypot((r - s) * spacing[0], (c - d) * spacing[1]) for s, d in second) for r, c in first]


class TestDistance:
    @settings(max_examples=40, deadline=None)
    @given(MASKS, st.sampled_from([(1.0, 1.0), (0.5, 0.5), (0.4, 1.7)]))
    def test_against_brute_force(self, masks, spacing):
        first, second = (brute_surface(mask) for mask in masks)
        there, back = brute_distances(first, second, spacing), brute_distances(second, first, spacing)
        found = metrics.surface_distance(*masks, spacing)
        assert found.mean == pytest.approx((np.mean(there) + np.mean(back)) / 2, abs=1e-5)
        assert found.percentile95 == pytest.approx(np.percentile(there + back, 95), abs=1e-5)
        assert found.maximum == pytest.approx(max(there + back), abs=1e-5)

    @settings(max_examples=20, deadline=None)
    @given(MASKS)
    def test_surface(self, masks):
        assert [tuple(point) for point in np.argwhere(metrics.surface(masks[0]))] == brute_surface(masks[0])

    def test_shifted_square_in_millimetres(self):
        first, second = np.zeros((2, 40, 40), bool)
        first[10:20, 10:20] = second[10:20, 13:23] = True
        assert metrics.surface_distance(first, second, (0.5, 0.5)).maximum == pytest.approx(1.5)
        assert metrics.centroid_distance(first, second, (1.0, 0.5)) == pytest.approx(1.5)
        assert metrics.surface_distance(first, first) == metrics.SurfaceDistance(0.0, 0.0, 0.0)

    def test_centroid_is_a_straight_line(self):
        first, second = np.zeros((2, 10, 10), bool)
        first[2, 2] = second[5, 6] = True
        assert metrics.centroid_distance(first, second) == pytest.approx(5.0)
        assert metrics.centroid_distance(first, second, (2.0, 0.5)) == pytest.approx(math.hypot(6, 2))

    def test_an_empty_mask_has_no_distance(self):
        empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
        assert math.isnan(metrics.surface_distance(empty, full).mean)
        assert math.isnan(metrics.surface_distance(full, empty).percentile95)
        assert math.isnan(metrics.centroid_distance(full, empty))


RANKED = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40)


def split(pairs):
    return np.array([label for label, _ in pairs]), np.array([value / 8 for _, value in pairs], np.float32)


def at(labels, scores, threshold):
    called = scores >= threshold
    return [
        sum(1 for label, call in zip(labels, called, strict=True) if (label, call) == pair)
        for pair in ((True, True), (False, True), (False, False), (True, False))
    ]


class TestRanking:
    @settings(max_examples=80, deadline=None)
    @given(RANKED)
    def test_auroc_counts_pairs(self, pairs):
        labels, scores = split(pairs)
        positive, negative = scores[labels], scores[~labels]
        wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in product(positive, negative)]
        assert close(metrics.auroc(labels, scores), float(np.mean(wins)) if wins else math.nan)

    @settings(max_examples=60, deadline=None)
    @given(RANKED)
    def test_area_under_the_curve_is_auroc(self, pairs):
        labels, scores = split(pairs)
        curve = metrics.roc_curve(labels, scores)
        area = float(np.trapezoid(curve.true_positive_rate, curve.false_positive_rate))
        assert close(area, metrics.auroc(labels, scores))
        if not math.isnan(area):
            assert (curve.false_positive_rate[0], curve.true_positive_rate[0]) == (0, 0)
            assert (curve.false_positive_rate[-1], curve.true_positive_rate[-1]) == (1, 1)

    @settings(max_examples=60, deadline=None)
    @given(RANKED)
    def test_youden_is_the_best_of_all_thresholds(self, pairs):
        labels, scores = split(pairs)
        chosen = metrics.youden_threshold(labels, scores)
        if labels.all() or not labels.any():
            assert math.isnan(chosen)
            return

        def gain(threshold):
            tp, fp, tn, fn = at(labels, scores, threshold)
            return tp / (tp + fn) + tn / (tn + fp) - 1

        gains = {value: gain(value) for value in np.unique(scores).astype(float)}
        best = max(gains.values())
        assert chosen == max(value for value, found in gains.items() if found == pytest.approx(best))

    @settings(max_examples=60, deadline=None)
    @given(RANKED, st.integers(0, 8))
    def test_operation(self, pairs, step):
        labels, scores = split(pairs)
        tp, fp, tn, fn = at(labels, scores, step / 8)
        found = metrics.operation(labels, scores, step / 8)
        assert found == metrics.Operation(tp, fp, tn, fn)
        assert close(found.sensitivity, tp / (tp + fn) if tp + fn else math.nan)
        assert close(found.specificity, tn / (tn + fp) if tn + fp else math.nan)
        if tp:
            precision, recall = tp / (tp + fp), tp / (tp + fn)
            assert found.precision == pytest.approx(precision)
            assert found.f1 == pytest.approx(2 * precision * recall / (precision + recall))

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="pair"):
            metrics.auroc(np.array([True]), np.array([0.1, 0.2]))
        with pytest.raises(ValueError, match="NaN"):
            metrics.auroc(np.array([True, False]), np.array([0.1, np.nan]))


class TestAgreement:
    def test_textbook_kappa(self):
        """20 and 15 agreements, 5 and 10 disagreements of 50: kappa 0.4."""
        first = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
        second = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
        assert metrics.agreement(first, second) == pytest.approx(0.7)
        assert metrics.cohen_kappa(first, second) == pytest.approx(0.4)

    def test_perfect_and_chance(self):
        classes = np.array([0, 1, 2, 2])
        assert metrics.cohen_kappa(classes, classes) == 1.0
        assert metrics.cohen_kappa(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.0)

    def test_undefined(self):
        none, same = np.zeros(0, int), np.zeros(3, int)
        assert math.isnan(metrics.agreement(none, none))
        assert math.isnan(metrics.cohen_kappa(none, none))
        assert math.isnan(metrics.cohen_kappa(same, same))
        with pytest.raises(ValueError, match="answers"):
            metrics.agreement(none, same)


class TestProbabilities:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=30))
    def test_average_precision_and_brier_score_are_scikit_learns(self, rows):
        labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows]) / 6
        assert metrics.brier_score(labels, scores) == pytest.approx(np.mean((scores - labels) ** 2))
        if not labels.any():
            assert math.isnan(metrics.average_precision(labels, scores))
        else:
            assert metrics.average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores))

    def test_calibration_is_logistic_regression_on_the_logits(self):
        rng = np.random.default_rng(1)
        logits = rng.normal(0, 2, 400)
        labels = rng.random(400) < 1 / (1 + np.exp(-(0.5 * logits - 0.7)))
        found = metrics.calibration(labels, 1 / (1 + np.exp(-logits)))
        fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits[:, None], labels)
        assert (found.slope, found.intercept) == pytest.approx((fitted.coef_[0, 0], fitted.intercept_[0]), abs=1e-4)
        assert found.slope == pytest.approx(0.5, abs=0.15)

    def test_probabilities_that_are_right_have_the_slope_1(self):
        rng = np.random.default_rng(2)
        chances = rng.random(20000)
        found = metrics.calibration(rng.random(20000) < chances, chances)
        assert (found.slope, found.intercept) == pytest.approx((1.0, 0.0), abs=0.06)

    @pytest.mark.parametrize(
        ("labels", "scores"),
        [([1, 1], [0.2, 0.9]), ([0, 1], [0.2, 0.9]), ([1, 0, 1], [0.5, 0.5, 0.5]), ([1, 0, 0], [0.1, 0.1, 0.4])],
    )
    def test_where_there_is_no_line(self, labels, scores):
        found = metrics.calibration(np.array(labels, bool), np.array(scores))
        assert math.isnan(found.slope) and math.isnan(found.intercept)

    def test_certain_probabilities_do_no_harm(self):
        labels = np.array([0, 1, 0, 1, 1, 0], bool)
        found = metrics.calibration(labels, np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0]))
        assert 0 < found.slope < 1 and math.isfinite(found.intercept)

    def test_no_films(self):
        nothing = np.empty(0)
        assert math.isnan(metrics.brier_score(nothing.astype(bool), nothing))
