"""Holste's weight maps against plain loops, and against what Figure 1's caption says of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainer import pixel_weights as maps
from trainer.errors import DataError, RecipeError
from worker.phantom import make_phantom

CARINA = 7
LABELS = hnp.arrays(
    np.uint8, st.tuples(st.integers(8, 24), st.integers(8, 24)), elements=st.integers(0, 3), fill=st.just(0)
)
METHODS = st.sampled_from(maps.METHODS)


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    phantoms = (make_phantom(seed, rows=256, columns=256).labels for seed in range(16))
    return [labels for labels in phantoms if (labels == CARINA).any()]


@pytest.fixture(scope="module")
def frequencies(films: list[np.ndarray]) -> np.ndarray:
    return maps.class_frequencies(films, 8)


def blurred_by_loops(values: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of a picture mirrored at its border, by its definition."""
    reach = math.ceil(5 * sigma)
    offsets = range(-reach, reach + 1)
    bell = np.array([math.exp(-(d * d) / (2 * sigma * sigma)) for d in offsets])
    bell /= bell.sum()
    height, width = values.shape

    def mirrored(index: int, size: int) -> int:
        index %= 2 * size
        return index if index < size else 2 * size - 1 - index

    result = np.zeros(values.shape)
    for y in range(height):
        for x in range(width):
            for i, dy in enumerate(offsets):
                for j, dx in enumerate(offsets):
                    result[y, x] += bell[i] * bell[j] * values[mirrored(y + dy, height), mirrored(x + dx, width)]
    return result


def edges_by_loops(labels: np.ndarray, reach: int) -> np.ndarray:
    height, width = labels.shape
    edge = []
    for y in range(height):
        for x in range(width):
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(a, b) for a, b in beside if 0 <= a < height and 0 <= b < width]
            if any(labels[place] != labels[y, x] for place in inside):
                edge.append((y, x))
    near = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            near[y, x] = any((y - a) ** 2 + (x - b) ** 2 <= reach**2 for a, b in edge)
    return near


class TestFrequencies:
    def test_is_each_classes_share_of_all_pixels(self) -> None:
        first = np.array([[0, 0], [0, 2]], np.uint8)
        second = np.array([[0, 1]], np.uint8)
        assert maps.class_frequencies([first, second], 4).tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6, 0])

    def test_a_value_that_is_no_class_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"Label map 1 .* value 9.* 8 regions"):
            maps.class_frequencies([np.zeros((4, 4), np.uint8), np.full((4, 4), 9, np.uint8)], 8)

    def test_no_maps_are_refused(self) -> None:
        with pytest.raises(DataError, match="no label maps"):
            maps.class_frequencies([], 8)


class TestByDefinition:
    @pytest.fixture
    def labels(self) -> np.ndarray:
        labels = np.zeros((40, 36), np.uint8)
        labels[12:, 4:20] = 1
        labels[20:23, 25:28] = 2
        return labels

    def test_all_three_maps(self, labels: np.ndarray) -> None:
        frequencies = np.array([0.6, 0.39, 0.01])
        side = math.sqrt(40 * 36)
        blurred = blurred_by_loops((1 / (3 * frequencies))[labels], 0.03 * side)
        edges = edges_by_loops(labels, max(1, round(0.012 * side)))
        assert 0.1 < edges.mean() < 0.5
        floor = 1 / (3 * 0.6)
        expected = {"w1": np.where(edges, blurred, floor), "w2": blurred, "w3": np.where(edges, 3 * blurred, blurred)}
        for method, weights in expected.items():
            found = maps.pixel_weights(labels, frequencies, method)  # type: ignore[arg-type]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, weights, rtol=5e-3, atol=1e-5)

    def test_edges_of_a_film_are_those_within_three_pixels(self) -> None:
        labels = np.zeros((256, 256), np.uint8)
        labels[:, 100:] = 1
        columns = np.flatnonzero(maps.enlarged_edges(labels)[128])
        assert columns.tolist() == list(range(96, 104))

    def test_a_round_spot_is_enlarged_on_all_sides(self) -> None:
        labels = np.zeros((256, 256), np.uint8)
        rows, columns = np.mgrid[:256, :256]
        labels[(rows - 90) ** 2 + (columns - 60) ** 2 <= 30] = 7
        labels[200:, 130:] = 3
        crop = np.s_[75:106, 45:76]
        np.testing.assert_array_equal(maps.enlarged_edges(labels)[crop], edges_by_loops(labels[crop], reach=3))

    def test_a_class_nobody_has_is_as_heavy_as_the_rarest(self) -> None:
        frequencies = np.array([0.8, 0.2, 0.0])
        alone = maps.pixel_weights(np.full((64, 64), 2, np.uint8), frequencies, "w2")
        np.testing.assert_allclose(alone, 1 / (2 * 0.2), rtol=1e-5)

    def test_an_unknown_method_is_refused(self) -> None:
        with pytest.raises(RecipeError, match=r"'w4'.*w1, w2 or w3"):
            maps.pixel_weights(np.zeros((8, 8), np.uint8), np.ones(1), "w4")  # type: ignore[arg-type]


