"""Where a map's positive mass lies."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation.cam_mass import mass_inside


def lungs() -> np.ndarray:
    mask = np.zeros((64, 64), np.bool_)
    mask[10:50, 5:27] = mask[10:50, 38:60] = True
    return mask


def test_the_same_everywhere_is_the_lungs_share_of_the_picture() -> None:
    for side in (8, 7, 64):
        share, uniform = mass_inside(np.full((side, side), 0.3, np.float32), lungs())
        assert share == pytest.approx(uniform)
        assert uniform == pytest.approx(lungs().mean(), abs=1e-6)


def test_only_what_speaks_for_the_finding_counts() -> None:
    cam = np.full((64, 64), -5.0)
    cam[20, 10], cam[0, 0] = 3.0, 1.0
    assert mass_inside(cam, lungs())[0] == pytest.approx(0.75)


def test_a_cell_half_in_the_lungs_counts_half() -> None:
    mask = np.zeros((4, 4), np.bool_)
    mask[:, 0] = True
    assert mass_inside(np.array([[1.0, 0.0], [0.0, 0.0]]), mask) == pytest.approx((0.5, 0.25))


def test_a_map_without_positive_part_says_nothing() -> None:
    share, uniform = mass_inside(np.full((8, 8), -1.0), lungs())
    assert np.isnan(share)
    assert uniform > 0
