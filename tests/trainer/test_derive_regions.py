"""Eight regions from two lungs: on phantoms the truth of all eight is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schema.regions import HOLSTE_REGIONS, REGION_BY_NAME, Region
from trainer.derive_regions import derive_regions
from trainer.errors import DataError
from worker.findings.shapes import shapes_of
from worker.metrics import region_overlaps
from worker.phantom import make_phantom

LUNGS = (1, 2)


def phantom_lungs(seed, rows=256, columns=256):
    truth = make_phantom(seed, rows=rows, columns=columns, age_days=900, randomise=0.3).labels
    return truth, np.where(np.isin(truth, LUNGS), truth, 0).astype(np.uint8)


def test_agrees_with_the_exact_truth_of_phantoms():
    dice = {region.name: [] for region in HOLSTE_REGIONS}
    for seed in range(12):
        truth, lungs = phantom_lungs(seed)
        for name, overlap in region_overlaps(truth, derive_regions(lungs), HOLSTE_REGIONS).items():
            dice[name].append(overlap.dice)
    means = {name: float(np.nanmean(values)) for name, values in dice.items()}
    assert means["left_lung"] == means["right_lung"] == 1.0
    assert min(means["left_subdiaphragm"], means["right_subdiaphragm"]) > 0.8, means
    assert means["spine"] > 0.85, means
    assert means["mediastinum"] > 0.5, means
    assert means["carina"] > 0.2, means


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(256, 256), (224, 224), (300, 200)]))
def test_lungs_stay_and_every_region_is_there(seed, size):
    _, lungs = phantom_lungs(seed, *size)
    if not all((lungs == value).any() for value in LUNGS):
        return  # collimated away
    regions = derive_regions(lungs)
    np.testing.assert_array_equal(np.where(np.isin(regions, LUNGS), regions, 0), lungs)
    assert set(np.unique(regions)) <= {region.value for region in HOLSTE_REGIONS}
    shapes = shapes_of(regions, HOLSTE_REGIONS)
    assert shapes[Region.SPINE].area > 0 and shapes[Region.MEDIASTINUM].area > 0
    assert shapes[Region.CARINA].components == 1


def test_left_and_right_are_the_patients():
    _, lungs = phantom_lungs(3)
    shapes = shapes_of(derive_regions(lungs), HOLSTE_REGIONS)
    right, left = shapes[Region.RIGHT_SUBDIAPHRAGM].centroid, shapes[Region.LEFT_SUBDIAPHRAGM].centroid
    assert right[1] < shapes[Region.SPINE].centroid[1] < left[1]


@pytest.mark.parametrize("missing", LUNGS)
def test_a_missing_lung_is_refused(missing):
    _, lungs = phantom_lungs(1)
    with pytest.raises(DataError, match="two lungs"):
        derive_regions(np.where(lungs == missing, 0, lungs).astype(np.uint8))


def test_the_carina_lies_between_the_lungs_on_the_spine():
    _, lungs = phantom_lungs(5)
    regions = derive_regions(lungs)
    rows, columns = np.nonzero(regions == REGION_BY_NAME[Region.CARINA].value)
    spine = np.flatnonzero((regions == REGION_BY_NAME[Region.SPINE].value).any(axis=0))
    assert spine[0] <= columns.mean() <= spine[-1]
    assert 5 <= len(rows) <= 75
