"""A film's regions as label values on the network's grid, or as bits where they may overlap.

A bit field is uint8 like a label map and moves like one: bit r is set where the r-th of the wanted regions is, r from
1 to 7. The first, background, has no bit of its own: it is where none is set. A region that joins others (lungs,
clavicles: :data:`schema.regions.MERGED`) is where any of its parts is. In a label map a pixel of several regions
belongs to the last of them in the order wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from schema.regions import REGIONS, Region, parts_of
from trainer.annotation_files import PictureAnnotation, read_annotations
from trainer.data.images import Steps, stored_grey
from trainer.data.records import EIGHT, LUNGS, TRUTH_REGIONS, FilmRecord, tells
from trainer.derive_regions import derive_regions
from trainer.errors import DataError
from trainer.polygons import label_map
from worker.film.geometry import flipped
from worker.film.prepared import Geometry

LabelMap = npt.NDArray[np.uint8]

_BRIGHT = 128
_FRAGMENT = 0.1  # of the largest piece's area
#: What the label values of drawn shapes mean.
_DRAWN: tuple[str, ...] = tuple(str(region.name) for region in REGIONS)


def read_labels(
    record: FilmRecord, geometry: Geometry, regions: Sequence[str], *, overlapping: bool = False
) -> tuple[LabelMap, str]:
    """A film's truth on the film's own grid, turned as the picture was turned.

    Five kinds of file: ``label_map``, a grey PNG or TIFF whose values are the regions; ``lungs``, a grey picture
    that is bright (128 or more) where lung is, from which further regions are derived when they are wanted
    (:mod:`trainer.derive_regions`); ``masks``, a grey PNG, TIFF or GIF for each region, bright where it is, of the
    film's size or of one in proportion to it (SCR's are half as large as the films); ``labelme`` and ``coco``, drawn
    outlines or regions (:mod:`trainer.polygons`).

    Parameters
    ----------
    record
        Has a truth that is not a phantom's.
    geometry
        Of the film's stored picture, which the truth was drawn on.
    regions
        Names of the label values wanted. Regions of the truth that are not wanted become background.
    overlapping
        Whether a bit field is wanted, of eight regions at most, instead of a label map.

    Returns
    -------
    uint8 (rows, columns), and what had to be decided about it, ``""`` when nothing.

    Raises
    ------
    DataError
        Unreadable, of another size than the film, or with values outside its set; the message has no film name.
    """
    note = ""
    names = TRUTH_REGIONS.get(record.truth_kind) or record.truth_regions or tuple(regions)
    drawn: npt.NDArray[np.unsignedinteger]
    try:
        if record.truth_kind == "masks":
            bits = _masks(record, geometry, regions)
            told = bits.astype(np.uint8) if overlapping else flattened(bits, len(regions))
            return np.ascontiguousarray(flipped(told, geometry)), note
        if record.truth_kind in ("labelme", "coco"):
            names, drawn = _DRAWN, _drawn(record, geometry)
        else:
            assert record.truth is not None
            drawn = _stored(record.truth)
            _same_size(record.truth, drawn.shape, geometry)
            if record.truth_kind == "lungs":
                drawn, note = split_lungs(drawn >= _BRIGHT)
                if not all(tells(LUNGS, region) for region in regions):
                    names, drawn = EIGHT, derive_regions(np.asarray(drawn, np.uint8))
    except OSError as error:
        file = record.truth or error.filename
        raise DataError(f"its truth {file} cannot be read: {error.strerror or type(error).__name__}") from None
    outside = [int(value) for value in np.unique(drawn) if value >= len(names)]
    if outside:
        raise DataError(
            f"its label map {record.truth} has the values {', '.join(map(str, outside))}, outside the set "
            f"0 to {len(names) - 1} ({', '.join(names)})"
        )
    turned = (as_bits if overlapping else renamed)(np.asarray(drawn, np.uint8), names, regions)
    return np.ascontiguousarray(flipped(turned, geometry)), note


def renamed(labels: LabelMap, names: Sequence[str], regions: Sequence[str]) -> LabelMap:
    """Label values that mean ``names`` turned into those that mean ``regions``; the others become background (0)."""
    table = np.zeros(256, np.uint8)
    for value, name in enumerate(names):
        table[value] = max(_places(name, regions), default=0)
    return np.asarray(table[labels], np.uint8)


def as_bits(labels: LabelMap, names: Sequence[str], regions: Sequence[str]) -> LabelMap:
    """Label values that mean ``names`` as a bit field of ``regions``, eight at most; the others set no bit."""
    table = np.zeros(256, np.uint8)
    for value, name in enumerate(names):
        table[value] = sum(1 << place for place in _places(name, regions) if place)
    return np.asarray(table[labels], np.uint8)


def flattened(bits: npt.NDArray[np.unsignedinteger], regions: int) -> LabelMap:
    """A bit field of so many regions as a label map: where several lie over each other, the last one is seen."""
    labels = np.zeros(bits.shape, np.uint8)
    for place in range(1, regions):
        labels[bits >> place & 1 > 0] = place
    return labels


def _places(name: str, regions: Sequence[str]) -> list[int]:
    """Which of ``regions`` are ``name``, or hold it."""
    return [place for place, region in enumerate(regions) if name == region or name in parts_of(region)]


def to_network_grid(labels: LabelMap, steps: Steps) -> LabelMap:
    """A label map laid under the network's picture: every ``resize`` step done as the picture's.

    Nearest neighbour, in OpenCV's exact form: ``INTER_NEAREST`` takes the pixel left and above of the centre, which
    shifts regions by half a pixel when enlarging and disagrees with :func:`worker.film.geometry.to_film_grid` on the
    way back.

    Parameters
    ----------
    labels
        uint8 (rows, columns) on the film's grid, already turned as the picture was.
    steps
        Preprocessing as in :mod:`worker.film.preprocess`.

    Returns
    -------
    uint8 (height, width).
    """
    for step in steps:
        if step["step"] != "resize":
            continue
        size = (step["width"], step["height"])
        labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    return labels


def split_lungs(lungs: npt.NDArray[np.bool_]) -> tuple[LabelMap, str]:
    """Tell left from right in a mask of both lungs: the patient's right lung is on the image's left.

    Two pieces are told apart by their centroids' columns. Further pieces below a tenth of the largest go to the
    lung whose centroid is nearer. A single piece is one lung when it lies on one side of the picture, and both
    grown together when its box crosses the middle with at least a quarter on either side: then it is cut at the
    column with the least lung between the box's thirds. Three large pieces are refused.

    Parameters
    ----------
    lungs
        bool (rows, columns).

    Returns
    -------
    uint8 (rows, columns) with the values of :data:`trainer.data.records.LUNGS`, and what was not two pieces, in words.

    Raises
    ------
    DataError
        No lung, or three and more large pieces.
    """
    count, pieces, statistics, centroids = cv2.connectedComponentsWithStats(lungs.view(np.uint8), connectivity=8)
    order = 1 + np.argsort(-statistics[1:, cv2.CC_STAT_AREA], kind="stable")
    if count == 1:
        raise DataError("its lung mask is empty")
    areas = statistics[order, cv2.CC_STAT_AREA]
    large = [int(piece) for piece, area in zip(order, areas, strict=True) if area >= _FRAGMENT * areas[0]]
    if len(large) > 2:
        raise DataError(f"its lung mask has {len(large)} large pieces where two lungs are expected")
    left, right = (LUNGS.index(region) for region in (Region.LEFT_LUNG, Region.RIGHT_LUNG))
    if len(large) == 1:
        return _single(lungs, statistics[large[0]], left, right)
    columns = centroids[:, 0]
    seeds = sorted(large, key=lambda piece: columns[piece])
    table = np.zeros(count, np.uint8)
    for piece in range(1, count):
        nearer_right = abs(columns[piece] - columns[seeds[0]]) <= abs(columns[piece] - columns[seeds[1]])
        table[piece] = right if nearer_right else left
    note = "" if count == 3 else f"{count - 1} pieces; the small ones went to the nearer lung"
    return np.asarray(table[pieces], np.uint8), note


def _single(lungs: npt.NDArray[np.bool_], box: npt.NDArray[np.int32], left: int, right: int) -> tuple[LabelMap, str]:
    first, width = int(box[cv2.CC_STAT_LEFT]), int(box[cv2.CC_STAT_WIDTH])
    middle = lungs.shape[1] / 2
    if min(middle - first, first + width - middle) < width / 4:
        side, word = (right, "right") if first + width / 2 < middle else (left, "left")
        return np.where(lungs, np.uint8(side), np.uint8(0)), f"one piece, taken for the {word} lung alone"
    between = slice(first + width // 3, first + width - width // 3)
    cut = between.start + int(lungs[:, between].sum(axis=0).argmin())
    labels = np.where(lungs, np.uint8(left), np.uint8(0))
    labels[:, :cut][lungs[:, :cut]] = right
    return labels, f"one piece, cut into two lungs at column {cut}"


def _stored(path: Path) -> npt.NDArray[np.unsignedinteger]:
    try:
        return stored_grey(path)
    except DataError as error:
        raise DataError(f"its truth {path} is unusable: {error}") from None


def _masks(record: FilmRecord, geometry: Geometry, regions: Sequence[str]) -> npt.NDArray[np.uint16]:
    """A bit for each of ``regions``, on the film's grid."""
    film = (geometry.film_rows, geometry.film_columns)
    bits = np.zeros(film, np.uint16)
    for name, path in record.masks.items():
        if not (places := _places(name, regions)):
            continue
        mask = (_stored(path) >= _BRIGHT).astype(np.uint8)
        if mask.shape != film:
            # In proportion: of sides that no whole number relates, each may be off by less than a pixel.
            if abs(mask.shape[0] * film[1] - mask.shape[1] * film[0]) >= max(film):
                _same_size(path, mask.shape, geometry)
            mask = np.asarray(cv2.resize(mask, film[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
        bits |= mask.astype(np.uint16) * np.uint16(sum(1 << place for place in places if place))
    return bits


def _drawn(record: FilmRecord, geometry: Geometry) -> LabelMap:
    assert record.truth is not None and record.image is not None
    annotations = _annotations(record.truth, record.truth.stat().st_mtime_ns)
    if record.truth_kind == "labelme":
        annotation = next(iter(annotations.values()))
    elif record.image.name in annotations:
        annotation = annotations[record.image.name]
    else:
        raise DataError(f"{record.truth} has no picture {record.image.name}: annotate it, or see truth.when")
    _same_size(record.truth, annotation.size, geometry)
    return label_map(annotation, record.truth_labels)


@lru_cache(maxsize=1)
def _annotations(path: Path, _changed_ns: int) -> Mapping[str, PictureAnnotation]:
    """One COCO file holds all films."""
    return read_annotations(path)


def _same_size(truth: Path, shape: tuple[int, ...], geometry: Geometry) -> None:
    film = (geometry.film_rows, geometry.film_columns)
    if shape != film:
        raise DataError(
            f"size mismatch: the film is {film[0]} x {film[1]} pixels (rows x columns), "
            f"its truth {truth} {shape[0]} x {shape[1]}"
        )
