"""Anatomical regions of a chest radiograph and their label values.

Eight classes of Holste et al., section 2.1, those of the SCR database (van Ginneken et al. 2006: lungs, heart and
clavicles), and classes that join two of these (Novikov et al., section III-A). Left and right are the patient's.
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
    HEART = "heart"
    LEFT_CLAVICLE = "left_clavicle"
    RIGHT_CLAVICLE = "right_clavicle"
    LUNGS = "lungs"
    CLAVICLES = "clavicles"


#: Left and right as the patient has them.
LUNGS = (Region.LEFT_LUNG, Region.RIGHT_LUNG)

#: Region → the regions it is made of, where it is made of several.
MERGED: dict[str, tuple[str, ...]] = {
    Region.LUNGS: LUNGS,
    Region.CLAVICLES: (Region.LEFT_CLAVICLE, Region.RIGHT_CLAVICLE),
}


@dataclass(frozen=True)
class RegionDefinition:
    """One label value.

    ``value`` is the number in a label map (0-255); ``colour`` is sRGB for overlays.
    """

    value: int
    name: str
    title: str
    colour: tuple[int, int, int]


#: Every region by the label value it has in exported files, whatever bundle found it: scripts may rely on them.
REGIONS: tuple[RegionDefinition, ...] = (
    RegionDefinition(0, Region.BACKGROUND, "Background", (0, 0, 0)),
    RegionDefinition(1, Region.LEFT_LUNG, "Left lung", (86, 180, 233)),
    RegionDefinition(2, Region.RIGHT_LUNG, "Right lung", (0, 114, 178)),
    RegionDefinition(3, Region.LEFT_SUBDIAPHRAGM, "Left subdiaphragm", (230, 159, 0)),
    RegionDefinition(4, Region.RIGHT_SUBDIAPHRAGM, "Right subdiaphragm", (213, 94, 0)),
    RegionDefinition(5, Region.SPINE, "Spine", (0, 158, 115)),
    RegionDefinition(6, Region.MEDIASTINUM, "Mediastinum", (204, 121, 167)),
    RegionDefinition(7, Region.CARINA, "Carina", (240, 228, 66)),
    RegionDefinition(8, Region.HEART, "Heart", (220, 38, 127)),
    RegionDefinition(9, Region.LEFT_CLAVICLE, "Left clavicle", (255, 194, 10)),
    RegionDefinition(10, Region.RIGHT_CLAVICLE, "Right clavicle", (254, 97, 0)),
    RegionDefinition(11, Region.LUNGS, "Lungs", (100, 143, 255)),
    RegionDefinition(12, Region.CLAVICLES, "Clavicles", (255, 176, 0)),
)

#: The eight of Holste et al.
HOLSTE_REGIONS = REGIONS[:8]

REGION_BY_NAME: dict[str, RegionDefinition] = {region.name: region for region in REGIONS}

#: Region sets by name, as ``data.regions`` of a recipe may ask for them. Where a pixel can be of one region only, the
#: later ones lie over the earlier: the clavicles over the lungs, as Novikov et al. have it in their second truth.
REGION_SETS: dict[str, tuple[str, ...]] = {
    "holste": tuple(region.name for region in HOLSTE_REGIONS),
    "lungs": (Region.BACKGROUND, *LUNGS),
    "scr": (Region.BACKGROUND, *LUNGS, Region.HEART, Region.LEFT_CLAVICLE, Region.RIGHT_CLAVICLE),
    "novikov": (Region.BACKGROUND, Region.LUNGS, Region.HEART, Region.CLAVICLES),
}


def parts_of(region: str) -> tuple[str, ...]:
    """What a region is made of: itself, where it joins no others."""
    return MERGED.get(region, (region,))


def is_lung(region: str) -> bool:
    """Whether a region is a lung, or both."""
    return {*parts_of(region)} <= {*LUNGS}
