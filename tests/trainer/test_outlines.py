"""Filling and smoothing drawn lines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon

from trainer.outlines import carina_disc, far_outside, fill_polygon, smooth_line

POINTS = st.lists(st.tuples(st.floats(-10, 50), st.floats(-10, 40)), min_size=3, max_size=12).map(np.asarray)


def winding(points: np.ndarray, x: float, y: float) -> float:
    """How often the polygon winds around (x, y): the sum of the angles its edges are seen under."""
    seen = points - [x, y]
    after = np.roll(seen, -1, axis=0)
    cross = seen[:, 0] * after[:, 1] - seen[:, 1] * after[:, 0]
    return float(np.arctan2(cross, (seen * after).sum(axis=1)).sum() / (2 * np.pi))


def distance_to_edges(points: np.ndarray, x: float, y: float) -> float:
    after = np.roll(points, -1, axis=0)
    along = after - points
    length = np.maximum((along**2).sum(axis=1), 1e-12)
    share = np.clip((([x, y] - points) * along).sum(axis=1) / length, 0, 1)
    return float(np.hypot(*(points + share[:, None] * along - [x, y]).T).min())


class TestFill:
    @settings(max_examples=60, deadline=None)
    @given(points=POINTS)
    def test_a_pixel_is_in_when_the_outline_winds_around_its_centre(self, points: np.ndarray) -> None:
        filled = fill_polygon((30, 40), points)
        rng = np.random.default_rng(0)
        for row, column in zip(rng.integers(30, size=40), rng.integers(40, size=40), strict=True):
            x, y = column + 0.5, row + 0.5
            if distance_to_edges(points, x, y) > 1e-6:
                assert filled[row, column] == (abs(winding(points, x, y)) > 0.5)

    def test_agrees_with_matplotlib_on_a_simple_polygon(self) -> None:
        angle = np.sort(np.random.default_rng(1).uniform(0, 2 * np.pi, 30))
        points = np.stack([50.3 + 30 * np.cos(angle), 41.7 + 25 * np.sin(angle)], axis=1)
        rows, columns = np.mgrid[:80, :100]
        centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)
        assert np.array_equal(fill_polygon((80, 100), points).ravel(), Polygon(points).contains_points(centres))

    def test_whole_pixels_are_covered_exactly(self) -> None:
        filled = fill_polygon((10, 12), np.asarray([[3, 2], [7, 2], [7, 9], [3, 9]], float))
        expected = np.zeros((10, 12), bool)
        expected[2:9, 3:7] = True
        assert np.array_equal(filled, expected)

    @settings(max_examples=40, deadline=None)
    @given(x=st.floats(1, 39), y=st.floats(1, 29), angle=st.floats(0, np.pi))
    def test_halves_share_no_pixel_and_leave_none(self, x: float, y: float, angle: float) -> None:
        """Cut a picture along any line: each pixel is in exactly one half."""
        along, across = np.asarray([np.cos(angle), np.sin(angle)]), np.asarray([-np.sin(angle), np.cos(angle)])
        near = np.asarray([x, y]) - 200 * along, np.asarray([x, y]) + 200 * along
        halves = [np.asarray([*near, near[1] + side * across, near[0] + side * across]) for side in (-200, 200)]
        one, other = (fill_polygon((30, 40), half) for half in halves)
        assert np.array_equal(one, ~other)


class TestSmoothing:
    def test_a_circle_keeps_its_size_and_loses_its_jitter(self) -> None:
        rng = np.random.default_rng(2)
        angle = np.linspace(0, 2 * np.pi, 240, endpoint=False)
        radius = 60 + rng.normal(0, 1.0, 240)
        drawn = np.stack([128 + radius * np.cos(angle), 128 + radius * np.sin(angle)], axis=1)
        smooth = smooth_line(drawn, 6.0, closed=True)
        distance = np.hypot(*(smooth - 128).T)
        assert distance.mean() == pytest.approx(60, abs=0.5)
        assert distance.std() < 0.5

    def test_an_open_line_keeps_its_ends(self) -> None:
        line = np.asarray([[10, 10], [60, 40], [110, 12]], float)
        smooth = smooth_line(line, 5.0, closed=False)
        assert np.allclose(smooth[[0, -1]], line[[0, -1]])
        assert 30 < smooth[:, 1].max() < 39.5

    def test_a_straight_line_stays_straight_and_evenly_divided(self) -> None:
        smooth = smooth_line(np.asarray([[0, 0], [5, 5], [60, 60]], float), 4.0, closed=False)
        assert np.allclose(smooth[:, 0], smooth[:, 1])
        assert np.ptp(np.diff(smooth[:, 0])) < 1e-9

    def test_no_smoothing_only_resamples(self) -> None:
        square = np.asarray([[0, 0], [30, 0], [30, 30], [0, 30]], float)
        same = smooth_line(square, 0.0, closed=True)
        assert len(same) == 360
        assert max(distance_to_edges(square, *point) for point in same) < 1e-9


def test_the_carina_is_a_disc_of_29_pixels_on_the_papers_grid_and_scales() -> None:
    assert np.count_nonzero(carina_disc((256, 256), (100.2, 80.9), 3.0)) == 29
    rows, columns = np.nonzero(carina_disc((1024, 512), (200.0, 300.0), 3.0))
    assert (np.ptp(rows), np.ptp(columns)) == (24, 12)
    assert np.argwhere(carina_disc((16, 16), (5.7, 4.2), 3.0)).tolist() == [[4, 5]]


def test_far_outside() -> None:
    assert not far_outside(np.asarray([[-3.0, 5.0], [103.0, 60.0]]), (60, 100))
    for bad in ([[-101.0, 0.0]], [[0.0, 121.0]], [[np.nan, 1.0]], [[np.inf, 1.0]]):
        assert far_outside(np.asarray(bad), (60, 100))
