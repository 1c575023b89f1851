from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.regions import HOLSTE_REGIONS, RegionDefinition
from worker.errors import FilmError
from worker.findings.flag_rules import CONTINUES_BEHIND
from worker.findings.postprocess import PostprocessSettings, largest_component, postprocess
from worker.findings.shapes import shape_of

PAPER = PostprocessSettings()
#: On 32 x 32 this is the paper's range of 5-75 pixels again.
SMALL = PostprocessSettings(carina_minimum_pixels=5 * 64, carina_maximum_pixels=75 * 64)
CARINA = 7
HOLSTE_NAMES = [region.name for region in HOLSTE_REGIONS]


def flat(height: int, width: int, label: int = 6) -> np.ndarray:
    """Mediastinum everywhere, a trace of all else, no carina at all."""
    probabilities = np.full((8, height, width), 0.01, np.float32)
    probabilities[label] = 0.94
    probabilities[CARINA] = 0.0
    return probabilities


def clean(probabilities: np.ndarray, chosen: PostprocessSettings = PAPER):
    return postprocess(probabilities, HOLSTE_REGIONS, chosen)


class TestLadder:
    def test_a_winning_carina_keeps_its_pixels_and_needs_no_ladder(self):
        probabilities = flat(256, 256)
        probabilities[CARINA, 100:102, 100] = 0.99
        probabilities[CARINA, 90:110, 90:110] = np.maximum(probabilities[CARINA, 90:110, 90:110], 0.3)
        result = clean(probabilities)
        assert result.carina_threshold is None
        assert np.count_nonzero(result.cleaned == CARINA) == 2

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (0.3, 0.25),
            (0.25, 0.25),
            (0.2, 0.1),
            (0.06, 0.05),
            (0.02, 0.01),
            (0.007, 0.005),
            (0.002, 0.001),
            (0.0006, 0.0005),
            (0.0004, None),
        ],
    )
    def test_every_rung(self, value, expected):
        probabilities = flat(256, 256)
        probabilities[CARINA, 100:105, 100:105] = value
        result = clean(probabilities)
        assert result.carina_threshold == (None if expected is None else pytest.approx(expected))
        assert np.count_nonzero(result.raw == CARINA) == 0
        assert np.count_nonzero(result.cleaned == CARINA) == (0 if expected is None else 25)

    def test_takes_the_largest_carina_inside_the_range_not_the_first(self):
        probabilities = flat(256, 256)
        probabilities[CARINA, 100:120, 100:120] = 0.02
        probabilities[CARINA, 100:108, 100:108] = 0.07
        probabilities[CARINA, 100:103, 100:103] = 0.3
        result = clean(probabilities)
        assert result.carina_threshold == pytest.approx(0.05)
        assert np.count_nonzero(result.cleaned == CARINA) == 64

    @pytest.mark.parametrize(("pixels", "found"), [(4, False), (5, True), (75, True), (76, False)])
    def test_both_ends_of_the_range_belong_to_it(self, pixels, found):
        probabilities = flat(256, 256)
        probabilities[CARINA, 100, 100 : 100 + pixels] = 0.3
        assert (clean(probabilities).carina_threshold is not None) is found

    def test_the_range_counts_the_largest_component(self):
        probabilities = flat(256, 256)
        probabilities[CARINA, 100, 100:120:2] = 0.3
        assert clean(probabilities).carina_threshold is None
        probabilities[CARINA, 200:204, 100:103] = 0.3
        result = clean(probabilities)
        assert result.carina_threshold == pytest.approx(0.25)
        assert np.count_nonzero(result.cleaned == CARINA) == 12

    def test_the_range_follows_the_grid(self):
        probabilities = flat(512, 512)
        probabilities[CARINA, 100, 100:300] = 0.3
        assert np.count_nonzero(clean(probabilities).cleaned == CARINA) == 200
        assert PAPER.carina_range((128, 128)) == (1.25, 18.75)


