"""Which epochs and which film the picture of a training's progression shows."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lightning")

from trainer.training.progression import SHOWN, first_chest, some_epochs


@pytest.mark.parametrize(("epochs", "shown"), [(1, [1]), (3, [1, 2, 3]), (64, [1, 2, 4, 8, 16, 32, 64])])
def test_epochs_lie_ever_further_apart(epochs, shown):
    assert some_epochs(epochs) == shown


@pytest.mark.parametrize("epochs", [2, 7, 20, 50, 1000])
def test_the_first_and_the_last_epoch_are_shown(epochs):
    shown = some_epochs(epochs)
    assert (shown[0], shown[-1]) == (1, epochs)
    assert len(shown) <= SHOWN


def test_a_film_without_a_chest_is_passed_over():
    blank, chest = np.zeros((2, 2), np.uint8), np.eye(2, dtype=np.uint8)
    assert first_chest([blank, chest, chest]) == 1
    assert first_chest([blank, blank]) == 0
