"""The vectorised bootstrap against scikit-learn and plain loops over the same resamples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score

from worker import bootstrap
from worker.bootstrap import Bootstrap, aurocs, aurocs_of, average_precisions, draw, means, operations, performances
from worker.metrics import auroc, operation

FloatArray = npt.NDArray[np.float64]


def films(count: int, findings: int, seed: int = 0, *, levels: int = 8) -> tuple[FloatArray, FloatArray]:
    """Labels and scores with many ties and a few films whose label is not known."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, findings)) < 0.3).astype(float)
    scores = np.round((rng.random((count, findings)) + 0.4 * labels) * levels) / levels
    labels[rng.random((count, findings)) < 0.1] = np.nan
    return labels, scores


def sklearn_auroc(labels: FloatArray, scores: FloatArray) -> float:
    known = ~np.isnan(labels)
    if len(np.unique(labels[known])) < 2:
        return float("nan")
    return float(roc_auc_score(labels[known], scores[known]))


class TestAurocs:
    @pytest.mark.parametrize("levels", [2, 8, 10**6])
    def test_every_replicate_is_what_scikit_learn_says(self, levels: int) -> None:
        labels, scores = films(41, 3, levels=levels)
        indices = draw(41, 60, seed=3)
        expected = [[sklearn_auroc(labels[row, k], scores[row, k]) for k in range(3)] for row in indices]
        np.testing.assert_allclose(aurocs_of(labels, scores, indices), expected, rtol=0, atol=1e-12)

    def test_a_draw_is_a_weight(self) -> None:
        labels, scores = films(30, 1, seed=4)
        labels = np.nan_to_num(labels)
        (row,) = draw(30, 1, seed=5)
        weights = np.bincount(row, minlength=30)
        expected = roc_auc_score(labels[:, 0], scores[:, 0], sample_weight=weights)
        assert aurocs_of(labels, scores, row[None])[0, 0] == pytest.approx(expected, abs=1e-12)

    def test_draws_the_replicates_of_its_seed_whatever_the_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        labels, scores = films(50, 2)
        whole = aurocs(labels, scores, replicates=33, seed=9).replicates
        np.testing.assert_array_equal(whole, aurocs_of(labels, scores, draw(50, 33, seed=9)))
        monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 50 * 4)
        np.testing.assert_array_equal(whole, aurocs(labels, scores, replicates=33, seed=9).replicates)

    def test_counts_that_need_more_than_32_bits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        labels, scores = films(60, 2)
        narrow = aurocs(labels, scores, replicates=20).replicates
        monkeypatch.setattr(bootstrap, "_INT32_FILMS", 1)
        np.testing.assert_array_equal(narrow, aurocs(labels, scores, replicates=20).replicates)

    def test_value_on_the_films_is_that_of_the_metrics(self) -> None:
        labels, scores = films(80, 2)
        for k, value in enumerate(aurocs(labels, scores, replicates=1).values):
            known = ~np.isnan(labels[:, k])
            assert value == pytest.approx(auroc(labels[known, k] == 1, scores[known, k]), abs=1e-12)

    def test_a_replicate_without_a_class_is_left_out(self) -> None:
        labels, scores = np.array([[1.0], [0], [0], [0], [0]]), np.array([[0.9], [0.1], [0.2], [0.95], [0.3]])
        result = aurocs(labels, scores, replicates=500, seed=1)
        lacking = ~(draw(5, 500, seed=1) == 0).any(axis=1)
        assert lacking.any()
        np.testing.assert_array_equal(np.isnan(result.replicates[:, 0]), lacking)
        assert result.intervals()[0].replicates == 500 - lacking.sum()

    def test_interval_is_the_percentile_interval_of_a_plain_loop(self) -> None:
        labels, scores = films(60, 1, seed=8)
        loop = [sklearn_auroc(labels[row, 0], scores[row, 0]) for row in draw(60, 400, seed=2)]
        (interval,) = aurocs(labels, scores, replicates=400, seed=2).intervals()
        assert (interval.low, interval.high) == pytest.approx(tuple(np.nanpercentile(loop, (2.5, 97.5))), abs=1e-12)

    def test_covers_the_true_value_about_as_often_as_it_says(self) -> None:
        # Scores are normal, one standard deviation apart: the true area is Phi(1 / sqrt 2) = 0.7602.
        rng = np.random.default_rng(11)
        labels = np.repeat([1.0, 0.0], [60, 90])[:, None] * np.ones((1, 120))
        scores = rng.normal(0, 1, (150, 120)) + labels
        intervals = aurocs(labels, scores, replicates=500).intervals()
        covered = np.mean([interval.low <= 0.7602 <= interval.high for interval in intervals])
        assert 0.88 <= covered <= 0.99

    @pytest.mark.parametrize(
        ("labels", "scores", "words"),
        [
            ([[0.5], [1.0]], [[0.1], [0.2]], "neither 0 nor 1"),
            ([[0.0], [1.0]], [[np.nan], [0.2]], "not finite"),
            ([0.0, 1.0], [0.1, 0.2], "films, findings"),
            ([[0.0], [1.0]], [[0.1, 0.2], [0.1, 0.2]], "films, findings"),
        ],
    )
    def test_refuses_what_it_cannot_use(self, labels: list, scores: list, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            aurocs(labels, scores)

    def test_no_films_give_no_number(self) -> None:
        (interval,) = aurocs(np.empty((0, 1)), np.empty((0, 1)), replicates=5).intervals()
        assert np.isnan([interval.value, interval.low, interval.high]).all()
        assert interval.replicates == 0


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 4)), min_size=1, max_size=25),
    st.integers(0, 2**32 - 1),
)
def test_areas_turn_over_with_the_scores_and_do_not_see_their_scale(rows: list, seed: int) -> None:
    labels, scores = (np.array(column, float)[:, None] for column in zip(*rows, strict=True))
    indices = draw(len(rows), 7, seed)
    areas = aurocs_of(labels, scores, indices)
    finite = areas[~np.isnan(areas)]
    assert ((finite >= 0) & (finite <= 1)).all()
    np.testing.assert_allclose(aurocs_of(labels, -scores, indices), 1 - areas, atol=1e-12)
    np.testing.assert_allclose(aurocs_of(1 - labels, scores, indices), 1 - areas, atol=1e-12)
    np.testing.assert_array_equal(aurocs_of(labels, np.exp(scores), indices), areas)
    order = np.random.default_rng(seed).permutation(len(rows))
    places = np.argsort(order)
    np.testing.assert_array_equal(aurocs_of(labels[order], scores[order], places[indices]), areas)


