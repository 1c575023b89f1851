"""Drawn lines and the pixels they enclose: what a person annotates a picture with.

Coordinates are pixels of the picture, x to the right and y down, as annotation tools write them: the
first pixel covers 0 to 1, its centre is 0.5. A pixel belongs to an outline that its centre lies in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: The grid on which the paper counts a carina's pixels.
CARINA_GRID = 256
_SAMPLES_PER_SIGMA = 3


@dataclass(frozen=True)
class DrawnOutlines:
    """What a person drew on one picture.

    Attributes
    ----------
    name
        The picture's, for error messages.
    left_lung, right_lung
        Closed polygons, float64 (N, 2) of (x, y).
    spine
        One closed polygon, or its two edges as lines, in any direction.
    thorax_bottom
        A line from one side of the chest to the other; it may go up the flanks.
    carina
        (x, y) of a point in the chosen pixel.
    """

    name: str
    left_lung: Points
    right_lung: Points
    spine: tuple[Points, ...]
    thorax_bottom: Points
    carina: tuple[float, float]


def far_outside(points: Points, shape: tuple[int, int]) -> bool:
    """Whether a point is no number or further from the picture than the picture is large: wrong units, not a slip."""
    size = np.asarray([shape[1], shape[0]], np.float64)
    return not np.isfinite(points).all() or bool((points < -size).any() or (points > 2 * size).any())


def fill_polygon(shape: tuple[int, int], points: Points) -> Mask:
    """The pixels whose centres lie inside a polygon, bool of ``shape`` (rows, columns).

    Inside is where the outline winds around (non-zero), so small loops of a drawn line make no
    holes; neighbours that share an edge share no pixel and leave none between them.
    """
    rows, columns = shape
    x, y = points.T
    dx, dy = (np.roll(points, -1, axis=0) - points).T
    first, last = (
        np.clip(np.ceil(end - 0.5), 0, rows).astype(np.intp) for end in (np.minimum(y, y + dy), np.maximum(y, y + dy))
    )
    crossings = last - first
    edge = np.repeat(np.arange(len(points)), crossings)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossings) - crossings, crossings)
    at = x[edge] + (row + 0.5 - y[edge]) * dx[edge] / dy[edge]
    column = np.clip(np.ceil(at - 0.5), 0, columns).astype(np.intp)
    turns = np.zeros((rows, columns + 1), np.int32)
    np.add.at(turns, (row, column), np.where(dy > 0, 1, -1)[edge])
    return np.asarray(np.cumsum(turns[:, :-1], axis=1, dtype=np.int32) != 0)


def carina_disc(shape: tuple[int, int], point: tuple[float, float], radius: float) -> Mask:
    """The carina around ``point`` (x, y): ``radius`` is in pixels of a 256 x 256 grid; at least the pixel itself."""
    rows, columns = shape
    row, column = int(np.floor(point[1])), int(np.floor(point[0]))
    half_y, half_x = max(0.5, radius * rows / CARINA_GRID), max(0.5, radius * columns / CARINA_GRID)
    y, x = np.ogrid[:rows, :columns]
    return np.asarray(((x - column) / half_x) ** 2 + ((y - row) / half_y) ** 2 <= 1.0)


def smooth_line(points: Points, sigma: float, *, closed: bool) -> Points:
    """The line evenly resampled and smoothed by ``sigma`` pixels along its length; a closed one stays closed."""
    path = np.concatenate([points, points[:1]]) if closed else points
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    step = max(sigma, 1.0) / _SAMPLES_PER_SIGMA
    count = max(16, round(along[-1] / step))
    places = np.linspace(0.0, along[-1], count, endpoint=not closed)
    even = np.stack([np.interp(places, along, path[:, axis]) for axis in (0, 1)], axis=1)
    spacing = places[1]
    reach = min(int(np.ceil(4 * sigma / spacing)), count - 1)
    if reach == 0:
        return np.asarray(even, np.float64)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) * spacing / sigma) ** 2)
    weights /= weights.sum()
    ends = ((reach, reach), (0, 0))
    # Mirrored through its end point, an open line keeps that point under any symmetric kernel.
    padded = np.pad(even, ends, mode="wrap") if closed else np.pad(even, ends, mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(padded[:, axis], weights, mode="valid") for axis in (0, 1)], axis=1)
