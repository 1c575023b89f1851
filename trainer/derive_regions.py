"""Eight regions from two lungs by geometry, for films on which people drew only the lungs.

What comes out is *derived*: it says where spine, mediastinum, subdiaphragms and carina usually
lie for lungs of this shape, in the same definition as the phantoms'
(:mod:`worker.phantom.anatomy`). It teaches a network to draw something plausible there, and is never
scored as truth. The proportions are near the medians of phantoms of one to five years,
which in turn follow radiographs.

* **Axis**: the line through the middles between the lungs' medial borders, over the rows in which both are there;
  fitted by repeated medians, because a row beside a heart border may lie far off.
* **Spine**: a band about the axis of ``SPINE_WIDTH`` of the chest's width, but at most ``SPINE_SHARE`` of the usual gap
  between the lungs, so that a mediastinum is left on both sides; from the higher apex to the
  thorax's bottom. Lung drawn across it stays lung.
* **Thorax's bottom**: ``BOTTOM`` lung heights below the lowest point of the lungs.
* **Subdiaphragm**: below each lung, from the spine to the rib cage, which goes on downwards from
  the lung's widest row, narrowing by ``TAPER`` of the chest's width to the bottom.
* **Mediastinum**: between the lungs from the apices to each lung's medial end, less the spine.
* **Carina**: a disc of ``CARINA_RADIUS`` pixels at 256 x 256 on the axis, ``CARINA_HEIGHT`` of the lungs' height
  below the higher apex, where it does not cover lung.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from schema.regions import REGION_BY_NAME, Region
from trainer.errors import DataError

SPINE_WIDTH = 0.12
SPINE_SHARE = 0.8
BOTTOM = 0.237
TAPER = 0.03
#: How near its medial border, in lung widths, a lung's medial end is looked for.
MEDIAL_SHARE = 0.15
CARINA_HEIGHT = 0.323
CARINA_RADIUS = 3.2
_REFERENCE_GRID = 256

LabelMap = npt.NDArray[np.uint8]


def _value(region: Region) -> int:
    return REGION_BY_NAME[region].value


def derive_regions(lungs: LabelMap) -> LabelMap:
    """The eight regions for a map of two lungs.

    Parameters
    ----------
    lungs
        uint8 (height, width): 0, the left lung's value 1, the right lung's 2 (the patient's; the right
        lung lies at the image's left).

    Returns
    -------
    uint8 (height, width) with the values of :data:`schema.regions.HOLSTE_REGIONS`; lungs unchanged.

    Raises
    ------
    DataError
        A lung is missing, or the two do not lie side by side; the message has no film name.
    """
    right, left = lungs == _value(Region.RIGHT_LUNG), lungs == _value(Region.LEFT_LUNG)
    both = np.flatnonzero(right.any(axis=1) & left.any(axis=1))
    if both.size < 2:
        raise DataError("two lungs side by side are needed to derive the other regions")
    height, width = lungs.shape
    last_right = width - 1 - right[:, ::-1].argmax(axis=1)
    first_left = left.argmax(axis=1)
    axis = _axis(both, (last_right[both] + first_left[both]) / 2.0, height)
    either = right | left
    rows, columns = np.flatnonzero(either.any(axis=1)), np.flatnonzero(either.any(axis=0))
    top, base = int(rows[0]), int(rows[-1])
    chest = float(columns[-1] - columns[0] + 1)
    bottom = min(height - 1, round(base + BOTTOM * (base - top)))

    x, y = np.arange(width)[np.newaxis, :], np.arange(height)[:, np.newaxis]
    regions = np.zeros_like(lungs)
    for lung, region, side in ((right, Region.RIGHT_SUBDIAPHRAGM, -1), (left, Region.LEFT_SUBDIAPHRAGM, 1)):
        regions[_below(lung, side, axis, bottom, chest)] = _value(region)
    for lung, side in ((right, -1), (left, 1)):
        regions[_beside(lung, side, axis, x)] = _value(Region.MEDIASTINUM)
    gap = float(np.median(first_left[both] - last_right[both] - 1))
    band = min(SPINE_WIDTH * chest, max(SPINE_SHARE * gap, SPINE_WIDTH * chest / 2))
    spine = (np.abs(x - axis[:, np.newaxis]) <= band / 2) & (y >= top) & (y <= bottom)
    regions[spine] = _value(Region.SPINE)
    row = round(top + CARINA_HEIGHT * (base - top))
    radius_x, radius_y = CARINA_RADIUS * width / _REFERENCE_GRID, CARINA_RADIUS * height / _REFERENCE_GRID
    disc = ((x - axis[row]) / radius_x) ** 2 + ((y - row) / radius_y) ** 2 <= 1.0
    regions[disc] = _value(Region.CARINA)
    regions[either] = lungs[either]
    return regions


def _axis(rows: npt.NDArray[np.int_], middles: npt.NDArray[np.float64], height: int) -> npt.NDArray[np.float64]:
    """The axis's column for every row: a line by Siegel's repeated medians."""
    step = max(1, len(rows) // 64)
    y, x = rows[::step].astype(np.float64), middles[::step]
    if len(y) < 2:
        return np.full(height, float(np.median(middles)))
    run = y[:, np.newaxis] - y[np.newaxis, :]
    rise = x[:, np.newaxis] - x[np.newaxis, :]
    np.fill_diagonal(run, np.nan)
    slope = float(np.median(np.nanmedian(rise / run, axis=1)))
    # A patient tilted by more than this lies outside what a frontal film shows.
    slope = float(np.clip(slope, -0.35, 0.35))
    return np.asarray(np.arange(height) * slope + np.median(x - slope * y), np.float64)


def _below(
    lung: npt.NDArray[np.bool_], side: int, axis: npt.NDArray[np.float64], bottom: int, chest: float
) -> npt.NDArray[np.bool_]:
    """The rib cage below a lung; ``side`` is -1 for the image's left."""
    height, width = lung.shape
    rows = np.flatnonzero(lung.any(axis=1))
    edges = lung.argmax(axis=1) if side < 0 else width - 1 - lung[:, ::-1].argmax(axis=1)
    lower = rows[rows >= rows[0] + 0.6 * (rows[-1] - rows[0])]
    outer = edges[lower].min() if side < 0 else edges[lower].max()
    tip = int(lower[np.flatnonzero(edges[lower] == outer)[-1]])
    y = np.arange(height)[:, np.newaxis]
    x = np.arange(width)[np.newaxis, :]
    shrink = TAPER * chest * np.clip((y - tip) / max(1, bottom - tip), 0.0, 1.0)
    cage = x >= outer + shrink if side < 0 else x <= outer - shrink
    inner = side * (x - axis[:, np.newaxis]) >= 0
    # Below the lung's last pixel of each column; columns beside the lung start at its widest row.
    last = np.where(lung.any(axis=0), height - 1 - lung[::-1].argmax(axis=0), rows[-1])
    medial = np.flatnonzero(lung.any(axis=0))
    gap = (np.arange(width) > medial[-1]) if side < 0 else (np.arange(width) < medial[0])
    last = np.where(gap, last[medial[-1] if side < 0 else medial[0]], last)
    return np.asarray(cage & inner & (y > last[np.newaxis, :]) & (y <= bottom) & (y > rows[0]), np.bool_)


def _beside(
    lung: npt.NDArray[np.bool_], side: int, axis: npt.NDArray[np.float64], x: npt.NDArray[np.int_]
) -> npt.NDArray[np.bool_]:
    """Between a lung's medial border and the axis, from its apex to its medial end."""
    height, width = lung.shape
    rows = lung.any(axis=1)
    border = width - 1 - lung[:, ::-1].argmax(axis=1) if side < 0 else lung.argmax(axis=1)
    between = side * (x - axis[:, np.newaxis]) >= 0
    inside = x > border[:, np.newaxis] if side < 0 else x < border[:, np.newaxis]
    # Further down only the lung's lateral parts are left, and what lies medial of them is below the diaphragm.
    typical = float(np.median(border[rows]))
    columns = np.flatnonzero(lung.any(axis=0))
    medial = np.abs(np.arange(width) - typical) <= MEDIAL_SHARE * (columns[-1] - columns[0] + 1)
    ends = np.flatnonzero((lung & medial[np.newaxis, :]).any(axis=1))
    end = ends[-1] if ends.size else np.flatnonzero(rows)[-1]
    return np.asarray(between & inside & (rows & (np.arange(height) <= end))[:, np.newaxis], np.bool_)