class TestComponents:
    def test_keeps_the_largest_and_refills_with_the_next_class(self):
        probabilities = flat(64, 64)
        probabilities[:, :, 32:] = 0.01
        probabilities[5, :, 32:] = 0.94
        probabilities[CARINA, 10:14, 10:14] = 0.99
        probabilities[CARINA, 40:42, 40:42] = 0.99
        result = clean(probabilities)
        assert np.count_nonzero(result.raw == CARINA) == 20
        assert np.count_nonzero(result.cleaned == CARINA) == 16
        assert (result.cleaned[40:42, 40:42] == 5).all()
        assert result.repaired_pixels == 4

    def test_diagonal_pixels_are_one_carina(self):
        probabilities = flat(64, 64)
        for step in range(6):
            probabilities[CARINA, 10 + step, 10 + step] = 0.99
        assert np.count_nonzero(clean(probabilities).cleaned == CARINA) == 6

    def test_of_equal_components_the_more_probable_stays(self):
        mask = np.zeros((8, 8), bool)
        mask[1, 1:3] = mask[5, 5:7] = True
        weight = np.where(np.arange(8)[:, None] > 4, 0.9, 0.6) * np.ones((8, 8))
        assert largest_component(mask, weight.astype(np.float32))[5, 5:7].all()
        assert largest_component(mask, 1 - weight.astype(np.float32))[1, 1:3].all()

    def test_a_tall_carina_is_cut_down_to_its_core_when_asked(self):
        probabilities = flat(256, 256)
        rows = np.arange(80, 130)
        probabilities[CARINA, 80:130, 100:104] = (1 - np.abs(rows - 105) / 100)[:, None]
        probabilities[6, 80:130, 100:104] = 0.01
        as_paper = clean(probabilities)
        assert np.count_nonzero(as_paper.cleaned == CARINA) == 200
        chosen = PostprocessSettings(carina_core=True, carina_maximum_pixels=48)
        core = np.argwhere(clean(probabilities, chosen).cleaned == CARINA)
        assert 36 <= len(core) <= 48
        assert core[:, 0].mean() == pytest.approx(105, abs=0.5)
        assert (clean(probabilities, chosen).cleaned[80:90, 100:104] != CARINA).all()

    def test_a_carina_in_range_is_its_own_core(self):
        probabilities = flat(256, 256)
        probabilities[CARINA, 100:106, 100:106] = 0.99
        chosen = PostprocessSettings(carina_core=True)
        assert np.array_equal(clean(probabilities, chosen).cleaned, clean(probabilities).cleaned)

    def test_a_core_of_equal_values_stays_whole(self):
        probabilities = flat(256, 256)
        probabilities[CARINA, 100:110, 100:110] = 0.99
        chosen = PostprocessSettings(carina_core=True)
        assert np.count_nonzero(clean(probabilities, chosen).cleaned == CARINA) == 100

    def test_every_class_when_asked(self, chest, probabilities_of):
        labels = chest()
        labels[10:14, 10:14] = 1
        labels[100:110, 60:70] = 4
        as_paper = postprocess(probabilities_of(labels), HOLSTE_REGIONS, PAPER)
        assert shape_of(as_paper.cleaned, 1).components == 2
        everything = postprocess(probabilities_of(labels), HOLSTE_REGIONS, PostprocessSettings(clean_all_classes=True))
        assert shape_of(everything.cleaned, 1).components == 1
        assert shape_of(everything.cleaned, 4).components == 1
        assert np.array_equal(everything.raw, labels)
        assert everything.repaired_pixels == np.count_nonzero(everything.raw != everything.cleaned) == 116

    def test_the_spine_does_not_part_the_mediastinum(self, probabilities_of):
        labels = np.zeros((256, 256), np.uint8)
        labels[60:200, 100:156] = 6
        labels[60:200, 120:136] = 5
        labels[90:94, 126:130] = CARINA
        labels[10:14, 10:14] = 6
        result = postprocess(probabilities_of(labels), HOLSTE_REGIONS, PostprocessSettings(clean_all_classes=True))
        assert np.array_equal(result.cleaned[60:200, 100:156], labels[60:200, 100:156])
        assert not (result.cleaned[10:14, 10:14] == 6).any()
        assert result.repaired_pixels == 16


class TestRegionSets:
    def test_no_carina_flows_through(self):
        regions = tuple(RegionDefinition(i, name, name, (0, 0, 0)) for i, name in enumerate(("background", "heart")))
        probabilities = np.zeros((2, 16, 16), np.float32)
        probabilities[0] = 0.4
        probabilities[1, 4:8, 4:8] = 0.6
        result = postprocess(probabilities, regions, PAPER)
        assert result.repaired_pixels == 0
        assert np.count_nonzero(result.cleaned) == 16

    def test_labels_are_the_regions_values(self):
        regions = (RegionDefinition(0, "background", "", (0, 0, 0)), RegionDefinition(9, "carina", "", (0, 0, 0)))
        probabilities = np.zeros((2, 16, 16), np.float32)
        probabilities[0] = 0.5
        probabilities[1, 4:8, 4:8] = 0.6
        assert set(np.unique(postprocess(probabilities, regions, PAPER).cleaned)) == {0, 9}

    def test_a_single_region(self):
        regions = (RegionDefinition(0, "background", "", (0, 0, 0)),)
        assert not postprocess(np.ones((1, 8, 8), np.float32), regions, PAPER).cleaned.any()

    def test_wrong_number_of_maps(self):
        with pytest.raises(ValueError, match="8 regions"):
            clean(np.zeros((7, 8, 8), np.float32))

    def test_not_finite(self):
        probabilities = flat(8, 8)
        probabilities[3, 2, 2] = np.nan
        with pytest.raises(FilmError) as caught:
            clean(probabilities)
        assert caught.value.code == "FINDINGS_FAILED"


