"""Augmentation: picture and truth move together, nothing leaves its range, nothing is left to chance but the draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.regions import HOLSTE_REGIONS, REGION_BY_NAME, Region
from trainer.augment import BORDER_WIDTH, saved_copy, side_swaps, simard_field, vary
from trainer.errors import RecipeError
from trainer.recipe import LiveTable, SavedCopiesTable
from worker.phantom import make_phantom

NAMES = [region.name for region in HOLSTE_REGIONS]
LEFT, RIGHT = (REGION_BY_NAME[side].value for side in (Region.LEFT_LUNG, Region.RIGHT_LUNG))
EVERYTHING = LiveTable(
    rotation=12.0, shift=0.06, scale=0.15, crop=0.1, elastic=5.0, flip=0.5, gamma=0.4, window=0.1,
    blur=1.5, noise=0.05, border=0.5, marker=0.5, invert=0.2,
)  # fmt: skip
STILL = SavedCopiesTable(elastic_alpha=0.0, rotation=0.0)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def film(rows: int = 96, columns: int = 80) -> tuple[np.ndarray, np.ndarray]:
    phantom = make_phantom(3, rows=rows, columns=columns)
    return phantom.image[None], phantom.labels


def looked_up(plane: np.ndarray, from_x: np.ndarray, from_y: np.ndarray) -> np.ndarray:
    """Bilinear interpolation with zeros outside, pixel by pixel."""
    height, width = plane.shape

    def at(row: int, column: int) -> float:
        return float(plane[row, column]) if 0 <= row < height and 0 <= column < width else 0.0

    out = np.zeros(from_x.shape)
    for index in np.ndindex(from_x.shape):
        x, y = float(from_x[index]), float(from_y[index])
        column, row = int(np.floor(x)), int(np.floor(y))
        right, down = x - column, y - row
        above = (1 - right) * at(row, column) + right * at(row, column + 1)
        below = (1 - right) * at(row + 1, column) + right * at(row + 1, column + 1)
        out[index] = (1 - down) * above + down * below
    return out


class TestSavedCopy:
    def test_is_a_displacement_then_a_rotation_in_one_interpolation(self) -> None:
        picture, _ = film(40, 32)
        table = SavedCopiesTable(elastic_sigma=4.0, elastic_alpha=40.0, rotation=15.0)
        copy, _ = saved_copy(picture, None, generator(5), table)
        replay = generator(5)
        field = simard_field((40, 32), 4.0, 40.0, replay)
        angle = np.deg2rad(replay.uniform(-15, 15))
        rows, columns = np.mgrid[:40, :32].astype(float)
        x, y = columns - 15.5, rows - 19.5
        from_x = np.cos(angle) * x + np.sin(angle) * y + 15.5 + field[..., 0]
        from_y = -np.sin(angle) * x + np.cos(angle) * y + 19.5 + field[..., 1]
        assert np.abs(copy[0] - looked_up(picture[0], from_x, from_y)).max() < 1e-4

    def test_displacements_have_the_documented_size_and_smoothness(self) -> None:
        field = simard_field((256, 256), 5.0, 30.0, generator())[20:-20, 20:-20]
        expected = 30.0 / (2 * 5.0 * np.sqrt(3 * np.pi))
        assert field.std() == pytest.approx(expected, rel=0.06)
        slopes = np.diff(field, axis=0)
        # The derivative of white noise smoothed by sigma: the field's deviation / (sqrt 2 sigma).
        assert slopes.std() == pytest.approx(expected / (np.sqrt(2) * 5.0), rel=0.08)
        assert slopes.min() > -1.0

    def test_angles_are_uniform_within_their_limit(self) -> None:
        plane = np.zeros((1, 65, 65), np.float32)
        plane[0, :, 31:34] = 1.0
        angles = []
        rng = generator()
        for _ in range(300):
            turned, _ = saved_copy(plane, None, rng, SavedCopiesTable(elastic_alpha=0.0, rotation=15.0))
            rows, columns = np.nonzero(turned[0, 8:-8] > 0.5)
            angles.append(np.rad2deg(np.arctan(np.polyfit(rows, columns, 1)[0])))
        assert np.abs(angles).max() <= 15.3
        quarters = np.histogram(angles, 4, (-15.3, 15.3))[0]
        assert quarters.min() > 45

    def test_labels_move_with_the_picture(self) -> None:
        _, labels = film(160, 144)
        lung = (labels == LEFT).astype(np.uint8)
        for seed in range(5):
            copy, moved = saved_copy(lung[None].astype(np.float32), lung, generator(seed), SavedCopiesTable())
            both = np.count_nonzero((copy[0] >= 0.5) & (moved == 1))
            assert 2 * both / (np.count_nonzero(copy[0] >= 0.5) + np.count_nonzero(moved)) > 0.985
            assert (np.abs(copy[0] - moved) > 0.75).sum() == 0

    def test_rotation_keeps_areas(self) -> None:
        rows, columns = np.ogrid[:128, :128]
        labels = (((rows - 64) / 40.0) ** 2 + ((columns - 64) / 22.0) ** 2 <= 1).astype(np.uint8)
        for seed in range(8):
            table = SavedCopiesTable(elastic_alpha=0.0, rotation=40.0)
            _, turned = saved_copy(labels[None].astype(np.float32), labels, generator(seed), table)
            assert np.count_nonzero(turned) == pytest.approx(np.count_nonzero(labels), rel=0.01)

    def test_further_transformations_come_after(self) -> None:
        """The five-fold set of Wang et al."""
        picture, labels = film()
        varied = LiveTable(rotation=10.0, shift=0.05, scale=0.1, gamma=0.2)
        copy, moved = saved_copy(picture, labels, generator(4), STILL.model_copy(update={"varied": varied}))
        expected = vary(picture, labels, generator(4), varied)
        np.testing.assert_array_equal(copy, expected[0])
        np.testing.assert_array_equal(moved, expected[1])
        assert not np.array_equal(copy, picture)

    def test_outside_is_black_and_background(self) -> None:
        table = SavedCopiesTable(elastic_alpha=0.0, rotation=15.0)
        seed = next(seed for seed in range(20) if abs(generator(seed).uniform(-15, 15)) > 10)
        ones, spine = np.ones((1, 64, 64), np.float32), np.full((64, 64), 5, np.uint8)
        copy, labels = saved_copy(ones, spine, generator(seed), table)
        corners = np.ix_([0, -1], [0, -1])
        assert not copy[0][corners].any()
        assert not labels[corners].any()
        assert copy[0, 32, 32] == 1.0 and labels[32, 32] == 5

    def test_nothing_asked_for_changes_nothing(self) -> None:
        picture, labels = film()
        copy, same = saved_copy(picture, labels, generator(), STILL)
        assert np.array_equal(copy, picture)
        assert np.array_equal(same, labels)

    def test_depends_on_the_generator_only(self) -> None:
        picture, labels = film()
        first, again, other = (saved_copy(picture, labels, generator(s), SavedCopiesTable()) for s in (1, 1, 2))
        assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
        assert not np.array_equal(first[0], other[0])


class TestVary:
    def test_depends_on_the_generator_only_and_leaves_its_inputs_alone(self) -> None:
        picture, labels = film()
        kept = picture.copy(), labels.copy()
        for seed in range(20):
            swaps = side_swaps(NAMES, EVERYTHING)
            first, again = (vary(picture, labels, generator(seed), EVERYTHING, swaps) for _ in range(2))
            assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
        assert np.array_equal(picture, kept[0]) and np.array_equal(labels, kept[1])

    def test_nothing_asked_for_changes_nothing(self) -> None:
        picture, labels = film()
        varied, same = vary(picture, labels, generator(), LiveTable())
        assert np.array_equal(varied, picture) and np.array_equal(same, labels)

    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        shape=st.tuples(st.integers(1, 3), st.integers(16, 48), st.integers(16, 48)),
        levels=st.fixed_dictionaries(
            {
                "rotation": st.floats(0, 180),
                "shift": st.floats(0, 0.5),
                "scale": st.floats(0, 0.99),
                "crop": st.floats(0, 0.49),
                "elastic": st.floats(0, 30),
                "gamma": st.floats(0, 3),
                "window": st.floats(0, 0.499),
                "blur": st.floats(0, 5),
                "noise": st.floats(0, 2),
                **{name: st.floats(0, 1) for name in ("flip", "border", "marker", "invert")},
            }
        ),
    )
    def test_stays_in_range_whatever_is_asked_for(
        self, seed: int, shape: tuple[int, int, int], levels: dict[str, float]
    ) -> None:
        rng = generator(seed)
        picture = np.clip(rng.normal(0.5, 0.5, shape), 0, 1).astype(np.float32)
        labels = rng.choice(np.asarray([0, LEFT, RIGHT, 5], np.uint8), shape[1:])
        table = LiveTable(**levels)
        varied, moved = vary(picture, labels, rng, table, side_swaps(NAMES, table))
        assert varied.shape == shape and varied.dtype == np.float32
        assert np.isfinite(varied).all() and varied.min() >= 0 and varied.max() <= 1
        assert moved.shape == shape[1:] and moved.dtype == np.uint8
        assert set(np.unique(moved)) <= {0, LEFT, RIGHT, 5}

    def test_labels_move_with_the_picture(self) -> None:
        _, labels = film(160, 144)
        lung = (labels == LEFT).astype(np.uint8)
        table = LiveTable(rotation=20.0, shift=0.1, scale=0.2, crop=0.1, elastic=4.0, flip=0.5)
        for seed in range(8):
            varied, moved = vary(lung[None].astype(np.float32), lung, generator(seed), table)
            assert (np.abs(varied[0] - moved) > 0.75).sum() == 0
            assert np.count_nonzero(moved) > 500

    def test_a_repeated_grey_film_is_varied_as_one(self) -> None:
        picture, labels = film()
        one, moved = vary(picture, labels, generator(4), EVERYTHING)
        three, again = vary(np.repeat(picture, 3, axis=0), labels, generator(4), EVERYTHING)
        assert np.array_equal(three, np.repeat(one, 3, axis=0)) and np.array_equal(moved, again)

    def test_without_labels(self) -> None:
        picture, _ = film()
        varied, labels = vary(picture, None, generator(), EVERYTHING)
        assert labels is None and not np.array_equal(varied, picture)


class TestGeometry:
    def test_mirroring_swaps_left_and_right(self) -> None:
        picture, labels = film()
        table = LiveTable(flip=1.0)
        varied, moved = vary(picture, labels, generator(), table, side_swaps(NAMES, table))
        assert np.array_equal(varied, picture[..., ::-1])
        mirrored = labels[:, ::-1]
        for left, right in (
            (Region.LEFT_LUNG, Region.RIGHT_LUNG),
            (Region.LEFT_SUBDIAPHRAGM, Region.RIGHT_SUBDIAPHRAGM),
        ):
            one, other = REGION_BY_NAME[left].value, REGION_BY_NAME[right].value
            assert np.array_equal(moved == one, mirrored == other)
            assert np.array_equal(moved == other, mirrored == one)
        middle = ~np.isin(mirrored, [1, 2, 3, 4])
        assert np.array_equal(moved[middle], mirrored[middle])
        # The patient's left stays at the picture's right.
        assert np.nonzero(moved == LEFT)[1].mean() > np.nonzero(moved == RIGHT)[1].mean()

    def test_which_values_swap(self) -> None:
        regions = ["background", "right_lung", "spine", "left_lung"]
        assert side_swaps(regions, LiveTable(flip=0.5)) == ((3, 1),)
        assert side_swaps(NAMES, LiveTable(flip=0.5)) == ((1, 2), (3, 4))
        assert side_swaps(NAMES, LiveTable()) == ()

    def test_bits_swap_where_regions_overlap(self) -> None:
        flip = LiveTable(flip=1.0)
        names = ["background", "heart", Region.LEFT_LUNG, Region.RIGHT_LUNG]
        swaps = side_swaps(names, flip, overlapping=True)
        labels = np.array([[0, 2, 4, 8, 2 | 4, 2 | 8, 4 | 8, 14]], np.uint8)
        picture = np.zeros((1, *labels.shape), np.float32)
        _, mirrored = vary(picture, labels, generator(), flip, swaps)
        assert mirrored is not None
        assert mirrored[:, ::-1].tolist() == [[0, 2, 8, 4, 2 | 8, 2 | 4, 4 | 8, 14]]

    def test_one_side_alone_cannot_be_mirrored(self) -> None:
        with pytest.raises(RecipeError, match=r"flip.*left_lung and right_lung"):
            side_swaps(["background", "left_lung"], LiveTable(flip=0.5))
        assert side_swaps(["background", "left_lung"], LiveTable()) == ()

    def test_shift_is_a_fraction_of_each_side(self) -> None:
        picture, _ = film(50, 40)
        varied, _ = vary(picture, None, generator(2), LiveTable(shift=0.2))
        across, down = generator(2).uniform(-0.2, 0.2, 2) * (40, 50)
        rows, columns = np.mgrid[:50, :40].astype(float)
        assert np.abs(varied[0] - looked_up(picture[0], columns + across, rows + down)).max() < 1e-4

    def test_crop_stretches_what_is_left_over_the_grid(self) -> None:
        left, right, top, bottom = generator(3).uniform(0, 0.2, 4)
        edges = (np.arange(100) + 0.5) / 100
        ramp = np.repeat(edges[None].astype(np.float32), 100, axis=0)
        across, _ = vary(ramp[None], None, generator(3), LiveTable(crop=0.2))
        down, _ = vary(np.ascontiguousarray(ramp.T)[None], None, generator(3), LiveTable(crop=0.2))
        inner = slice(2, -2)
        assert np.allclose(across[0, 50, inner], (left + (1 - left - right) * edges)[inner], atol=1e-4)
        assert np.allclose(down[0, inner, 50], (top + (1 - top - bottom) * edges)[inner], atol=1e-4)

    def test_scale_changes_areas_by_its_square(self) -> None:
        rows, columns = np.ogrid[:120, :120]
        disc = ((rows - 60) ** 2 + (columns - 60) ** 2 <= 25**2).astype(np.uint8)
        for seed in range(4):
            factor = 1 + generator(seed).uniform(-0.3, 0.3)
            _, moved = vary(disc[None].astype(np.float32), disc, generator(seed), LiveTable(scale=0.3))
            assert np.count_nonzero(moved) / np.count_nonzero(disc) == pytest.approx(factor**2, rel=0.03)


class TestGreyValues:
    def test_polarity(self) -> None:
        picture, labels = film()
        varied, same = vary(picture, labels, generator(), LiveTable(invert=1.0))
        assert np.allclose(varied, 1 - picture) and np.array_equal(same, labels)

    def test_gamma_is_a_power_in_natural_log_units(self) -> None:
        picture, _ = film()
        varied, _ = vary(picture, None, generator(6), LiveTable(gamma=0.5))
        assert np.allclose(varied, picture ** np.exp(generator(6).uniform(-0.5, 0.5)), atol=1e-5)

    def test_window_moves_black_and_white(self) -> None:
        picture, _ = film()
        varied, _ = vary(picture, None, generator(6), LiveTable(window=0.3))
        black, white = generator(6).uniform(-0.3, 0.3, 2)
        assert np.allclose(varied, np.clip((picture - black) / (1 + white - black), 0, 1), atol=1e-5)

    def test_noise_is_white_and_the_same_in_every_channel(self) -> None:
        picture = np.stack([np.full((64, 64), level, np.float32) for level in (0.4, 0.6)])
        varied, _ = vary(picture, None, generator(8), LiveTable(noise=0.05))
        noise = varied - picture
        assert np.allclose(noise[0], noise[1], atol=1e-6)
        assert noise.std() == pytest.approx(_deviation(8), rel=0.05)

    def test_blur_keeps_the_mean_and_takes_detail(self) -> None:
        picture = generator().random((1, 64, 64), dtype=np.float32)
        varied, _ = vary(picture, None, generator(1), LiveTable(blur=3.0))
        assert varied.mean() == pytest.approx(picture.mean(), abs=0.01)
        assert varied.std() < 0.5 * picture.std()

    def test_border_hides_picture_and_truth_at_the_edges_only(self) -> None:
        picture = np.full((1, 100, 100), 0.5, np.float32)
        labels = np.full((100, 100), 5, np.uint8)
        shades = set()
        for seed in range(40):
            varied, left = vary(picture, labels, generator(seed), LiveTable(border=1.0))
            margin = round(100 * BORDER_WIDTH) + 3
            assert np.array_equal(varied[0, margin:-margin, margin:-margin], picture[0, margin:-margin, margin:-margin])
            changed = np.abs(varied[0] - 0.5) > 1e-3
            assert (left == 0).any() and changed[left == 0].all()
            # A pixel the edge passes through keeps its label while less than half of it is hidden.
            assert np.count_nonzero(changed & (left != 0)) < 100 * 4
            shades |= {round(float(value), 3) for value in varied[0][varied[0] != 0.5]}
        assert {0.0, 1.0} <= shades

    def test_markers_lie_on_the_picture_not_in_the_truth(self) -> None:
        picture, labels = np.full((1, 128, 128), 0.4, np.float32), np.full((128, 128), 5, np.uint8)
        shares = []
        for seed in range(40):
            varied, same = vary(picture, labels, generator(seed), LiveTable(marker=1.0))
            assert np.array_equal(same, labels)
            shares.append(np.mean(varied != picture))
        assert max(shares) < 0.2 and np.median(shares) > 0.002


def _deviation(seed: int) -> float:
    rng = generator(seed)
    rng.standard_normal((64, 64), dtype=np.float32)
    return float(rng.uniform(0, 0.05))
