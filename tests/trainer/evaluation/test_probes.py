"""Linear probes against scikit-learn, and pairs that look alike."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from trainer.evaluation.probes import (
    CALIPER,
    TRAITS,
    fit_probe,
    matched_films,
    standardised_differences,
    thumbnail,
    traits_of,
)


def trait(picture: np.ndarray, name: str, size: tuple[float, float] | None = None) -> float:
    return float(traits_of(picture, size)[TRAITS.index(name)])


class TestTraits:
    def test_size(self) -> None:
        picture = np.full((40, 80), 0.5, np.float32)
        assert [trait(picture, name) for name in TRAITS[:3]] == [40, 80, 2]
        assert [trait(picture, name, (1000, 500)) for name in TRAITS[:3]] == [1000, 500, 0.5]

    @pytest.mark.parametrize("side", ["left", "right", "upper", "lower"])
    def test_a_border_is_seen_on_its_side_only(self, side: str) -> None:
        picture = np.random.default_rng(1).uniform(0.2, 0.8, (100, 100)).astype(np.float32)
        lines = {"left": picture.T, "right": picture.T[::-1], "upper": picture, "lower": picture[::-1]}[side]
        lines[:7] = 0
        found = {name: trait(picture, f"{name} border") for name in ("left", "right", "upper", "lower")}
        assert found == {name: 0.07 if name == side else 0.0 for name in found}
        # The edge is looked at inside of the border.
        assert trait(picture, f"{side} edge, brightness") > 0.4

    def test_a_letter_is_a_mark_in_its_corner(self) -> None:
        picture = np.full((100, 100), 0.4, np.float32)
        picture[5:15, 85:95] = 1.0
        assert trait(picture, "upper right mark") == pytest.approx(0.25)
        assert trait(picture, "upper left mark") == trait(picture, "lower right mark") == 0

    def test_thumbnail_is_area_means(self) -> None:
        picture = np.random.default_rng(2).random((56, 84)).astype(np.float32)
        expected = picture.reshape(28, 2, 28, 3).mean(axis=(1, 3)).ravel()
        np.testing.assert_allclose(thumbnail(picture), expected, atol=1e-6)


class TestProbe:
    def test_is_scikit_learns(self) -> None:
        rng = np.random.default_rng(4)
        inputs = rng.normal(size=(120, 6)) * [1, 5, 100, 0.1, 1, 0] + 3
        labels = (inputs[:, 0] + rng.normal(size=120) > 3).astype(float)
        for ridge in (1.0, 50.0):
            ours = fit_probe(inputs, labels, ridge).logits(inputs)
            scaler = StandardScaler().fit(inputs)
            theirs = LogisticRegression(C=1 / ridge, tol=1e-8, max_iter=1000).fit(scaler.transform(inputs), labels)
            np.testing.assert_allclose(ours, theirs.decision_function(scaler.transform(inputs)), atol=1e-3)

    def test_needs_both_classes(self) -> None:
        with pytest.raises(ValueError, match="with and without"):
            fit_probe(np.ones((3, 1)), np.ones(3), 1.0)


class TestMatching:
    def test_nearest_first_and_nobody_twice(self) -> None:
        logits = np.array([0.0, 0.1, 5.0, 0.09, -5.0, 0.02])
        labels = np.array([1.0, 1.0, 1.0, 0.0, 0.0, np.nan])
        assert matched_films(logits, labels).tolist() == [1, 3]

    @given(st.lists(st.tuples(st.floats(-3, 3), st.booleans()), min_size=1, max_size=40))
    def test_pairs_are_within_the_caliper(self, films: list[tuple[float, bool]]) -> None:
        logits, labels = (np.array(column, float) for column in zip(*films, strict=True))
        places = matched_films(logits, labels)
        assert (labels[places] == 1).sum() == (labels[places] == 0).sum()
        assert len(set(places.tolist())) == len(places)
        # Sorted against each other the pairs can only come closer.
        apart = np.sort(logits[places][labels[places] == 1]) - np.sort(logits[places][labels[places] == 0])
        assert np.abs(apart).max(initial=0) <= CALIPER * logits.std() + 1e-9

    def test_differences_are_in_standard_deviations(self) -> None:
        inputs = np.array([[0.0, 7.0], [2.0, 7.0], [3.0, 7.0], [5.0, 7.0]])
        labels = np.array([0.0, 0.0, 1.0, 1.0])
        np.testing.assert_allclose(standardised_differences(inputs, labels), [3.0, 0.0])
        assert np.isnan(standardised_differences(inputs, np.ones(4))).all()