class TestOperations:
    def test_every_replicate_is_what_scikit_learn_says(self) -> None:
        labels, scores = films(40, 3, seed=6)
        thresholds = [0.3, 0.5, 0.75]
        result = operations(labels, scores, thresholds, replicates=50, seed=4)
        for replicate, row in enumerate(draw(40, 50, seed=4)):
            for k, threshold in enumerate(thresholds):
                known = ~np.isnan(labels[row, k])
                truth, called = labels[row, k][known], scores[row, k][known] >= threshold
                assert result["sensitivity"].replicates[replicate, k] == pytest.approx(recall_score(truth, called))
                assert result["specificity"].replicates[replicate, k] == pytest.approx(
                    recall_score(truth, called, pos_label=0)
                )
                assert result["f1"].replicates[replicate, k] == pytest.approx(f1_score(truth, called))

    def test_values_are_those_of_the_metrics(self) -> None:
        labels, scores = films(40, 1, seed=6)
        known = ~np.isnan(labels[:, 0])
        expected = operation(labels[known, 0] == 1, scores[known, 0], 0.5)
        for name, result in operations(labels, scores, [0.5], replicates=1).items():
            assert result.values[0] == pytest.approx(getattr(expected, name))

    def test_no_threshold_no_rate(self) -> None:
        labels, scores = films(20, 2)
        result = operations(labels, scores, [float("nan"), 0.5], replicates=3)
        for part in result.values():
            assert np.isnan(part.values[0]) and np.isfinite(part.values[1])
            assert np.isnan(part.replicates[:, 0]).all()

    def test_needs_a_threshold_per_finding(self) -> None:
        with pytest.raises(ValueError, match="as many thresholds"):
            operations(*films(10, 2), [0.5])


class TestMeans:
    def test_every_replicate_is_the_mean_of_the_films_that_have_it(self) -> None:
        values = np.random.default_rng(1).random((25, 2))
        values[::4, 1] = np.nan
        result = means(values, replicates=30, seed=7)
        expected = [np.nanmean(values[row], axis=0) for row in draw(25, 30, seed=7)]
        np.testing.assert_allclose(result.replicates, expected, atol=1e-12)
        np.testing.assert_allclose(result.values, np.nanmean(values, axis=0), atol=1e-12)

    def test_equal_values_leave_no_doubt(self) -> None:
        (interval,) = means(np.full((9, 1), 0.25)).intervals()
        assert (interval.value, interval.low, interval.high) == (0.25, 0.25, 0.25)

    def test_refuses_another_shape(self) -> None:
        with pytest.raises(ValueError, match="films, quantities"):
            means(np.ones(4))


