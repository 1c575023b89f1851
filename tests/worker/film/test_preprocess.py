from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.bundle import BundleError
from worker.film.geometry import to_film_grid
from worker.film.prepared import Geometry
from worker.film.preprocess import STEPS, apply, apply_plan, check

HOLSTE = [{"step": "min_max"}, {"step": "resize", "height": 256, "width": 256}]
CLASSIFIER = [
    {"step": "equalise"},
    {"step": "resize", "height": 512, "width": 512, "mode": "area"},
    {"step": "channels", "count": 3},
]
FILM = np.random.default_rng(0).uniform(0.2, 0.6, (90, 70)).astype(np.float32)


def test_holste() -> None:
    result = apply(HOLSTE, FILM, None)
    assert result.shape == (1, 256, 256) and result.dtype == np.float32 and result.flags.c_contiguous
    assert 0.0 <= result.min() < 0.05 and 0.95 < result.max() <= 1.0


def test_statistics_come_from_the_valid_pixels_only() -> None:
    film, valid = FILM.copy(), np.ones(FILM.shape, bool)
    film[:20], valid[:20] = 1.0, False
    for step in ({"step": "min_max"}, {"step": "percentile", "low": 1, "high": 99}, {"step": "equalise"}):
        inside = apply([step], film, valid)[0][20:]
        alone = apply([step], film[20:], None)[0]
        assert np.allclose(inside, alone, atol=1e-5), step


