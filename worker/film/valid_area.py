"""Where a stored picture shows a patient: padding, shutter and uniform borders left out.

Whatever is outside would spoil every statistic of the film (extremes, percentiles,
histogram equalisation), so the mask is made before any of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from worker.film import values
from worker.film.elements import Elements
from worker.film.prepared import Observation
from worker.film.stored import StoredPicture

BoolArray = npt.NDArray[np.bool_]

PADDING_VALUE, PADDING_RANGE_LIMIT = 0x00280120, 0x00280121
#: Display shutter (PS3.3 C.7.6.11). The collimator's own attributes are not used: real writers
#: give them in other units than pixels, and what they mask shows as a uniform border.
_SHAPE = 0x00181600
_LEFT, _RIGHT, _UPPER, _LOWER = 0x00181602, 0x00181604, 0x00181606, 0x00181608
_CENTRE, _RADIUS, _VERTICES = 0x00181610, 0x00181612, 0x00181620
_SHUTTER_PARTS = (_LEFT, _RIGHT, _UPPER, _LOWER, _CENTRE, _RADIUS, _VERTICES)
AREA_TAGS = frozenset({PADDING_VALUE, PADDING_RANGE_LIMIT, _SHAPE, *_SHUTTER_PARTS})
#: A shutter that leaves less of the film than this is a writer's error.
_SHUTTER_LEAVES = 0.1

#: A line belongs to a border if its level is this close to the border's first line, and if its
_BORDER_LEVEL = 0.02
#: spread is below this share of the picture's range where that level is the darkest or brightest,
_BORDER_SPREAD = 0.01
#: below this one, as only a drawn border has, at any other level.
_DRAWN_BORDER_SPREAD = 0.002
_BORDER_MOST = 0.4
_BORDER_REPORTED = 0.01


def valid_area(stored: StoredPicture, elements: Elements) -> tuple[BoolArray | None, list[Observation]]:
    """The mask of valid pixels, bool (rows, columns), or None when all are; and what was observed."""
    pixels = stored.pixels
    mask = np.ones(pixels.shape, np.bool_)
    _leave_out_padding(mask, stored, elements)
    _leave_out_shutter(mask, elements)
    observations = []
    share = _leave_out_borders(mask, pixels)
    if share >= _BORDER_REPORTED:
        observations.append(Observation("border_masked", share, f"{share:.0%} of the picture is a uniform border"))
    return (None if mask.all() else mask), observations


def _leave_out_padding(mask: BoolArray, stored: StoredPicture, elements: Elements) -> None:
    first, last = (
        values.integers(elements.values.get(tag), elements.encoding, signed=stored.signed)
        for tag in (PADDING_VALUE, PADDING_RANGE_LIMIT)
    )
    if not first:
        return
    limits = sorted((first[0], last[0] if last else first[0]))
    if stored.signed:
        # Declared US by some writers although the pixels are signed.
        limits = sorted(limit - 65536 if limit > 32767 else limit for limit in limits)
    mask &= (stored.pixels < limits[0]) | (stored.pixels > limits[1])


def _leave_out_shutter(mask: BoolArray, elements: Elements) -> None:
    shapes = values.codes(elements.values.get(_SHAPE))
    parts = {part: _whole_numbers(elements, part) for part in _SHUTTER_PARTS}
    rows, columns = mask.shape
    if "RECTANGULAR" in shapes and all(len(parts[part]) == 1 for part in (_LEFT, _RIGHT, _UPPER, _LOWER)):
        left, right, upper, lower = (parts[part][0] for part in (_LEFT, _RIGHT, _UPPER, _LOWER))
        inside = np.zeros_like(mask)
        inside[max(upper - 1, 0) : max(lower, 0), max(left - 1, 0) : max(right, 0)] = True
        _restrict(mask, inside)
    if "CIRCULAR" in shapes and len(parts[_CENTRE]) == 2 and len(parts[_RADIUS]) == 1:
        row, column = (centre - 1 for centre in parts[_CENTRE])
        y, x = np.ogrid[:rows, :columns]
        _restrict(mask, (y - row) ** 2 + (x - column) ** 2 <= parts[_RADIUS][0] ** 2)
    vertices = parts[_VERTICES]
    if "POLYGONAL" in shapes and len(vertices) >= 6 and len(vertices) % 2 == 0:
        import cv2

        corners = np.array(vertices, np.int64).reshape(-1, 2)[:, ::-1] - 1
        corners = np.clip(corners, -32768, 32767).astype(np.int32)
        _restrict(mask, cv2.fillPoly(np.zeros(mask.shape, np.uint8), [corners], 1).astype(np.bool_))


def _whole_numbers(elements: Elements, tag: int) -> list[int]:
    value = elements.values.get(tag)
    return [int(number) for number in values.decimals(value) or [] if abs(number) < 1e6]


def _restrict(mask: BoolArray, inside: BoolArray) -> None:
    if inside.mean() >= _SHUTTER_LEAVES:
        mask &= inside


def _leave_out_borders(mask: BoolArray, pixels: npt.NDArray[Any]) -> float:
    """Take uniform strips along the edges out of the mask; returns their share of the picture."""
    rows, columns = pixels.shape
    inside = pixels[mask]
    if inside.size == 0:
        return 0.0
    darkest, brightest = float(inside.min()), float(inside.max())
    span = brightest - darkest
    if span == 0:
        return 0.0
    upper, lower, left, right = 0, rows, 0, columns
    # Twice: a border's own corners make the lines across it uneven until it is gone.
    for _ in range(2):
        block, known = pixels[upper:lower, left:right], mask[upper:lower, left:right]
        upper, lower = (
            upper + _strip(block, known, darkest, span),
            lower - _strip(block[::-1], known[::-1], darkest, span),
        )
        block, known = pixels[upper:lower, left:right].T, mask[upper:lower, left:right].T
        left, right = (
            left + _strip(block, known, darkest, span),
            right - _strip(block[::-1], known[::-1], darkest, span),
        )
    before = int(mask.sum())
    mask[:upper] = mask[lower:] = False
    mask[:, :left] = mask[:, right:] = False
    return (before - int(mask.sum())) / mask.size


def _strip(lines: npt.NDArray[Any], known: BoolArray, darkest: float, span: float) -> int:
    """How many lines from the first belong to a uniform border of one level."""
    first_level = None
    most = int(len(lines) * _BORDER_MOST)
    for index in range(most):
        line = lines[index][known[index]]
        if line.size == 0:
            continue
        level = (float(line.mean()) - darkest) / span
        spread = float(line.std()) / span
        first_level = level if first_level is None else first_level
        is_extreme = not _BORDER_LEVEL < level < 1.0 - _BORDER_LEVEL
        most_spread = _BORDER_SPREAD if is_extreme else _DRAWN_BORDER_SPREAD
        if spread > most_spread or abs(level - first_level) > _BORDER_LEVEL:
            return index
    return most
