from __future__ import annotations

import string

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.regions import HOLSTE_REGIONS, REGION_BY_NAME, RegionDefinition
from worker.film.prepared import Observation
from worker.findings import flag_rules
from worker.findings.flags import FlagContext, advice, age_band, describe, evaluate, raise_flag, unique
from worker.findings.postprocess import PostprocessSettings
from worker.results.result import FindingScore, Flag


@pytest.fixture(scope="session")
def flags_of(finish, facts):
    def run(
        labels,
        probabilities=None,
        regions=HOLSTE_REGIONS,
        age_days=1200,
        clean_all_classes=False,
        core=False,
        **further,
    ):
        probabilities, segmentation, measurements = finish(
            labels, probabilities, regions, clean_all_classes=clean_all_classes, carina_core=core
        )
        if core:
            further["settings"] = PostprocessSettings(carina_core=True)
        return evaluate(
            FlagContext(segmentation, measurements, probabilities, regions, facts(age_days=age_days), **further)
        )

    return run


def keys(flags, rule):
    return {(flag.source, flag.region) for flag in flags if flag.rule == rule}


def one(flags, rule, source, region=None):
    [flag] = [flag for flag in flags if (flag.rule, flag.source, flag.region) == (rule, source, region)]
    return flag


BOTH = ("raw", "cleaned")


def test_a_textbook_chest_raises_nothing(chest, flags_of):
    assert flags_of(chest()) == []


def test_nothing_on_another_grid(chest, flags_of):
    assert flags_of(chest(512)) == []


class TestMissing:
    @pytest.mark.parametrize("region", [region for region in HOLSTE_REGIONS if region.name != "background"])
    def test_each_region(self, region, chest, flags_of):
        labels = chest()
        labels[labels == region.value] = 0
        flags = flags_of(labels)
        assert keys(flags, "missing_region") == {(source, region.name) for source in BOTH}
        assert keys(flags, "holste_failure") == {(source, None) for source in BOTH}
        assert one(flags, "holste_failure", "cleaned").threshold == 1

    def test_no_background_is_no_failure(self, chest, flags_of):
        labels = chest()
        labels[labels == 0] = 6
        assert not keys(flags_of(labels), "missing_region")


class TestDisconnected:
    def test_one_broken_class_is_no_holste_failure_two_are(self, chest, flags_of):
        labels = chest()
        labels[5:30, 5:45] = 1
        flags = flags_of(labels)
        assert keys(flags, "disconnected_region") == {(source, "left_lung") for source in BOTH}
        assert one(flags, "disconnected_region", "raw", "left_lung").value == 2
        assert not keys(flags, "holste_failure")
        labels[5:8, 240:243] = 2
        failure = one(flags_of(labels), "holste_failure", "cleaned")
        assert (failure.value, failure.threshold) == (2, 2)
        assert "left lung, right lung" in failure.detail

    def test_specks_count_only_where_no_clean_up_took_them(self, chest, flags_of):
        labels = chest()
        labels[5:8, 5:9] = 1
        assert keys(flags_of(labels), "disconnected_region") == {("cleaned", "left_lung")}
        assert not keys(flags_of(labels, clean_all_classes=True), "disconnected_region")

    def test_clean_up_never_hides_a_failure(self, chest, flags_of):
        labels = chest()
        labels[5:30, 5:45] = 1
        labels[5:30, 210:250] = 2
        flags = flags_of(labels, clean_all_classes=True)
        assert keys(flags, "holste_failure") == {("raw", None)}
        assert keys(flags, "disconnected_region") == {("raw", "left_lung"), ("raw", "right_lung")}

    def test_two_carinas_are_seen_before_clean_up(self, chest, flags_of):
        labels = chest()
        labels[200:202, 60:62] = 7
        assert keys(flags_of(labels), "disconnected_region") == {("raw", "carina")}

    def test_a_carina_that_is_cut_down_to_its_core_is_not_too_large(self, chest, flags_of, finish):
        labels = chest()
        rows, columns = np.nonzero(labels == 7)
        labels[rows.min() : rows.min() + 30, columns.min() : columns.min() + 4] = 7
        probabilities, _, _ = finish(labels)
        probabilities[7] -= np.where(labels == 7, 0.001 * np.arange(256)[:, None], 0).astype(np.float32)
        assert keys(flags_of(labels, probabilities), "carina_out_of_range") == {(source, "carina") for source in BOTH}
        assert not keys(flags_of(labels, probabilities, core=True), "carina_out_of_range")

    def test_the_mediastinum_continues_behind_the_spine(self, chest, flags_of, finish):
        labels = chest()
        _, _, measurements = finish(labels)
        assert {m.region: m.components for m in measurements}["mediastinum"] == 2
        assert not keys(flags_of(labels), "disconnected_region")
        labels[20:24, 20:24] = 6
        flag = one(flags_of(labels), "disconnected_region", "cleaned", "mediastinum")
        assert flag.value == 2
        assert "16 of" in flag.detail