def test_equalised_pixels_are_evenly_spread() -> None:
    result = apply([{"step": "equalise"}], FILM**3, None)
    assert np.allclose(np.quantile(result, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.01)


def test_clahe_is_opencvs_at_8_bits() -> None:
    result = apply([{"step": "clahe", "clip_limit": 2.0, "tiles": 8}], FILM, None)[0]
    levels = np.rint(FILM * 255).astype(np.uint8)
    assert np.allclose(result, cv2.createCLAHE(2.0, (8, 8)).apply(levels) / 255.0, atol=1e-6)


def test_clahe_at_512_limits_the_noise_of_flat_regions() -> None:
    """What Maga takes it for, section 2.4."""
    flat = np.random.default_rng(1).normal(0.3, 0.004, (600, 500)).astype(np.float32)
    steps = [{"step": "resize", "height": 512, "width": 512}, {"step": "clahe", "clip_limit": 2.0, "tiles": 8}]
    limited, free = apply(steps, flat, None), apply([*steps[:1], {**steps[1], "clip_limit": 64.0}], flat, None)
    assert limited.std() < 4 * flat.std()
    assert free.std() > 20 * flat.std()


def test_longest_side_keeps_the_aspect_and_pads_with_invalid_black() -> None:
    step = {"step": "resize", "height": 64, "width": 64, "fit": "longest_side"}
    result = apply([step, {"step": "min_max"}], np.full((100, 50), 0.5, np.float32) + FILM[:50, :50].repeat(2, 0), None)
    assert (result[0, :, :16] == 0).all() and (result[0, :, 48:] == 0).all()
    assert result[0, :, 16:48].max() == 1.0


def test_standardise_and_channels() -> None:
    result = apply([{"step": "standardise", "mean": 0.5, "std": 0.25}, {"step": "channels", "count": 3}], FILM, None)
    assert result.shape == (3, *FILM.shape)
    assert np.allclose(result, (FILM - 0.5) / 0.25, atol=1e-6)


def test_the_order_of_the_list_is_the_order_of_the_work() -> None:
    resize = {"step": "resize", "height": 8, "width": 8}
    assert not np.allclose(
        apply([{"step": "min_max"}, resize], FILM, None), apply([resize, {"step": "min_max"}], FILM, None)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([{"step": "min_max"}, {"step": "equalise"}, {"step": "percentile", "low": 1, "high": 99},
                              {"step": "clahe", "clip_limit": 2, "tiles": 4}]), max_size=4),
    st.integers(1, 60), st.integers(1, 60), st.floats(0, 1, width=32), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_film_stays_between_0_and_1_and_finite(steps, rows, columns, share, seed) -> None:
    rng = np.random.default_rng(seed)
    film = rng.uniform(0, 1, (rows, columns)).astype(np.float32)
    valid = rng.uniform(0, 1, film.shape) < share
    result = apply([*steps, {"step": "resize", "height": 32, "width": 16}], film, valid)
    assert result.shape == (1, 32, 16) and np.isfinite(result).all()
    assert result.min() >= 0.0 and result.max() <= 1.0 + 1e-6


def test_a_constant_film_becomes_black_not_nan() -> None:
    for step in ({"step": "min_max"}, {"step": "percentile", "low": 1, "high": 99}, {"step": "equalise"}):
        assert (apply([step], np.full((9, 9), 0.4, np.float32), None) == 0).all()


def test_the_film_itself_is_not_changed() -> None:
    before = FILM.copy()
    apply([*CLASSIFIER, {"step": "min_max"}], FILM, None)
    assert np.array_equal(FILM, before)


def test_good_lists_pass() -> None:
    check(HOLSTE, 1, 256, 256)
    check(CLASSIFIER, 3, 512, 512)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"step": "min-max"}], "did you mean 'min_max'"),
        ([{"step": "standardize", "mean": 0, "std": 1}], "did you mean 'standardise'"),
        ([{"name": "min_max"}], "not known"),
        (["min_max"], "lacks|not known|must"),
        ([{"step": "resize", "height": 8, "width": 8, "mode": ["area"]}], "cannot be"),
        ([{"step": "resize", "hight": 256, "width": 256}], "did you mean 'height'"),
        ([{"step": "resize", "height": 256}], "lacks width"),
        ([{"step": "resize", "height": 0, "width": 256}], "cannot be 0"),
        ([{"step": "resize", "height": 256, "width": 256, "mode": "cubic"}], "cannot be 'cubic'"),
        ([{"step": "percentile", "low": 60, "high": 99}], "cannot be 60"),
        ([{"step": "standardise", "mean": 0, "std": 0}], "cannot be 0"),
        ([{"step": "channels", "count": True}], "cannot be True"),
        ([{"step": "min_max", "low": 1}], "no key 'low'"),
        ([{"step": "min_max"}], "ends at the film's own size"),
        ([*HOLSTE, {"step": "channels", "count": 3}], "ends at 3 x 256 x 256"),
        ([{"step": "resize", "height": 128, "width": 256}], "the network takes 1 x 256 x 256"),
        ([{"step": "resize", "height": 256, "width": 256, "fit": "longest_side"}], "use fit = 'stretch'"),
    ],
)
def test_bad_lists_are_refused_with_the_nearest_name(steps: list[dict], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        check(steps, 1, 256, 256)


def test_every_step_is_tested_here() -> None:
    assert set(STEPS) == {"min_max", "percentile", "equalise", "clahe", "resize", "standardise", "channels"}


def test_a_grid_with_borders_would_not_be_laid_back_right() -> None:
    """Why a member may not fit films by their longest side."""
    film = np.zeros((300, 110), np.float32)
    film[60:290, 70:104] = 1.0
    dice = {}
    for fit in ("stretch", "longest_side"):
        grid = apply([{"step": "resize", "height": 64, "width": 64, "fit": fit}], film, None)[0] > 0.5
        back = to_film_grid(grid.astype(np.uint8), Geometry(*film.shape)) > 0
        dice[fit] = 2 * (back & (film > 0)).sum() / (back.sum() + (film > 0).sum())
    assert dice["stretch"] > 0.95
    assert dice["longest_side"] < 0.5


def test_members_of_one_plan_see_what_each_would_alone() -> None:
    film = np.random.default_rng(0).random((90, 70), np.float32)
    valid = np.ones(film.shape, bool)
    valid[:, :9] = False
    equalised = [{"step": "equalise"}, {"step": "resize", "height": 32, "width": 32}]
    plan = {
        "regions": HOLSTE,
        "one": [*equalised, {"step": "channels", "count": 3}],
        "other": [*equalised, {"step": "channels", "count": 3}],
        "scaled": [*equalised, {"step": "standardise", "mean": 0.5, "std": 0.2}],
    }
    before = film.copy()
    together = apply_plan(plan, film, valid)
    for member, steps in plan.items():
        np.testing.assert_array_equal(together[member], apply(steps, film, valid))
    assert together["one"] is together["other"]
    np.testing.assert_array_equal(film, before)
