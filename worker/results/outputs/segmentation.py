"""A result's regions as DICOM Segmentation (PS3.3 A.51): binary, one segment per region."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from schema.codes import ANATOMICAL_STRUCTURE, ARTIFICIAL_INTELLIGENCE, region_code
from schema.outputs import OutputKind
from schema.regions import RegionDefinition
from worker import __version__
from worker.film.geometry import to_film_grid
from worker.results.outputs.coding import concept, item_of
from worker.results.outputs.equipment import EQUIPMENT, MANUFACTURER, SERIES, engine_words
from worker.results.outputs.identifiers import ResultIdentifiers
from worker.results.outputs.source import Source
from worker.results.outputs.stored import StoredResult

KIND = OutputKind.SEGMENTATION


def build_segmentation(result: StoredResult, source: Source, identifiers: ResultIdentifiers) -> Dataset | None:
    """The segmentation on the film's own grid, None for a result without one.

    Segments are numbered from 1 in the order of the bundle's values; a region without a pixel has an empty
    frame, so that segment and frame numbers are the same for every film of a bundle.
    """
    from highdicom.seg import Segmentation, SegmentationTypeValues

    if result.labels is None:
        return None
    masks = result.masks(to_film_grid(result.labels, result.geometry))
    number, description = SERIES[KIND]
    reference = source.reference(result.geometry)
    dataset = Segmentation(
        source_images=[reference],
        pixel_array=masks[np.newaxis],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _segment(place, region, result, identifiers) for place, region in enumerate(result.foreground, start=1)
        ],
        series_instance_uid=identifiers.series(KIND),
        series_number=number,
        series_description=description,
        sop_instance_uid=identifiers.instance(KIND),
        instance_number=1,
        device_serial_number=__version__,
        content_label="CHEST_REGIONS",
        content_description="Regions of a chest radiograph, research use",
        content_creator_name=f"{MANUFACTURER}^",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
        **EQUIPMENT,
    )
    # Type 2C: a planar source has no image orientation that would stand for it.
    dataset.PatientOrientation = list(source.orientation)
    _fix_dimension_uids(dataset, identifiers.inner(KIND, "dimensions"))
    source.stamp(dataset)
    return dataset


def segment_number(result: StoredResult, region: str) -> int:
    """The number a region's segment has."""
    return [known.name for known in result.foreground].index(region) + 1


def _segment(number: int, region: RegionDefinition, result: StoredResult, identifiers: ResultIdentifiers) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

    code = region_code(region.name)
    description = SegmentDescription(
        segment_number=number,
        segment_label=region.title,
        segmented_property_category=concept(ANATOMICAL_STRUCTURE),
        segmented_property_type=concept(code.structure),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=result.bundle,
            version=result.bundle_version,
            family=concept(ARTIFICIAL_INTELLIGENCE),
            source=MANUFACTURER,
            parameters={**engine_words(result.engine), "revision": str(result.revision)},
        ),
        tracking_uid=identifiers.inner(KIND, region.name),
        tracking_id=region.name,
        display_color=CIELabColor.from_rgb(*region.colour),
    )
    if code.laterality is not None:
        # The modifier belongs inside the item of the type (PS3.3 C.8.20.4).
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [item_of(code.laterality)]
    return description


def _fix_dimension_uids(dataset: Dataset, uid: str) -> None:
    """highdicom draws this UID at random; the same result must be the same object."""
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