class TestInterrupted:
    @pytest.mark.parametrize(
        ("region", "intruder", "window"),
        [
            ("left_lung", 3, np.s_[110:120, 170:200]),
            ("left_lung", 6, np.s_[110:120, 170:200]),
            ("right_lung", 1, np.s_[110:120, 55:85]),
            ("right_lung", 0, np.s_[110:120, 55:85]),
            ("right_subdiaphragm", 2, np.s_[215:225, 60:90]),
            ("mediastinum", 2, np.s_[150:170, 108:115]),
        ],
    )
    def test_a_piece_of_another_region_inside(self, region, intruder, window, chest, flags_of):
        labels = chest()
        labels[window] = intruder
        assert ("cleaned", region) in keys(flags_of(labels), "interrupted_region")

    def test_a_speck_is_tolerated(self, chest, flags_of):
        labels = chest()
        labels[110:112, 180:183] = 3
        assert not keys(flags_of(labels), "interrupted_region")

    def test_the_dome_between_two_recesses_is_anatomy(self, chest, flags_of):
        labels = chest()
        cv2.ellipse(labels, (186, 196), (16, 26), 0, 0, 360, 3, -1)
        assert not keys(flags_of(labels), "interrupted_region")

    def test_background_between_lungs_alone_is_no_intruder(self, chest, flags_of):
        labels = chest()
        labels[labels > 2] = 0  # the dome and the heart's side are background in this region set
        cv2.ellipse(labels, (186, 196), (16, 26), 0, 0, 360, 0, -1)
        assert not keys(flags_of(labels, regions=HOLSTE_REGIONS[:3]), "interrupted_region")
        labels[110:120, 55:85] = 1
        found = keys(flags_of(labels, regions=HOLSTE_REGIONS[:3]), "interrupted_region")
        assert ("cleaned", "right_lung") in found

    def test_value_is_the_share_of_the_regions_own_area(self, chest, flags_of):
        labels = chest()
        labels[110:120, 170:200] = 3
        flag = one(flags_of(labels), "interrupted_region", "cleaned", "left_lung")
        assert flag.value == pytest.approx(300 / np.count_nonzero(labels == 1))
        assert "left subdiaphragm" in flag.detail

    def test_pairs_name_known_regions(self):
        for pair in flag_rules.INTERRUPTIONS:
            assert {pair.region, pair.intruder} <= set(REGION_BY_NAME)
            assert pair.region != pair.intruder


class TestCarina:
    def test_lowered_threshold(self, chest, flags_of, probabilities_of):
        labels = chest()
        labels[labels == 7] = 5
        probabilities = probabilities_of(labels)
        probabilities[7] = 0.0
        probabilities[7, 98:103, 126:131] = 0.02
        flags = flags_of(labels, probabilities)
        assert one(flags, "carina_threshold_lowered", "cleaned", "carina").value == pytest.approx(0.01)
        assert keys(flags, "missing_region") == {("raw", "carina")}
        assert keys(flags, "holste_failure") == {("raw", None)}

    @pytest.mark.parametrize(("size", "limit"), [(2, 5.0), (12, 75.0)])
    def test_out_of_range(self, size, limit, chest, flags_of):
        labels = chest()
        labels[labels == 7] = 5
        labels[100 : 100 + size, 122 : 122 + size] = 7
        flags = flags_of(labels)
        assert keys(flags, "carina_out_of_range") == {(source, "carina") for source in BOTH}
        flag = one(flags, "carina_out_of_range", "raw", "carina")
        assert (flag.value, flag.threshold) == (size * size, limit)

    def test_the_bundles_range_counts(self, chest, flags_of):
        wide = PostprocessSettings(carina_maximum_pixels=200)
        labels = chest()
        labels[100:112, 122:134] = 7
        assert not keys(flags_of(labels, settings=wide), "carina_out_of_range")


class TestSizeAndSide:
    def test_small_lung(self, chest, flags_of):
        labels = chest()
        labels[labels == 1] = 0
        labels[100:130, 170:200] = 1
        flag = one(flags_of(labels), "area_out_of_range", "cleaned", "left_lung")
        assert flag.value == pytest.approx(900 / 65536)
        assert flag.threshold == 0.03
        assert flag.detail == "1 to 4 years"

    @pytest.mark.parametrize(
        ("age_days", "name"),
        [
            (0, "under 1 year"),
            (365, "under 1 year"),
            (366, "1 to 4 years"),
            (1827, "5 to 15 years"),
            (5844, "16 years and over"),
            (47450, "16 years and over"),
            (None, "age unknown"),
        ],
    )
    def test_age_bands(self, age_days, name):
        assert age_band(age_days).name == name

    def test_age_unknown_allows_what_any_age_does(self):
        for band in flag_rules.AGE_BANDS:
            for region, (low, high) in band.areas.items():
                widest = flag_rules.AGE_UNKNOWN.areas[region]
                assert widest[0] <= low < high <= widest[1]

    def test_mirrored(self, chest, flags_of):
        flags = flags_of(chest()[:, ::-1].copy())
        assert keys(flags, "left_right_swapped") == {
            (source, region) for source in BOTH for region in ("left_lung", "left_subdiaphragm")
        }
        assert one(flags, "left_right_swapped", "raw", "left_lung").value < 0


