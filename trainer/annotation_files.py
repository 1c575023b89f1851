"""Annotation files as neutral shapes: LabelMe and COCO.

**LabelMe**: one file per picture. ``polygon``, ``rectangle``, ``circle``, ``line``, ``linestrip`` and
``point`` are read. **COCO** (instances): polygons and both kinds of run lengths; ``keypoints`` are points of
their own names. COCO knows no open lines: a ``thorax_bottom`` polygon is read as the line through
its points in their order.

What a shape's label means is decided in :mod:`trainer.polygons`. Coordinates are those of :mod:`trainer.outlines`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.errors import DataError
from trainer.outlines import Mask, Points, far_outside
from trainer.recipe import nearest

_LARGEST_SIDE = 1 << 15


@dataclass(frozen=True)
class DrawnShape:
    """One shape: ``points`` are (N, 2) of (x, y), a single one being a point; a COCO mask has ``mask`` as well.

    ``closed`` tells a polygon from a line.
    """

    label: str
    points: Points
    closed: bool
    mask: Mask | None = None


@dataclass(frozen=True)
class PictureAnnotation:
    """All shapes of one picture; ``where`` names file and picture in errors, ``size`` is (rows, columns)."""

    picture: str
    where: str
    size: tuple[int, int]
    shapes: tuple[DrawnShape, ...]


def read_annotations(source: Path) -> dict[str, PictureAnnotation]:
    """Every annotated picture by its file name (without folder).

    ``source`` is a folder of LabelMe files (``*.json``), one such file, or a COCO file.

    Raises
    ------
    DataError
        No annotation is there, a file is neither LabelMe nor COCO or is damaged, a picture is annotated twice.
    """
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source}: there is no *.json file in this folder; name a folder of LabelMe files.")
    found: dict[str, PictureAnnotation] = {}
    for file in files:
        for annotation in _read(file):
            if annotation.picture in found:
                first = found[annotation.picture].where
                raise DataError(f"{annotation.where}: the picture is annotated in {first} already; keep one of them.")
            found[annotation.picture] = annotation
    return found


# What the files hold


class _Json(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class _LabelMeShape(_Json):
    label: str
    points: list[tuple[float, float]] = Field(min_length=1)
    shape_type: str = "polygon"


class _LabelMe(_Json):
    shapes: list[_LabelMeShape]
    imagePath: str = Field(min_length=1)  # noqa: N815
    imageHeight: int = Field(ge=1, le=_LARGEST_SIDE)  # noqa: N815
    imageWidth: int = Field(ge=1, le=_LARGEST_SIDE)  # noqa: N815


class _CocoImage(_Json):
    id: int | str
    file_name: str = Field(min_length=1)
    height: int = Field(ge=1, le=_LARGEST_SIDE)
    width: int = Field(ge=1, le=_LARGEST_SIDE)


class _CocoCategory(_Json):
    id: int | str
    name: str
    keypoints: list[str] = []


class _RunLengths(_Json):
    size: tuple[int, int]
    counts: list[int] | str


class _CocoAnnotation(_Json):
    image_id: int | str
    category_id: int | str
    segmentation: _RunLengths | list[list[float]] = []
    keypoints: list[float] = []


class _Coco(_Json):
    images: list[_CocoImage]
    annotations: list[_CocoAnnotation]
    categories: list[_CocoCategory]


class _Kind(_Json):
    """What a file has decides what it is."""

    shapes: Any = None
    annotations: Any = None


def _read(file: Path) -> Iterable[PictureAnnotation]:
    try:
        content = file.read_bytes()
        kind = _Kind.model_validate_json(content)
        if kind.shapes is not None:
            return [_from_labelme(file.name, _LabelMe.model_validate_json(content))]
        if kind.annotations is not None:
            return _from_coco(file.name, _Coco.model_validate_json(content))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise DataError(
            f"{file}: {place + ': ' if place else ''}{problem['msg']}; export the annotation again."
        ) from None
    raise DataError(f"{file}: neither a LabelMe file (no shapes) nor a COCO file (no annotations).")


def _corners(points: Points) -> Points:
    (left, top), (right, bottom) = points[0], points[-1]
    return np.asarray([[left, top], [right, top], [right, bottom], [left, bottom]])


def _ring(points: Points) -> Points:
    """LabelMe writes a circle as its centre and a point on it."""
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.asarray(points[0] + np.hypot(*(points[-1] - points[0])) * np.stack([np.cos(turn), np.sin(turn)], axis=1))


#: LabelMe's shape types: whether closed, and how its points become the line's.
_LABELME: dict[str, tuple[bool, Callable[[Points], Points]]] = {
    "polygon": (True, np.asarray),
    "rectangle": (True, _corners),
    "circle": (True, _ring),
    "line": (False, np.asarray),
    "linestrip": (False, np.asarray),
    "point": (False, np.asarray),
}


def _from_labelme(where: str, file: _LabelMe) -> PictureAnnotation:
    size = (file.imageHeight, file.imageWidth)
    shapes = []
    for shape in file.shapes:
        if shape.shape_type not in _LABELME:
            raise DataError(
                f"{where}: {shape.label} is a {shape.shape_type!r} shape{nearest(shape.shape_type, _LABELME)}."
            )
        closed, line_of = _LABELME[shape.shape_type]
        points = _checked(np.asarray(shape.points, np.float64), size, shape.label, where)
        shapes.append(DrawnShape(shape.label, line_of(points), closed))
    # LabelMe on Windows writes backslashes; this class splits at both kinds.
    return PictureAnnotation(PureWindowsPath(file.imagePath).name, where, size, tuple(shapes))


def _from_coco(where: str, file: _Coco) -> list[PictureAnnotation]:
    categories = {category.id: category for category in file.categories}
    drawn: dict[int | str, list[DrawnShape]] = {image.id: [] for image in file.images}
    places = {image.id: (f"{where}, {image.file_name}", (image.height, image.width)) for image in file.images}
    for annotation in file.annotations:
        if annotation.image_id not in drawn or annotation.category_id not in categories:
            what = "image_id" if annotation.image_id not in drawn else "category_id"
            raise DataError(f"{where}: an annotation has the {what} {getattr(annotation, what)}, which is not listed.")
        shapes = _coco_shapes(annotation, categories[annotation.category_id], *places[annotation.image_id])
        drawn[annotation.image_id] += shapes
    return [
        PictureAnnotation(PureWindowsPath(image.file_name).name, *places[image.id], tuple(drawn[image.id]))
        for image in file.images
    ]


def _coco_shapes(
    annotation: _CocoAnnotation, category: _CocoCategory, where: str, size: tuple[int, int]
) -> list[DrawnShape]:
    shapes = []
    if isinstance(annotation.segmentation, _RunLengths):
        mask = _decoded(annotation.segmentation, size, category.name, where)
        shapes.append(DrawnShape(category.name, _outline(mask, category.name, where), True, mask))
    else:
        for part in annotation.segmentation:
            if len(part) < 4 or len(part) % 2:
                raise DataError(f"{where}: a polygon of {category.name} is not a list of x, y pairs.")
            points = _checked(np.asarray(part, np.float64).reshape(-1, 2), size, category.name, where)
            shapes.append(DrawnShape(category.name, points, True))
    if not annotation.keypoints:
        return shapes
    if len(annotation.keypoints) != 3 * len(category.keypoints):
        raise DataError(f"{where}: {category.name} has other keypoints than its category lists.")
    for name, (x, y, visible) in zip(category.keypoints, np.reshape(annotation.keypoints, (-1, 3)), strict=True):
        if visible:
            shapes.append(DrawnShape(name, _checked(np.asarray([[x, y]]), size, name, where), False))
    return shapes


def _checked(points: Points, size: tuple[int, int], label: str, where: str) -> Points:
    if far_outside(points, size):
        raise DataError(f"{where}: {label} has points far outside the picture of {size[1]} x {size[0]} pixels.")
    return points


def _decoded(runs: _RunLengths, size: tuple[int, int], label: str, where: str) -> Mask:
    """COCO run lengths, column by column, beginning with what lies outside."""
    counts = runs.counts if isinstance(runs.counts, list) else _unpacked(runs.counts)
    if runs.size != size or min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        raise DataError(f"{where}: the run lengths of {label} do not fill the picture of {size[1]} x {size[0]} pixels.")
    inside: npt.NDArray[np.bool_] = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(size[1], size[0]).T)


def _unpacked(text: str) -> list[int]:
    """COCO's compressed counts: five bits a character, low ones first; from the fourth on less the one two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts


def _outline(mask: Mask, label: str, where: str) -> Points:
    """The outline of the mask's largest piece, a quarter of a pixel inside its pixels' edges."""
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        raise DataError(f"{where}: the mask of {label} is empty; draw it again or delete it.")
    return (max(contours, key=cv2.contourArea)[:, 0].astype(np.float64) + 0.5) / 2
