from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from output_films import Site, without
from sqlalchemy import select
from stored_films import MANIFEST, labels, result

from schema import tables
from schema.outputs import OutputKind
from schema.regions import HOLSTE_REGIONS
from worker.film.geometry import to_film_grid
from worker.film.prepared import Geometry
from worker.results.masks import decode_mask

KIND = OutputKind.SEGMENTATION


def built(site: Site, job: int) -> Any:
    """The segmentation as a receiver reads it."""
    (dataset,) = site.build(job, [KIND])[KIND]
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return pydicom.dcmread(stream)


def stored_map(site: Site, job: int) -> np.ndarray:
    table = tables.segmentation
    with site.database.read() as connection:
        row = connection.execute(select(table).where(table.c.job_id == job)).one()
    geometry = Geometry(row.film_rows, row.film_columns, row.flip_columns, row.flip_rows)
    return to_film_grid(decode_mask(row.mask, (row.height, row.width)), geometry)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_the_masks_read_back_are_those_of_the_database(site: Site, mirrored: bool, polarity: str) -> None:
    orientation = ["R" if mirrored else "L", "F"]
    stored = result(film=(120, 100), flip_columns=mirrored)
    job = site.film(stored=stored, PatientOrientation=orientation, PhotometricInterpretation=polarity)
    dataset, expected = built(site, job), stored_map(site, job)
    frames = dataset.pixel_array
    assert frames.shape == (7, 120, 100)
    for number, region in enumerate(HOLSTE_REGIONS[1:], start=1):
        item = dataset.PerFrameFunctionalGroupsSequence[number - 1]
        assert item.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        assert dataset.SegmentSequence[number - 1].SegmentLabel == region.title
        np.testing.assert_array_equal(frames[number - 1] > 0, expected == region.value)
    assert list(dataset.PatientOrientation) == orientation
    # Value 1 starts at the left of the network's map: on a mirrored film it must end up at the right.
    assert (np.median(np.nonzero(frames[0])[1]) > 50) == mirrored


def test_highdicom_reads_it(site: Site) -> None:
    from highdicom.seg import Segmentation

    job = site.film()
    read = Segmentation.from_dataset(built(site, job))
    assert read.number_of_segments == 7
    masks = read.get_pixels_by_source_instance(
        source_sop_instance_uids=[
            read.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
        ],
        combine_segments=True,
    )
    np.testing.assert_array_equal(masks[0], stored_map(site, job))


def test_sides_colours_and_algorithm(site: Site) -> None:
    dataset = built(site, site.film())
    left, right = dataset.SegmentSequence[:2]
    for segment, side in ((left, "Left"), (right, "Right")):
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("39607008", "SCT")
        assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == side
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("phantom", "1")
        assert "openvino" in str(algorithm.AlgorithmParameters)
        assert "fp32" in str(algorithm.AlgorithmParameters)
    assert left.RecommendedDisplayCIELabValue != right.RecommendedDisplayCIELabValue


def test_a_bundle_of_lungs_has_two_segments_and_a_missing_region_an_empty_frame(site: Site) -> None:
    lungs = site.films.add_bundle("lungs", regions=MANIFEST["regions"][:3])
    job = site.film()
    only_left = np.where(labels() == 1, 1, 0).astype(np.uint8)
    from worker.results.masks import encode_mask

    site.update(tables.segmentation, job, mask=encode_mask(only_left))
    site.films.update(tables.job, job, bundle_id=lungs)
    dataset = built(site, job)
    assert [segment.SegmentLabel for segment in dataset.SegmentSequence] == ["Left lung", "Right lung"]
    assert dataset.pixel_array.shape == (2, 120, 100)
    assert dataset.pixel_array[0].any()
    assert not dataset.pixel_array[1].any()


def test_a_result_without_masks_has_no_segmentation(site: Site) -> None:
    job = site.film(stored=without(result(film=(120, 100)), "segmentation"))
    made = site.build(job, list(OutputKind))
    assert made[KIND] == []
    assert made[OutputKind.OVERLAY] == []
    assert len(made[OutputKind.REPORT]) == len(made[OutputKind.HEATMAP]) == 1


@pytest.mark.parametrize("spacing", [None, [0, 0], [0.2, 0.3]])
def test_no_spacing_is_claimed_that_the_film_does_not_have(site: Site, spacing: list[float] | None) -> None:
    dataset = built(site, site.film(PixelSpacing=spacing))
    measures = dataset.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
    found = measures[0].get("PixelSpacing") if measures else None
    assert (None if found is None else [float(value) for value in found]) == (
        spacing if spacing == [0.2, 0.3] else None
    )
    assert "FrameOfReferenceUID" not in dataset