class TestFilmRules:
    def test_low_confidence(self, chest, flags_of, probabilities_of):
        flags = flags_of(chest(), probabilities_of(chest(), sure=0.5))
        flag = one(flags, "low_confidence", "raw")
        assert flag.value == pytest.approx(0.5)
        assert flag.threshold == flag_rules.LOW_CONFIDENCE

    def test_ensemble_disagreement(self, chest, flags_of):
        scores = [
            FindingScore("pneumonia", 0.5, 0.7, 0.5, True, {"a": 0.15, "b": 0.85}),
            FindingScore("no_finding", 0.5, 0.1, 0.5, True, {"a": 0.45, "b": 0.55}),
        ]
        flag = one(flags_of(chest(), scores=scores), "ensemble_disagreement", "result")
        assert flag.value == 0.7
        assert "pneumonia" in flag.detail
        assert "no finding" not in flag.detail

    def test_observations_become_input_flags(self, chest, flags_of):
        observations = [Observation("voi_clipped", 0.7, "window clips 70 %"), Observation("made_up_tomorrow")]
        flags = flags_of(chest(), observations=observations)
        assert [(flag.rule, flag.source, flag.value) for flag in flags] == [
            ("voi_clipped", "input", 0.7),
            ("made_up_tomorrow", "input", None),
        ]

    def test_flags_from_elsewhere_are_not_doubled(self, chest, flags_of):
        verdict = raise_flag("left_right_swapped", "cleaned", "left_lung", value=-0.4)
        flags = flags_of(chest()[:, ::-1].copy(), further=[verdict, verdict])
        assert one(flags, "left_right_swapped", "cleaned", "left_lung") is verdict

    def test_other_region_sets(self, flags_of):
        regions = tuple(RegionDefinition(i, name, name, (0, 0, 0)) for i, name in enumerate(("background", "heart")))
        labels = np.zeros((64, 64), np.uint8)
        assert keys(flags_of(labels, regions=regions), "missing_region") == {(source, "heart") for source in BOTH}
        labels[10:30, 10:30] = 1
        assert flags_of(labels, regions=regions) == []


class TestWords:
    @pytest.mark.parametrize("rule", sorted(map(str, flag_rules.RULES)))
    def test_every_rule_has_a_sentence_and_advice(self, rule):
        flag = raise_flag(rule, "cleaned", "left_lung", value=0.5, threshold=1.0, detail="seen")
        sentence = describe(flag)
        assert sentence.endswith("(after clean-up): seen.")
        assert "{" not in sentence
        assert "nan" not in sentence
        assert advice(flag).endswith(".")
        assert flag.rule_version >= 1

    def test_every_own_rule_is_in_the_table(self):
        assert set(flag_rules.Rule) <= set(flag_rules.RULES)
        fields = {
            name for rule in flag_rules.RULES.values() for _, name, _, _ in string.Formatter().parse(rule.sentence)
        }
        assert fields <= {None, "region", "value", "threshold"}

    def test_sentence(self):
        flag = raise_flag("disconnected_region", "raw", "left_lung", value=3.0)
        assert describe(flag) == "Left lung is in 3 separate pieces (before clean-up)."

    def test_unknown_rule(self):
        flag = Flag("made_up_tomorrow", 1, "input")
        assert describe(flag) == "Noticed while reading the film: made up tomorrow."
        assert advice(flag)

    def test_without_numbers(self):
        assert describe(Flag("area_out_of_range", 1, "raw")).startswith("A region covers nan")


def test_unique_keeps_the_first():
    first, second = raise_flag("a", "raw", value=1.0), raise_flag("a", "raw", value=2.0)
    assert unique([first, second, raise_flag("a", "cleaned")]) == [first, raise_flag("a", "cleaned")]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), specks=st.integers(0, 8))
def test_raw_flags_do_not_depend_on_clean_up(seed, specks, chest, flags_of):
    rng = np.random.default_rng(seed)
    labels = chest()
    for _ in range(specks):
        row, column, size = *rng.integers(0, 240, 2), rng.integers(1, 14)
        labels[row : row + size, column : column + size] = rng.integers(0, 8)
    plain, cleaned = flags_of(labels), flags_of(labels, clean_all_classes=True)
    assert [f for f in plain if f.source == "raw"] == [f for f in cleaned if f.source == "raw"]
    assert not keys(cleaned, "disconnected_region") - {
        (source, region) for source, region in keys(cleaned, "disconnected_region") if source == "raw"
    }
    assert len({(f.rule, f.source, f.region) for f in plain}) == len(plain)
