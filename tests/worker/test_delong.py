"""DeLong's areas against the paper's own films, plain loops, and many simulated patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from worker.delong import areas

# DeLong, DeLong and Clarke-Pearson (1988): 49 patients with ovarian cancer, 43 of them complete. Albumin, total
# protein, K-G score, and whether surgery did them good, as printed with the LOGISTIC procedure (SAS/STAT, comparing
# receiver operating characteristic curves).
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def test_the_published_example() -> None:
    table = np.array(OVARIAN.split(), float).reshape(-1, 4)
    found = areas(table[:, 3], np.stack([table[:, 0], table[:, 1], 10 - table[:, 2]], axis=1))
    printed = [(0.7366, 0.0927, 0.5549, 0.9182), (0.6478, 0.1000, 0.4518, 0.8439), (0.7258, 0.1028, 0.5243, 0.9273)]
    for score, row in enumerate(printed):
        interval = found.interval(score)
        numbers = (interval.value, found.standard_error(score), interval.low, interval.high)
        assert numbers == pytest.approx(row, abs=5.1e-5)
    albumin, protein = found.difference(0, 2), found.difference(1, 2)
    assert (albumin.value, albumin.low, albumin.high, albumin.p_value) == pytest.approx(
        (0.0108, -0.1761, 0.1976, 0.9102), abs=5.1e-5
    )
    assert (protein.value, protein.low, protein.high, protein.p_value) == pytest.approx(
        (-0.0780, -0.2830, 0.1271, 0.4561), abs=5.1e-5
    )


def test_patients_of_one_film_are_films() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.random(40) < 0.4, np.round(rng.random((40, 2)), 1)
    plain, named = areas(labels, scores), areas(labels, scores, [f"p{number}" for number in rng.permutation(40)])
    np.testing.assert_allclose(named.values, plain.values)
    np.testing.assert_allclose(named.covariance, plain.covariance)


def test_a_film_shown_twice_makes_nothing_surer() -> None:
    rng = np.random.default_rng(4)
    labels = rng.random(60) < 0.5
    scores = rng.normal(0, 1, 60) + labels
    twice = areas(np.tile(labels, 2), np.tile(scores, 2), np.tile(np.arange(60), 2))
    assert twice.standard_error() == pytest.approx(areas(labels, scores).standard_error())
    assert areas(np.tile(labels, 2), np.tile(scores, 2)).standard_error() < 0.8 * twice.standard_error()


def test_too_few_for_a_spread_and_for_an_area() -> None:
    lonely = areas([1, 0, 0], [0.9, 0.1, 0.2])
    assert lonely.values[0] == 1.0 and math.isnan(lonely.interval().low) and math.isnan(lonely.standard_error())
    assert math.isnan(areas([1, 1, 0], [3, 2, 1], ["a", "a", "b"]).standard_error())
    assert math.isnan(areas([0, 0], [0.1, 0.2]).values[0])
    assert math.isnan(areas([1, 0, 0], [[1, 2], [0, 1], [0, 1]]).difference(0, 1).p_value)


def test_one_score_twice_differs_by_nothing() -> None:
    rng = np.random.default_rng(5)
    scores = rng.random(30)
    same = areas(rng.random(30) < 0.5, np.stack([scores, scores], axis=1)).difference(0, 1)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("labels", "scores", "words"), [([1, 0], [1.0], "do not pair"), ([1, 0], [math.nan, 1.0], "not finite")]
)
def test_refuses_what_it_cannot_use(labels: list, scores: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        areas(labels, scores)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 8)), min_size=4, max_size=30))
def test_areas_are_scikit_learns_and_spreads_are_no_less_than_nothing(rows: list) -> None:
    labels, scores, patients = (np.array(column) for column in zip(*rows, strict=True))
    found = areas(labels, scores, patients)
    if len(set(labels)) < 2:
        assert math.isnan(found.values[0])
        return
    assert found.values[0] == pytest.approx(roc_auc_score(labels, scores))
    turned = areas(labels, -scores.astype(float), patients)
    assert turned.values[0] == pytest.approx(1 - found.values[0])
    assert math.isnan(found.standard_error()) or turned.standard_error() == pytest.approx(found.standard_error())
