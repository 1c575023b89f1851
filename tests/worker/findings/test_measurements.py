from __future__ import annotations

import numpy as np
import pytest

from schema.regions import HOLSTE_REGIONS
from worker.film.prepared import Geometry
from worker.findings.measurements import measure, pixel_square_millimetres
from worker.results.result import Segmentation


def by_name(measurements):
    return {measurement.region: measurement for measurement in measurements}


def test_a_rectangle_by_hand(probabilities_of):
    labels = np.zeros((40, 80), np.uint8)
    labels[10:20, 30:50] = 5
    segmentation = Segmentation(raw=labels, cleaned=labels, carina_threshold=None, repaired_pixels=0)
    found = by_name(measure(segmentation, probabilities_of(labels), HOLSTE_REGIONS, Geometry(400, 800)))
    spine = found["spine"]
    assert (spine.area_pixels, spine.area_fraction, spine.components) == (200, 200 / 3200, 1)
    assert spine.centroid_row == pytest.approx(15 / 40)
    assert spine.centroid_column == pytest.approx(40 / 80)
    assert spine.bounding_box == (10, 30, 20, 50)
    assert spine.mean_probability == pytest.approx(0.93, abs=1e-6)
    assert spine.area_mm2 is None
    lung = found["left_lung"]
    assert (lung.area_pixels, lung.components, lung.bounding_box) == (0, 0, None)
    assert lung.centroid_row is lung.centroid_column is lung.mean_probability is None


def test_regions_in_order_and_areas_add_up(chest, finish):
    _, _, found = finish(chest())
    assert [measurement.region for measurement in found] == [region.name for region in HOLSTE_REGIONS]
    assert sum(measurement.area_pixels for measurement in found) == 256 * 256
    assert all(0.0 <= measurement.mean_probability <= 1.0 for measurement in found)


def test_centroid_of_pieces_weighs_by_area(probabilities_of):
    labels = np.zeros((64, 64), np.uint8)
    labels[0:10, 0:10] = 3
    labels[50:52, 60:64] = 3
    segmentation = Segmentation(raw=labels, cleaned=labels, carina_threshold=None, repaired_pixels=0)
    region = by_name(measure(segmentation, probabilities_of(labels), HOLSTE_REGIONS, Geometry(64, 64)))[
        "left_subdiaphragm"
    ]
    expected = (np.argwhere(labels == 3).mean(axis=0) + 0.5) / 64
    assert region.components == 2
    assert (region.centroid_row, region.centroid_column) == pytest.approx(tuple(expected))


def test_repaired_pixels_count_for_both_sides(chest, finish):
    labels = chest()
    labels[200:202, 60:62] = 7
    _, segmentation, found = finish(labels)
    assert segmentation.repaired_pixels == 4
    changed = {m.region: m.repaired_pixels for m in found if m.repaired_pixels}
    assert changed.pop("carina") == 4
    assert sum(changed.values()) == 4


@pytest.mark.parametrize("source", ["uncalibrated", "undeterminable", "detector", "none"])
def test_no_claim_in_mm_without_a_corrected_spacing(source):
    assert pixel_square_millimetres(Geometry(400, 800, False, False, 0.1, 0.1, source), (40, 80)) is None


def test_mm_from_the_film_spacing_and_both_scales():
    geometry = Geometry(400, 800, False, False, 0.2, 0.1, "corrected")
    assert pixel_square_millimetres(geometry, (40, 160)) == pytest.approx((10 * 0.2) * (5 * 0.1))
    assert pixel_square_millimetres(Geometry(400, 800, spacing_source="corrected"), (40, 160)) is None
