"""Annotations as people draw them, from LabelMe and COCO files: outlines to compose, or regions as they are.

A data set comes in one of two ways, told apart by whether ``thorax_bottom`` is drawn:

* **Boundaries** as in Holste et al., section 2.1 (:func:`drawn_outlines`): ``left_lung`` and
  ``right_lung``, ``spine`` (one outline, or its two edges as lines of the same name), the line
  ``thorax_bottom`` and one point ``carina``. :mod:`trainer.compose_regions` makes regions of them.
* **Regions** (:func:`region_map`): each shape is named after a region of :mod:`schema.regions` and covers its pixels.
  Where shapes overlap the one further down this list is seen: subdiaphragms, mediastinum, heart, spine, lungs,
  clavicles, carina (a point becomes the same disc as above), background (which cuts out, as a collimator does).

Other names are translated by a table given along (label → outline or region, ``""`` to leave a
label out); capitals, spaces and hyphens do not matter. What is still unknown is refused.

The files themselves are read by :mod:`trainer.annotation_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from schema.regions import MERGED, REGION_BY_NAME, Region
from trainer.annotation_files import DrawnShape, PictureAnnotation, read_annotations
from trainer.compose_regions import ComposeSettings, LabelMap, compose_regions
from trainer.errors import DataError
from trainer.outlines import DrawnOutlines, Mask, carina_disc, fill_polygon
from trainer.recipe import nearest

THORAX_BOTTOM = "thorax_bottom"
#: What :func:`drawn_outlines` needs.
OUTLINES: tuple[str, ...] = (Region.LEFT_LUNG, Region.RIGHT_LUNG, Region.SPINE, THORAX_BOTTOM, Region.CARINA)

_KNOWN = (*(str(name) for name in REGION_BY_NAME if name not in MERGED), THORAX_BOTTOM)
#: Later ones are painted over earlier ones, as in :func:`trainer.compose_regions.compose_regions`.
_PAINTED = (
    Region.RIGHT_SUBDIAPHRAGM,
    Region.LEFT_SUBDIAPHRAGM,
    Region.MEDIASTINUM,
    Region.HEART,
    Region.SPINE,
    Region.RIGHT_LUNG,
    Region.LEFT_LUNG,
    Region.RIGHT_CLAVICLE,
    Region.LEFT_CLAVICLE,
    Region.CARINA,
    Region.BACKGROUND,
)


def read_outlines(source: Path, names: Mapping[str, str] | None = None) -> dict[str, DrawnOutlines]:
    """The drawn boundaries of every picture by its file name; raises as the functions it joins."""
    return {picture: drawn_outlines(found, names) for picture, found in read_annotations(source).items()}


def label_map(
    annotation: PictureAnnotation, names: Mapping[str, str] | None = None, settings: ComposeSettings | None = None
) -> LabelMap:
    """The picture's label map, composed from boundaries or painted from regions, whichever was drawn.

    Returns uint8 of ``annotation.size`` with the values of :data:`schema.regions.REGIONS`.
    """
    if THORAX_BOTTOM in _by_name(annotation, names):
        return compose_regions(annotation.size, drawn_outlines(annotation, names), settings)
    return region_map(annotation, names)


def drawn_outlines(annotation: PictureAnnotation, names: Mapping[str, str] | None = None) -> DrawnOutlines:
    """The boundaries of one picture.

    Lungs and the spine may be polygons, lines (which are closed) or masks; a carina that is no point
    is taken at its centre.

    Raises
    ------
    DataError
        A label is unknown or no outline, or an outline is missing, drawn twice or of the wrong kind.
    """
    drawn = _by_name(annotation, names)
    for name in drawn:
        if name not in OUTLINES:
            raise DataError(
                f"{annotation.where}: {name} is a region, but {THORAX_BOTTOM} is drawn; "
                "draw either boundaries or regions."
            )
    missing = [name for name in OUTLINES if name not in drawn]
    if missing:
        raise DataError(f"{annotation.where}: {', '.join(missing)} not drawn; draw it or leave the picture out.")
    for name, shapes in drawn.items():
        allowed = 2 if name == Region.SPINE else 1
        if len(shapes) > allowed:
            raise DataError(f"{annotation.where}: {name} is drawn {len(shapes)} times; keep {allowed}.")
        if name != Region.CARINA and any(len(shape.points) < 2 for shape in shapes):
            raise DataError(f"{annotation.where}: {name} is a point; draw it as a line or polygon.")
    if len(drawn[Region.SPINE]) == 2 and any(shape.closed for shape in drawn[Region.SPINE]):
        raise DataError(f"{annotation.where}: spine is drawn 2 times; draw one polygon, or its two edges as lines.")
    x, y = _centre(drawn[Region.CARINA][0])
    return DrawnOutlines(
        name=annotation.where,
        left_lung=drawn[Region.LEFT_LUNG][0].points,
        right_lung=drawn[Region.RIGHT_LUNG][0].points,
        spine=tuple(shape.points for shape in drawn[Region.SPINE]),
        thorax_bottom=drawn[THORAX_BOTTOM][0].points,
        carina=(float(x), float(y)),
    )


def region_map(annotation: PictureAnnotation, names: Mapping[str, str] | None = None) -> LabelMap:
    """The regions of one picture as they were drawn, uint8 of ``annotation.size``; undrawn pixels are background.

    A region may have several shapes.

    Raises
    ------
    DataError
        A label is unknown or no region, a shape is a line or covers nothing, or nothing is drawn.
    """
    drawn = _by_name(annotation, names)
    if THORAX_BOTTOM in drawn:
        raise DataError(
            f"{annotation.where}: {THORAX_BOTTOM} is a boundary, not a region; compose the regions instead."
        )
    if not drawn:
        raise DataError(f"{annotation.where}: nothing is drawn; draw the regions or leave the picture out.")
    labels = np.zeros(annotation.size, np.uint8)
    for region in _PAINTED:
        for shape in drawn.get(region, ()):
            covered = _covered(shape, region, annotation)
            if not covered.any():
                raise DataError(f"{annotation.where}: a shape of {region} covers no pixel; draw it again or delete it.")
            labels[covered] = REGION_BY_NAME[region].value
    return labels


def _covered(shape: DrawnShape, region: str, annotation: PictureAnnotation) -> Mask:
    if shape.mask is not None:
        return shape.mask
    if len(shape.points) == 1 and region == Region.CARINA:
        return carina_disc(annotation.size, _centre(shape), ComposeSettings().carina_radius)
    if not shape.closed:
        raise DataError(f"{annotation.where}: {region} is drawn as a line or point; draw it as a polygon.")
    return fill_polygon(annotation.size, shape.points)


def _centre(shape: DrawnShape) -> tuple[float, float]:
    """The middle of the smallest upright box around it: the point itself, the middle of a circle."""
    x, y = (shape.points.min(axis=0) + shape.points.max(axis=0)) / 2
    return float(x), float(y)


# Names


def _by_name(annotation: PictureAnnotation, names: Mapping[str, str] | None) -> dict[str, list[DrawnShape]]:
    """Shapes by outline or region, in the order drawn."""
    table = {name: name for name in _KNOWN}
    for label, name in (names or {}).items():
        if name and name not in _KNOWN:
            raise DataError(f"The label {label!r} cannot stand for {name!r}{nearest(name, _KNOWN)}.")
        table[_plain(label)] = name
    drawn: dict[str, list[DrawnShape]] = {}
    for shape in annotation.shapes:
        label = _plain(shape.label)
        if label not in table:
            raise DataError(f"{annotation.where}: unknown label {shape.label!r}{nearest(label, table)}.")
        if table[label]:
            drawn.setdefault(table[label], []).append(shape)
    return drawn


def _plain(label: str) -> str:
    return label.strip().lower().replace(" ", "_").replace("-", "_")