class TestMacro:
    def test_is_the_mean_of_each_replicate(self) -> None:
        labels, scores = films(60, 3)
        result = aurocs(labels, scores, replicates=200)
        macro = result.macro()
        assert macro.value == pytest.approx(result.values.mean())
        expected = np.percentile(result.replicates.mean(axis=1), (2.5, 97.5))
        assert (macro.low, macro.high) == pytest.approx(tuple(expected))

    def test_leaves_out_the_finding_that_has_no_positive_and_the_replicate_that_lacks_one(self) -> None:
        values = np.array([0.8, np.nan, 0.6])
        replicates = np.array([[0.7, np.nan, 0.5], [0.9, np.nan, np.nan], [0.9, np.nan, 0.7]])
        macro = Bootstrap(values, replicates).macro()
        assert macro.value == pytest.approx(0.7)
        assert macro.replicates == 2
        assert 0.6 <= macro.low <= macro.high <= 0.8

    def test_nothing_to_average(self) -> None:
        macro = Bootstrap(np.array([np.nan]), np.full((4, 1), np.nan)).macro()
        assert np.isnan(macro.value) and macro.replicates == 0

    @pytest.mark.filterwarnings("error")
    def test_no_warning_where_replicates_or_all_films_lack_a_class(self) -> None:
        labels = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.4, 0.5]])
        numbers = [aurocs(labels, scores, replicates=50), means(np.full((3, 2), np.nan), replicates=50)]
        numbers += operations(labels, scores, [0.5, float("nan")], replicates=50).values()
        lacking = numbers[0].intervals()[0]
        assert lacking.value == 1.0 and 0 < lacking.replicates < 50
        for each in numbers:
            macro = each.macro()
            assert np.isnan(macro.value) == np.isnan(each.values).all()
            assert each.macro_above(each).replicates == macro.replicates

    def test_difference_is_taken_replicate_by_replicate(self) -> None:
        labels, scores = films(60, 2)
        better = aurocs(labels, scores + 0.2 * np.nan_to_num(labels), replicates=300)
        worse = aurocs(labels, scores, replicates=300)
        above = better.macro_above(worse)
        assert above.value == pytest.approx(better.macro().value - worse.macro().value)
        assert 0 < above.low < above.high
        same = worse.macro_above(worse)
        assert (same.value, same.low, same.high) == (0, 0, 0)


class TestAveragePrecisions:
    @pytest.mark.parametrize("levels", [2, 8, 10**6])
    def test_every_replicate_is_what_scikit_learn_says(self, levels: int) -> None:
        labels, scores = films(40, 2, seed=3, levels=levels)
        result = average_precisions(labels, scores, replicates=50, seed=4)
        for replicate, row in enumerate(draw(40, 50, seed=4)):
            for k in range(2):
                known = ~np.isnan(labels[row, k])
                expected = average_precision_score(labels[row, k][known], scores[row, k][known])
                assert result.replicates[replicate, k] == pytest.approx(expected, abs=1e-12)

    def test_nothing_positive_no_number(self) -> None:
        (interval,) = average_precisions(np.zeros((5, 1)), np.zeros((5, 1)), replicates=9).intervals()
        assert np.isnan(interval.value)


class TestClusters:
    def test_patients_of_one_film_are_films(self) -> None:
        labels, scores = films(40, 2)
        patients = np.random.default_rng(1).permutation(40)
        plain = performances(labels, scores, [0.5, 0.5], replicates=60)
        for name, result in performances(labels, scores, [0.5, 0.5], clusters=patients, replicates=60).items():
            np.testing.assert_array_equal(result.replicates, plain[name].replicates)

    def test_a_patient_is_drawn_with_all_its_films(self) -> None:
        labels, scores = films(30, 1, seed=7)
        patients = np.sort(np.random.default_rng(2).integers(0, 12, 30))
        names = np.unique(patients)
        result = performances(labels, scores, [0.5], clusters=patients, replicates=50, seed=3)
        for replicate, drawn in enumerate(draw(len(names), 50, seed=3)):
            row = np.concatenate([np.flatnonzero(patients == names[place]) for place in drawn])
            assert result["auroc"].replicates[replicate, 0] == pytest.approx(
                sklearn_auroc(labels[row, 0], scores[row, 0]), abs=1e-12, nan_ok=True
            )
        mean = means(scores, clusters=patients, replicates=50, seed=3)
        assert mean.replicates[-1, 0] == pytest.approx(scores[row, 0].mean())

    def test_films_shown_twice_make_nothing_surer(self) -> None:
        labels, scores = films(60, 1, seed=8)
        (once,) = aurocs(labels, scores, replicates=300).intervals()
        twice = np.tile(labels, (2, 1)), np.tile(scores, (2, 1))
        (again,) = aurocs(*twice, clusters=np.tile(np.arange(60), 2), replicates=300).intervals()
        assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=1e-12)

    def test_a_large_family_does_not_overflow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        labels, scores = films(60, 1)
        patients = np.minimum(np.arange(60), 10)
        narrow = aurocs(labels, scores, clusters=patients, replicates=20).replicates
        monkeypatch.setattr(bootstrap, "_INT32_FILMS", 11)
        np.testing.assert_array_equal(narrow, aurocs(labels, scores, clusters=patients, replicates=20).replicates)

    def test_every_film_needs_its_patient(self) -> None:
        with pytest.raises(ValueError, match="patient of each of 10 films"):
            aurocs(*films(10, 1), clusters=[1, 2])


def test_performances_are_those_of_each_alone() -> None:
    labels, scores = films(40, 2)
    every = performances(labels, scores, [0.3, 0.6], replicates=40, seed=5)
    alone = {
        "auroc": aurocs(labels, scores, replicates=40, seed=5),
        "average_precision": average_precisions(labels, scores, replicates=40, seed=5),
        **operations(labels, scores, [0.3, 0.6], replicates=40, seed=5),
    }
    assert every.keys() == alone.keys()
    for name, result in alone.items():
        np.testing.assert_array_equal(every[name].replicates, result.replicates)
