"""Size, place and pieces of every region of a label map: what measurements and flags read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from schema.regions import RegionDefinition
from worker.results.result import LabelMap

#: Pixels that touch at a corner belong together: thin and oblique regions stay whole.
CONNECTIVITY = 8


@dataclass(frozen=True)
class RegionShape:
    """One region on one map.

    ``area`` is in pixels, ``components`` counts 8-connected pieces. ``centroid`` is (row,
    column) as fractions of the grid (0-1) and ``box`` (top, left, bottom, right) in pixels,
    bottom and right exclusive; both are None for an empty region.
    """

    area: int
    components: int
    centroid: tuple[float, float] | None
    box: tuple[int, int, int, int] | None


EMPTY = RegionShape(0, 0, None, None)


def shapes_of(label_map: LabelMap, regions: Sequence[RegionDefinition]) -> dict[str, RegionShape]:
    """The shape of each region by name; ``label_map`` is uint8 of shape (height, width)."""
    return {region.name: shape_of(label_map, region.value) for region in regions}


def shape_of(label_map: LabelMap, value: int) -> RegionShape:
    """The shape of one label value."""
    mask = (label_map == value).view(np.uint8)
    left, top, width, height = cv2.boundingRect(mask)
    if width == 0:
        return EMPTY
    part = np.ascontiguousarray(mask[top : top + height, left : left + width])
    count, _, statistics, centroids = cv2.connectedComponentsWithStats(part, connectivity=CONNECTIVITY)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    area = int(areas.sum())
    column, row = areas @ centroids[1:] / area
    return RegionShape(
        area=area,
        components=count - 1,
        centroid=(
            float((top + row + 0.5) / label_map.shape[0]),
            float((left + column + 0.5) / label_map.shape[1]),
        ),
        box=(top, left, top + height, left + width),
    )
