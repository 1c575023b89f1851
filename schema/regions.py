"""Anatomical regions of a chest radiograph and their label values.

Eight classes of Holste et al., section 2.1. Left and right are the patient's.
A region set is data: post-processing, flags, report and exports read it and
never name a region themselves unless a rule of the paper does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Region(StrEnum):
    """A region's name as used in the database and in bundles."""

    BACKGROUND = "background"
    LEFT_LUNG = "left_lung"
    RIGHT_LUNG = "right_lung"
    LEFT_SUBDIAPHRAGM = "left_subdiaphragm"
    RIGHT_SUBDIAPHRAGM = "right_subdiaphragm"
    SPINE = "spine"
    MEDIASTINUM = "mediastinum"
    CARINA = "carina"


#: Left and right as the patient has them.
LUNGS = (Region.LEFT_LUNG, Region.RIGHT_LUNG)


@dataclass(frozen=True)
class RegionDefinition:
    """One label value.

    ``value`` is the number in a label map (0-255); ``colour`` is sRGB for overlays.
    """

    value: int
    name: str
    title: str
    colour: tuple[int, int, int]


#: The label values scripts may rely on.
HOLSTE_REGIONS: tuple[RegionDefinition, ...] = (
    RegionDefinition(0, Region.BACKGROUND, "Background", (0, 0, 0)),
    RegionDefinition(1, Region.LEFT_LUNG, "Left lung", (86, 180, 233)),
    RegionDefinition(2, Region.RIGHT_LUNG, "Right lung", (0, 114, 178)),
    RegionDefinition(3, Region.LEFT_SUBDIAPHRAGM, "Left subdiaphragm", (230, 159, 0)),
    RegionDefinition(4, Region.RIGHT_SUBDIAPHRAGM, "Right subdiaphragm", (213, 94, 0)),
    RegionDefinition(5, Region.SPINE, "Spine", (0, 158, 115)),
    RegionDefinition(6, Region.MEDIASTINUM, "Mediastinum", (204, 121, 167)),
    RegionDefinition(7, Region.CARINA, "Carina", (240, 228, 66)),
)

REGION_BY_NAME: dict[str, RegionDefinition] = {region.name: region for region in HOLSTE_REGIONS}
