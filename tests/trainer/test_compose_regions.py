"""Eight regions from drawn boundaries, against the exact truth of phantoms and against nonsense."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from drawn_chests import VALUE, simple, traced
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.regions import HOLSTE_REGIONS, Region
from trainer.augment import saved_copy
from trainer.compose_regions import ComposeSettings, compose_regions
from trainer.errors import DataError
from trainer.outlines import DrawnOutlines, fill_polygon
from trainer.recipe import SavedCopiesTable
from worker.film.prepared import FilmFacts, Geometry
from worker.findings.flags import FlagContext, evaluate
from worker.findings.measurements import measure
from worker.findings.postprocess import PostprocessSettings, postprocess
from worker.metrics import region_overlaps
from worker.phantom import make_phantom

FLOORS = {
    Region.BACKGROUND: 0.98,
    Region.LEFT_LUNG: 0.99,
    Region.RIGHT_LUNG: 0.99,
    Region.LEFT_SUBDIAPHRAGM: 0.97,
    Region.RIGHT_SUBDIAPHRAGM: 0.97,
    Region.SPINE: 0.98,
    Region.MEDIASTINUM: 0.96,
    Region.CARINA: 0.6,  # the truth's radius varies from 2.5 to 3.9 pixels
}
GRID = (256, 256)


def pieces(labels: np.ndarray, region: Region) -> int:
    return cv2.connectedComponents((labels == VALUE[region]).astype(np.uint8))[0] - 1


def flags_of(labels: np.ndarray) -> list[str]:
    """What the worker says about a network that answers with exactly these labels."""
    probabilities = (labels[None] == np.arange(8)[:, None, None]).astype(np.float32)
    segmentation = postprocess(probabilities, HOLSTE_REGIONS, PostprocessSettings())
    measured = measure(segmentation, probabilities, HOLSTE_REGIONS, Geometry(*labels.shape))
    facts = FilmFacts("", "", "MONOCHROME2", "DX", "CHEST", "AP", 12, None, "window")
    flags = evaluate(FlagContext(segmentation, measured, probabilities, HOLSTE_REGIONS, facts))
    return sorted({f"{flag.rule} {flag.region or ''}".strip() for flag in flags})


class TestAgainstPhantoms:
    @pytest.mark.parametrize("seed", range(12))
    def test_boundaries_of_a_phantom_give_its_truth_back(self, seed: int) -> None:
        truth = make_phantom(seed, rows=256, columns=256).labels
        composed = compose_regions(GRID, traced(truth))
        overlaps = region_overlaps(truth, composed, HOLSTE_REGIONS)
        low = {region: overlaps[region].dice for region, floor in FLOORS.items() if overlaps[region].dice < floor}
        assert low == {}

    @pytest.mark.parametrize("seed", range(4))
    def test_a_patient_lying_askew_is_divided_alike(self, seed: int) -> None:
        phantom = make_phantom(seed, rows=256, columns=256)
        turn = SavedCopiesTable(elastic_alpha=0.0, rotation=15.0)
        _, truth = saved_copy(phantom.image[None], phantom.labels, np.random.default_rng(seed), turn)
        overlaps = region_overlaps(truth, compose_regions(GRID, traced(truth)), HOLSTE_REGIONS)
        assert min(overlaps[region].dice / floor for region, floor in FLOORS.items()) > 0.99

    @pytest.mark.parametrize("seed", range(4))
    def test_a_hasty_hand_changes_little(self, seed: int) -> None:
        """A corner every few pixels, each off by a pixel or two."""
        truth = make_phantom(seed, rows=256, columns=256).labels
        exact = traced(truth)
        rng = np.random.default_rng(seed)

        def hasty(points: np.ndarray, closed: bool = True) -> np.ndarray:
            corners = cv2.approxPolyDP(points.astype(np.float32)[:, None], 1.5, closed)[:, 0].astype(float)
            return corners + rng.normal(0, 0.8, corners.shape)

        drawn = DrawnOutlines(
            exact.name, hasty(exact.left_lung), hasty(exact.right_lung), (hasty(exact.spine[0]),),
            hasty(exact.thorax_bottom, closed=False), exact.carina,
        )  # fmt: skip
        overlaps = region_overlaps(truth, compose_regions(GRID, drawn), HOLSTE_REGIONS)
        assert min(overlaps[region].dice for region in (Region.LEFT_LUNG, Region.RIGHT_LUNG)) > 0.97
        assert min(overlaps[region].dice for region in (Region.LEFT_SUBDIAPHRAGM, Region.RIGHT_SUBDIAPHRAGM)) > 0.94
        assert overlaps[Region.SPINE].dice > 0.93
        assert overlaps[Region.MEDIASTINUM].dice > 0.75  # two strips of a few pixels' width

    @pytest.mark.parametrize("seed", [1, 5, 9])
    def test_slivers_beyond_a_bent_spine_are_dropped(self, seed: int) -> None:
        truth = make_phantom(seed, rows=320, columns=280).labels
        composed = compose_regions((320, 280), traced(truth))
        sides = Region.LEFT_SUBDIAPHRAGM, Region.RIGHT_SUBDIAPHRAGM
        assert max(pieces(truth, side) for side in sides) == 2
        assert [pieces(composed, side) for side in sides] == [1, 1]

    @pytest.mark.parametrize("seed", [2, 5, 7])
    def test_the_worker_has_nothing_to_say_about_the_map(self, seed: int) -> None:
        truth = make_phantom(seed, rows=256, columns=256, randomise=0.3).labels
        assert flags_of(compose_regions(GRID, traced(truth))) == []


class TestRules:
    def test_every_region_is_where_it_belongs(self) -> None:
        labels = compose_regions(GRID, simple())
        assert set(np.unique(labels)) == set(VALUE.values())
        assert flags_of(labels) == []
        expected = {
            (100, 60): Region.RIGHT_LUNG,
            (100, 190): Region.LEFT_LUNG,
            (205, 60): Region.RIGHT_SUBDIAPHRAGM,
            (205, 190): Region.LEFT_SUBDIAPHRAGM,
            (150, 128): Region.SPINE,
            (150, 118): Region.MEDIASTINUM,
            (150, 138): Region.MEDIASTINUM,
            (93, 128): Region.CARINA,
            (20, 128): Region.BACKGROUND,
            (245, 128): Region.BACKGROUND,
            (150, 5): Region.BACKGROUND,
        }
        assert {place: labels[place] for place in expected} == {place: VALUE[name] for place, name in expected.items()}

    def test_the_spine_ends_at_the_apices_and_the_thorax_bottom(self) -> None:
        rows = np.nonzero(compose_regions(GRID, simple()) == VALUE[Region.SPINE])[0]
        apex, bottom = (0.15 - 0.5) * 0.9 + 0.5, (0.93 - 0.5) * 0.9 + 0.5
        assert abs(rows.min() - apex * 256) < 2
        assert abs(rows.max() - bottom * 256) < 2

    def test_a_heart_left_out_of_the_lung_belongs_to_the_mediastinum(self) -> None:
        labels = compose_regions(GRID, simple(heart=0.12))
        assert labels[155, 155] == VALUE[Region.MEDIASTINUM]
        assert flags_of(labels) == []

    def test_a_thorax_bottom_across_the_whole_picture_is_cut_off_at_the_flanks(self) -> None:
        wide = simple(thorax_bottom=np.asarray([[0, 220], [128, 225], [255, 220]], float))
        labels = compose_regions(GRID, wide)
        lungs = np.isin(labels, [VALUE[Region.LEFT_LUNG], VALUE[Region.RIGHT_LUNG]])
        below = np.isin(labels, [VALUE[Region.LEFT_SUBDIAPHRAGM], VALUE[Region.RIGHT_SUBDIAPHRAGM]])
        assert np.flatnonzero(below.any(axis=0))[[0, -1]] == pytest.approx(
            np.flatnonzero(lungs.any(axis=0))[[0, -1]], abs=2
        )

    def test_direction_and_form_of_the_lines_do_not_matter(self) -> None:
        drawn = simple()
        one, other = drawn.spine
        expected = compose_regions(GRID, drawn)
        changed = simple(
            left_lung=drawn.left_lung[::-1],
            right_lung=np.roll(drawn.right_lung, 3, axis=0),
            spine=(other[::-1], one[::-1]),
            thorax_bottom=drawn.thorax_bottom[::-1],
        )
        assert np.mean(compose_regions(GRID, changed) != expected) < 0.002
        closed = simple(spine=(np.concatenate([one, other[::-1]]),))
        assert np.array_equal(compose_regions(GRID, closed), expected)

    def test_what_both_lungs_claim_goes_by_the_spine(self) -> None:
        right = simple().right_lung.copy()
        left = simple().left_lung.copy()
        right[2, 0], left[3, 0] = 132.0, 124.0  # each a little beyond the spine's midline
        labels = compose_regions(GRID, simple(left_lung=left, right_lung=right), ComposeSettings(smoothing=0.0))
        rows, columns = np.nonzero(fill_polygon(GRID, left) & fill_polygon(GRID, right))
        assert len(rows) > 10
        expected = np.where(columns + 0.5 > 128, VALUE[Region.LEFT_LUNG], VALUE[Region.RIGHT_LUNG])
        assert np.array_equal(labels[rows, columns], expected)

    def test_the_carina_keeps_its_relative_size(self) -> None:
        large = compose_regions((1024, 1024), simple(1024))
        shrunk = cv2.resize(large, GRID, interpolation=cv2.INTER_NEAREST_EXACT)
        for labels in (compose_regions(GRID, simple()), shrunk):
            assert 5 <= np.count_nonzero(labels == VALUE[Region.CARINA]) <= 75
        radius = ComposeSettings(carina_radius=4.0)
        assert np.count_nonzero(compose_regions(GRID, simple(), radius) == VALUE[Region.CARINA]) == 49


NONSENSE = [
    ({"left_lung": simple().right_lung, "right_lung": simple().left_lung}, "right lung lies on the patient's left"),
    ({"thorax_bottom": np.asarray([[30.0, 90.0], [128.0, 92.0], [220.0, 90.0]])}, "thorax bottom lies above"),
    ({"thorax_bottom": np.asarray([[30.0, 220.0], [90.0, 222.0]])}, "does not cross the spine"),
    ({"carina": (60.0, 110.0)}, "carina at .* outside spine and mediastinum"),
    ({"carina": (400.0, 110.0)}, "carina .* outside the picture"),
    ({"carina": (float("nan"), 110.0)}, "carina .* outside the picture"),
    ({"spine": ()}, "spine is one closed outline or its two edges"),
    ({"spine": (np.asarray([[20.0, 120.0], [230.0, 118.0], [230.0, 130.0], [20.0, 132.0]]),)}, "spine runs across"),
    ({"spine": (np.asarray([[100.0, 100.0], [150.0, 100.0], [150.0, 150.0], [100.0, 150.0]]),)}, "as wide as"),
    ({"left_lung": np.asarray([[150.0, 40.0], [151.0, 41.0]])}, "left lung needs at least 3"),
    ({"left_lung": np.asarray([[150.0, 40.0]] * 9)}, "left lung needs at least 3"),
    ({"right_lung": np.zeros((0, 2))}, "right lung needs at least 3"),
    ({"right_lung": np.zeros((4, 3))}, "not a list of"),
    ({"right_lung": simple().right_lung * 20}, "right lung has points far outside"),
    ({"thorax_bottom": np.asarray([[np.nan, 3.0], [5.0, 3.0]])}, "thorax bottom has points far outside"),
    ({"right_lung": simple().right_lung - [140.0, 0.0]}, "right lung lies outside the picture"),
    ({"right_lung": np.add(simple().right_lung, [40.0, 0.0])}, "covers much of the spine"),
]


class TestErrors:
    @pytest.mark.parametrize(("changes", "message"), NONSENSE)
    def test_nonsense_is_refused_with_the_outline_and_the_picture(self, changes: dict, message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            compose_regions(GRID, simple(**changes))
        assert str(caught.value).startswith("film.png: ")

    def test_overlapping_lungs_are_refused(self) -> None:
        short = tuple(edge[2:] for edge in simple().spine)
        right = simple().right_lung
        across = np.concatenate([[[180.0, 60.0], [180.0, 100.0], [112.0, 110.0]], right[2:]])
        with pytest.raises(DataError, match="outlines overlap"):
            compose_regions(GRID, simple(right_lung=across, spine=short))


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(
        tilt=st.floats(-20, 20),
        bend=st.floats(-0.02, 0.02),
        heart=st.floats(0, 0.12),
        size=st.sampled_from([64, 160, 256]),
        seed=st.integers(0, 1000),
    )
    def test_any_sound_drawing_gives_eight_sound_regions(
        self, tilt: float, bend: float, heart: float, size: int, seed: int
    ) -> None:
        drawn = simple(size, tilt=tilt, bend=bend, heart=heart)
        rng = np.random.default_rng(seed)

        def shaken(points: np.ndarray) -> np.ndarray:
            return points + rng.normal(0, 0.003 * size, points.shape)

        drawn = DrawnOutlines(
            drawn.name, shaken(drawn.left_lung), shaken(drawn.right_lung),
            tuple(shaken(edge) for edge in drawn.spine), shaken(drawn.thorax_bottom), drawn.carina,
        )  # fmt: skip
        labels = compose_regions((size, size), drawn)
        assert labels.shape == (size, size) and labels.dtype == np.uint8
        assert set(np.unique(labels)) == set(VALUE.values())
        for region in map(Region, VALUE):
            if region not in (Region.BACKGROUND, Region.MEDIASTINUM):
                assert pieces(labels, region) == 1
        # Smoothing moves a border by a pixel at most, so each lung lies within its slightly widened outline.
        for region, points in ((Region.LEFT_LUNG, drawn.left_lung), (Region.RIGHT_LUNG, drawn.right_lung)):
            allowed = cv2.dilate(fill_polygon((size, size), points).astype(np.uint8), np.ones((5, 5), np.uint8))
            assert not ((labels == VALUE[region]) & (allowed == 0)).any()

    @settings(max_examples=80, deadline=None)
    @given(
        lines=st.lists(
            st.lists(st.tuples(st.floats(-20, 84), st.floats(-20, 84)), max_size=6).map(
                lambda points: np.asarray(points, float).reshape(-1, 2)
            ),
            min_size=4,
            max_size=4,
        ),
        carina=st.tuples(st.floats(-5, 70), st.floats(-5, 70)),
        keep=st.lists(st.booleans(), min_size=5, max_size=5),
    )
    def test_scribbles_give_a_map_or_a_sentence(
        self, lines: list[np.ndarray], carina: tuple[float, float], keep: list[bool]
    ) -> None:
        sound = simple(64)
        drawn = DrawnOutlines(
            "scribble.png",
            sound.left_lung if keep[0] else lines[0],
            sound.right_lung if keep[1] else lines[1],
            sound.spine if keep[2] else (lines[2],),
            sound.thorax_bottom if keep[3] else lines[3],
            sound.carina if keep[4] else carina,
        )
        try:
            labels = compose_regions((64, 64), drawn)
        except DataError as error:
            assert str(error).startswith("scribble.png: ") and str(error).endswith(".")
        else:
            assert set(np.unique(labels)) == set(VALUE.values())