class TestSettings:
    def test_empty_manifest_is_the_paper(self):
        assert PostprocessSettings.from_manifest({}) == PAPER

    def test_values_are_read(self):
        read = PostprocessSettings.from_manifest({"carina_thresholds": [0.3, 0.2], "clean_all_classes": True})
        assert read.carina_thresholds == (0.3, 0.2)
        assert read.clean_all_classes

    def test_unknown_key_names_the_nearest(self):
        with pytest.raises(ValueError, match="did you mean 'clean_all_classes'"):
            PostprocessSettings.from_manifest({"clean_all_clases": True})

    @pytest.mark.parametrize(
        "wrong",
        [
            {"clean_all_classes": "no"},
            {"carina_thresholds": "low"},
            {"carina_thresholds": [0.1, 0.2]},
            {"carina_thresholds": [1.5]},
            {"carina_minimum_pixels": None},
            {"carina_minimum_pixels": 80},
        ],
    )
    def test_wrong_values(self, wrong):
        with pytest.raises(ValueError, match=r"carina|clean_all"):
            PostprocessSettings.from_manifest(wrong)


@st.composite
def films(draw):
    """Blocky probabilities, so that components of every size and ladders of every kind occur."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block = draw(st.sampled_from([1, 2, 4]))
    coarse = rng.random((8, 32 // block, 32 // block)) ** draw(st.sampled_from([1, 4]))
    coarse[CARINA] *= draw(st.sampled_from([1.0, 0.5, 0.05, 0.001, 0.0]))
    fine = coarse.repeat(block, axis=1).repeat(block, axis=2)
    return (fine / fine.sum(axis=0)).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(films(), st.booleans())
def test_invariants(probabilities, clean_all):
    chosen = PostprocessSettings(
        carina_minimum_pixels=SMALL.carina_minimum_pixels,
        carina_maximum_pixels=SMALL.carina_maximum_pixels,
        clean_all_classes=clean_all,
    )
    result = clean(probabilities, chosen)
    assert np.array_equal(result.raw, probabilities.argmax(axis=0))
    assert result.cleaned.max() <= CARINA
    assert shape_of(result.cleaned, CARINA).components <= 1
    assert result.repaired_pixels == np.count_nonzero(result.raw != result.cleaned)
    if (result.raw == CARINA).any():
        assert result.carina_threshold is None
        assert shape_of(result.cleaned, CARINA).area > 0
    elif result.carina_threshold is None:
        assert not (result.cleaned == CARINA).any()
    else:
        assert 5 <= shape_of(result.cleaned, CARINA).area <= 75
    if clean_all:
        whole = [label for label in range(1, 8) if HOLSTE_REGIONS[label].name not in CONTINUES_BEHIND]
        assert all(shape_of(result.cleaned, label).components <= 1 for label in whole)
        for region, covering in CONTINUES_BEHIND.items():
            own = HOLSTE_NAMES.index(region) if region in HOLSTE_NAMES else -1
            over = [HOLSTE_NAMES.index(name) for name in covering if name in HOLSTE_NAMES]
            joined = np.isin(result.cleaned, [own, *over]).view(np.uint8)
            _, pieces = cv2.connectedComponents(joined, connectivity=8)
            assert len(np.unique(pieces[result.cleaned == own])) <= 1
    else:
        removed = (result.raw != result.cleaned) & (result.raw == CARINA)
        assert np.array_equal(result.cleaned[removed], probabilities[:CARINA].argmax(axis=0)[removed])
        assert (result.cleaned[(result.raw != result.cleaned) & ~removed] == CARINA).all()


@settings(max_examples=40, deadline=None)
@given(films(), st.booleans())
def test_a_clean_map_stays_as_it_is(probabilities, clean_all):
    chosen = PostprocessSettings(clean_all_classes=clean_all)
    once = clean(probabilities, chosen)
    certain = (once.cleaned[None] == np.arange(8)[:, None, None]).astype(np.float32)
    again = clean(certain, chosen)
    assert np.array_equal(again.cleaned, once.cleaned)
    assert again.repaired_pixels == 0