class TestAlways:
    @settings(max_examples=60, deadline=None)
    @given(LABELS, METHODS)
    def test_every_weight_is_at_least_the_commonest_classes(self, labels: np.ndarray, method: maps.Method) -> None:
        frequencies = np.array([0.7, 0.2, 0.099, 0.001])
        weights = maps.pixel_weights(labels, frequencies, method)
        assert weights.shape == labels.shape
        assert weights.min() >= np.float32(1 / (4 * 0.7))
        assert np.isfinite(weights).all()

    @settings(max_examples=60, deadline=None)
    @given(LABELS)
    def test_w3_is_three_times_w2_on_edges_and_w2_elsewhere(self, labels: np.ndarray) -> None:
        frequencies = np.array([0.4, 0.3, 0.2, 0.1])
        w1, w2, w3 = (maps.pixel_weights(labels, frequencies, method) for method in maps.METHODS)
        edges = maps.enlarged_edges(labels)
        np.testing.assert_allclose(w3 / w2, np.where(edges, 3, 1), rtol=1e-6)
        assert (w1[edges] == w2[edges]).all()
        assert (w1[~edges] == w1.min()).all() or edges.all()

    @settings(max_examples=60, deadline=None)
    @given(st.lists(LABELS, min_size=1, max_size=4))
    def test_w2_has_the_mean_1_over_the_training_set(self, films: list[np.ndarray]) -> None:
        frequencies = maps.class_frequencies(films, 4)
        total = sum(float(maps.pixel_weights(labels, frequencies, "w2").sum(dtype=np.float64)) for labels in films)
        assert total / sum(labels.size for labels in films) == pytest.approx(1, rel=1e-4)

    @settings(max_examples=40, deadline=None)
    @given(LABELS, METHODS)
    def test_a_mirrored_film_has_the_mirrored_map(self, labels: np.ndarray, method: maps.Method) -> None:
        frequencies = np.array([0.4, 0.3, 0.2, 0.1])
        mirrored = maps.pixel_weights(np.ascontiguousarray(labels[:, ::-1]), frequencies, method)
        np.testing.assert_allclose(mirrored[:, ::-1], maps.pixel_weights(labels, frequencies, method), rtol=1e-4)


class TestFigureOne:
    @pytest.mark.parametrize(("method", "times"), [("w1", (5.5, 7)), ("w2", (5.5, 7)), ("w3", (7.5, 9))])
    def test_the_carina_is_as_heavy_as_the_caption_says(
        self, films: list[np.ndarray], frequencies: np.ndarray, method: maps.Method, times: tuple[float, float]
    ) -> None:
        peaks = [
            np.log(maps.pixel_weights(labels, frequencies, method)[labels == CARINA]).max() / maps.PICTURE_CLIP
            for labels in films
        ]
        assert times[0] < np.median(peaks) < times[1]
        assert np.median(peaks) * maps.PICTURE_CLIP > 3

    @pytest.mark.parametrize("method", maps.METHODS)
    def test_the_carina_outweighs_the_background(
        self, films: list[np.ndarray], frequencies: np.ndarray, method: maps.Method
    ) -> None:
        for labels in films:
            weights = maps.pixel_weights(labels, frequencies, method)
            assert weights[labels == CARINA].min() > 10 * np.median(weights[labels == 0])

    def test_a_picture_is_the_clipped_logarithm(self) -> None:
        weights = np.array([[1 / 8, 1.0, math.exp(0.5), 1000.0]], np.float32)
        span = 0.5 + math.log(8)
        assert maps.weight_picture(weights).tolist() == [[0, round(255 * math.log(8) / span), 255, 255]]

    def test_the_maps_lie_side_by_side(self, films: list[np.ndarray], frequencies: np.ndarray) -> None:
        picture = maps.figure_one(films[0], frequencies)
        assert picture.shape == (256, 3 * 256 + 2 * 4)
        assert picture.dtype == np.uint8
        for place, method in enumerate(maps.METHODS):
            panel = picture[:, place * 260 : place * 260 + 256]
            shown = maps.weight_picture(maps.pixel_weights(films[0], frequencies, method))
            assert (panel == shown).all()
        assert (picture[:, 256:260] == 255).all()
