from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.export.parity_films import half_with_winners


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1e-3))
def test_half_precision_keeps_every_winner(seed: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    level = random.random((1, 6, 5))
    probabilities = (level + spread * random.random((4, 6, 5))).astype(np.float32)
    half = half_with_winners(probabilities)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half.argmax(axis=0), probabilities.argmax(axis=0))
    assert np.abs(half.astype(np.float64) - probabilities).max() < 2e-3


def test_what_needs_no_help_is_plainly_rounded() -> None:
    probabilities = np.array([[[0.1234567, 0.9]], [[0.8765433, 0.1]]], np.float32)
    np.testing.assert_array_equal(half_with_winners(probabilities), probabilities.astype(np.float16))


def test_a_tie_that_rounding_makes_is_undone() -> None:
    probabilities = np.array([[[0.5]], [[0.50001]]], np.float32)
    assert probabilities.astype(np.float16).argmax() == 0
    assert half_with_winners(probabilities).argmax() == 1
