"""Numbers about each region of the cleaned map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from schema.regions import RegionDefinition
from worker.film.prepared import Geometry
from worker.findings.shapes import shapes_of
from worker.results.result import Measurement, Segmentation

#: Spacings from which an area in mm² may be claimed (PS3.3 10.7.1.1). Only a Pixel Spacing
#: that differs from the Imager Pixel Spacing was corrected for magnification or calibrated;
#: all others describe the detector's plane or an unknown one.
TRUSTED_SPACINGS = frozenset({"corrected"})


def measure(
    segmentation: Segmentation,
    probabilities: npt.NDArray[np.float32],
    regions: Sequence[RegionDefinition],
    geometry: Geometry,
) -> list[Measurement]:
    """Measure every region, background included, so that the area fractions add up to 1.

    Parameters
    ----------
    segmentation
        From :func:`worker.findings.postprocess.postprocess`.
    probabilities
        float32 of shape (regions, height, width), in the order of ``regions``.
    regions
        The bundle's regions.
    geometry
        The film's size and spacing. The grid covers the whole film, stretched.

    Returns
    -------
    list of Measurement
        One per region, in their order. ``bounding_box`` is (top, left, bottom, right) in
        pixels of the grid, bottom and right exclusive. ``area_mm2`` refers to the plane for
        which the modality calibrated its spacing.
    """
    cleaned = segmentation.cleaned
    shapes = shapes_of(cleaned, regions)
    square_millimetres = pixel_square_millimetres(geometry, (cleaned.shape[0], cleaned.shape[1]))
    repaired = _repaired_pixels(segmentation)
    measurements = []
    for region, probability in zip(regions, probabilities, strict=True):
        shape = shapes[region.name]
        measurements.append(
            Measurement(
                region=region.name,
                area_pixels=shape.area,
                area_fraction=shape.area / cleaned.size,
                area_mm2=None if square_millimetres is None else shape.area * square_millimetres,
                components=shape.components,
                centroid_row=None if shape.centroid is None else shape.centroid[0],
                centroid_column=None if shape.centroid is None else shape.centroid[1],
                bounding_box=shape.box,
                mean_probability=_mean_inside(cleaned, region.value, probability, shape.box),
                repaired_pixels=int(repaired[region.value]),
            )
        )
    return measurements


def pixel_square_millimetres(geometry: Geometry, grid: tuple[int, int]) -> float | None:
    """Area of one pixel of a (height, width) grid in mm², None unless the spacing can be trusted."""
    if geometry.spacing_source not in TRUSTED_SPACINGS:
        return None
    if geometry.row_spacing is None or geometry.column_spacing is None:
        return None
    film = geometry.film_rows * geometry.row_spacing * geometry.film_columns * geometry.column_spacing
    return film / (grid[0] * grid[1])


def _mean_inside(
    cleaned: npt.NDArray[np.uint8],
    value: int,
    probability: npt.NDArray[np.float32],
    box: tuple[int, int, int, int] | None,
) -> float | None:
    if box is None:
        return None
    window = (slice(box[0], box[2]), slice(box[1], box[3]))
    inside = probability[window][cleaned[window] == value]
    # A mean of float32 probabilities may exceed 1 by rounding.
    return min(1.0, float(inside.mean(dtype=np.float64)))


def _repaired_pixels(segmentation: Segmentation) -> npt.NDArray[np.int64]:
    """Per label value, the pixels post-processing took away from it or gave to it."""
    if segmentation.repaired_pixels == 0:
        return np.zeros(256, np.int64)
    changed = segmentation.raw != segmentation.cleaned
    away = np.bincount(segmentation.raw[changed], minlength=256)
    into = np.bincount(segmentation.cleaned[changed], minlength=256)
    return away + into
