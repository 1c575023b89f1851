"""Counting the training films' labels."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.losses.statistics import LabelStatistics


class TestCount:
    def test_counts_positives_and_what_is_known(self) -> None:
        unknown = np.nan
        targets = np.array([[1, 0, unknown], [1, 1, 0], [unknown, 0, 0], [0, 0, unknown]], np.float32)
        statistics = LabelStatistics.count(["a", "b", "c"], targets)
        assert statistics == LabelStatistics(("a", "b", "c"), (2, 1, 0), 4, (3, 4, 2))
        assert statistics.negatives == (1, 3, 2)

    def test_all_films_are_known_unless_said_otherwise(self) -> None:
        assert LabelStatistics(("a", "b"), (2, 1), 5).negatives == (3, 4)


class TestRefusals:
    @pytest.mark.parametrize("positives", [(1,), (1, 2, 3), ()])
    def test_counts_must_be_one_per_finding(self, positives: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="2 findings need as many counts"):
            LabelStatistics(("a", "b"), positives, 5)

    @pytest.mark.parametrize(("positives", "known"), [((6, 1), ()), ((-1, 1), ()), ((3, 1), (2, 5)), ((1, 1), (5, 6))])
    def test_counts_must_be_possible(self, positives: tuple[int, ...], known: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="cannot be"):
            LabelStatistics(("a", "b"), positives, 5, known)
