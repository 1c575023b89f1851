"""Masks of other regions than Holste's eight: what is wrong with them, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scr_films import scr_masks

from schema.regions import HOLSTE_REGIONS, MERGED, REGION_BY_NAME, REGION_SETS, REGIONS, RegionDefinition, parts_of
from worker.findings.eligibility import Picture, look
from worker.findings.flags import FlagContext, describe, evaluate

SIDE = 256


def region_set(name: str) -> list[RegionDefinition]:
    return [replace(REGION_BY_NAME[region], value=value) for value, region in enumerate(REGION_SETS[name])]


def chest(regions: Sequence[RegionDefinition]) -> np.ndarray:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    masks = scr_masks(SIDE)
    for region in regions[1:]:
        for part in parts_of(region.name):
            labels[masks[part]] = region.value
    return labels


@pytest.fixture
def flags_of(finish, facts):
    def run(labels, regions, age_days=9000, **settings):
        probabilities, segmentation, measurements = finish(labels, None, regions, **settings)
        return evaluate(FlagContext(segmentation, measurements, probabilities, regions, facts(age_days=age_days)))

    return run


def found(flags) -> set[tuple[str, str | None]]:
    return {(flag.rule, flag.region) for flag in flags if flag.source == "cleaned"}


def test_every_set_starts_with_background_and_is_known() -> None:
    assert [region.value for region in REGIONS] == list(range(len(REGIONS)))
    assert len(HOLSTE_REGIONS) == 8
    assert len({region.colour for region in REGIONS}) == len(REGIONS)
    for names in REGION_SETS.values():
        assert names[0] == "background" and {*names} <= {*REGION_BY_NAME}
    assert all({*parts} <= {*REGION_BY_NAME} for parts in MERGED.values())


@pytest.mark.parametrize("name", ["scr", "lungs", "novikov"])
@pytest.mark.parametrize("age_days", [200, 1200, 3000, 9000, None])
def test_a_sound_chest_raises_nothing(name, age_days, flags_of):
    regions = region_set(name)
    assert flags_of(chest(regions), regions, age_days) == []


def test_an_apex_above_its_clavicle_is_no_piece_but_the_lung_below_the_heart_is(flags_of):
    regions = region_set("scr")
    labels = chest(regions)
    lung = REGION_SETS["scr"].index("left_lung")
    assert labels[50, 184] == lung and labels[60, 184] != lung and labels[70, 184] == lung
    labels[230:240, 180:190] = lung
    assert found(flags_of(labels, regions)) == {("disconnected_region", "left_lung")}


def test_both_lungs_as_one_may_have_two_pieces_and_not_three(flags_of):
    regions = region_set("novikov")
    labels = chest(regions)
    lungs = REGION_SETS["novikov"].index("lungs")
    labels[230:240, 180:190] = lungs
    (flag,) = [flag for flag in flags_of(labels, regions) if flag.source == "cleaned"]
    assert (flag.rule, flag.region, flag.value, flag.threshold) == ("disconnected_region", "lungs", 3.0, 2.0)
    assert describe(flag).startswith("Lungs is in 3 separate pieces") and "outside the largest 2" in describe(flag)


def test_both_lungs_as_one_are_not_made_one_piece(finish):
    regions = region_set("novikov")
    labels = chest(regions)
    heart = REGION_SETS["novikov"].index("heart")
    labels[5:8, 5:8] = heart
    _, segmentation, _ = finish(labels, None, regions, clean_all_classes=True)
    assert not (segmentation.cleaned[5:8, 5:8] == heart).any()
    labels[5:8, 5:8] = 0
    np.testing.assert_array_equal(segmentation.cleaned > 0, labels > 0)


@pytest.mark.parametrize(
    ("region", "intruder", "window"),
    [
        ("left_lung", "heart", np.s_[110:120, 170:200]),
        ("right_lung", "left_clavicle", np.s_[110:120, 60:80]),
        ("heart", "left_lung", np.s_[165:175, 130:145]),
        ("left_clavicle", "right_clavicle", np.s_[54:70, 175:180]),
    ],
)
def test_a_piece_of_another_region_inside(region, intruder, window, flags_of):
    regions = region_set("scr")
    labels = chest(regions)
    labels[window] = REGION_SETS["scr"].index(intruder)
    assert ("interrupted_region", region) in found(flags_of(labels, regions))


def test_a_missing_heart_is_a_failure(flags_of):
    regions = region_set("scr")
    labels = chest(regions)
    labels[labels == REGION_SETS["scr"].index("heart")] = 0
    assert {("missing_region", "heart"), ("holste_failure", None)} <= found(flags_of(labels, regions))


def test_sides_and_sizes_of_clavicles_and_heart(flags_of):
    regions = region_set("scr")
    labels = chest(regions)
    left, right = (REGION_SETS["scr"].index(name) for name in ("left_clavicle", "right_clavicle"))
    table = np.arange(256, dtype=np.uint8)
    table[[left, right]] = right, left
    assert ("left_right_swapped", "left_clavicle") in found(flags_of(table[labels], regions))
    labels[labels == REGION_SETS["scr"].index("heart")] = 0
    labels[180:182, 130:140] = REGION_SETS["scr"].index("heart")
    assert ("area_out_of_range", "heart") in found(flags_of(labels, regions))


def test_with_one_lung_a_heart_tells_that_it_is_a_chest(finish):
    regions = region_set("scr")
    labels = chest(regions)
    labels[labels == REGION_SETS["scr"].index("right_lung")] = 0
    _, segmentation, measurements = finish(labels, None, regions)
    assert look(segmentation, measurements, regions).picture is Picture.DOUBTFUL
    labels[labels == REGION_SETS["scr"].index("heart")] = 0
    _, segmentation, measurements = finish(labels, None, regions)
    assert look(segmentation, measurements, regions).picture is Picture.IMPLAUSIBLE
