"""Eight regions from drawn boundaries: Holste et al., section 2.1.

"Users were instructed to draw boundaries around the lungs, spine, and bottom of the thorax, then
select a single pixel where the carina was located. The software smoothed all lines drawn and used
these user-drawn boundaries to divide the chest into eight regions."

How is open, and decided here so that the result means what the worker's phantoms
(:mod:`worker.phantom.anatomy`) and flags (:mod:`worker.findings.flag_rules`) mean by the same names:

* **Smoothing.** Each line is resampled evenly and convolved along its length with a Gaussian of
  :attr:`ComposeSettings.smoothing`; the ends of open lines stay where they are.
* **Body axes.** Down is the spine's long axis, across is at right angles to it, so a patient lying askew
  is divided as one lying straight. The spine's midline parts left from right; below
  and above the drawn spine it goes straight on.
* **Three corners of a lung.** The apex is its highest point. Where the inner border meets the diaphragm and
  where the diaphragm meets the chest wall are the points furthest down and in, and down and out
  (down counts twice, so that a heart which pushes the inner border far out is not taken for diaphragm).
* **Lungs** are their drawn outlines. What both claim goes to the lung on whose side of the spine it lies.
* **Spine** is its drawn outline from the level of the higher apex to the bottom of the thorax.
* **Mediastinum** lies between the inner borders of the lungs, from the line joining the apices to the line
  joining the inner corners, less spine and carina, behind and before which it continues. Heart and
  great vessels belong to it as far as the lungs' outlines leave them out.
* **Subdiaphragm** lies between the lungs' lower borders with the line joining their inner corners, the
  bottom of the thorax, and straight flanks from the outer corners to the ends of that line.
  Where the line is drawn further out than the lungs it is cut off. The spine's midline parts left from
  right, and the spine covers both.
* **Carina** is a disc of radius 3 pixels on a 256 x 256 grid, 29 pixels: the middle of the 5-75
  pixels that the paper's footnote calls reasonable. On another grid it is the ellipse that becomes this
  disc when the film is stretched to 256 x 256. It covers spine and mediastinum only.
* **Background** is everything else.
* **Pieces.** Each region is its largest piece, counted as the worker's flags count pieces: 8-connected, and
  joined behind what lies before it. Slivers that lines leave where they meet become background.

Coordinates are those of :mod:`trainer.outlines`. Left and right are the patient's; the patient's right
is on the picture's left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import cv2
import numpy as np
import numpy.typing as npt

from schema.regions import HOLSTE_REGIONS, REGION_BY_NAME, Region
from trainer.errors import DataError
from trainer.outlines import (
    CARINA_GRID,
    DrawnOutlines,
    Mask,
    Points,
    carina_disc,
    far_outside,
    fill_polygon,
    smooth_line,
)
from worker.findings.flag_rules import CONTINUES_BEHIND
from worker.findings.shapes import CONNECTIVITY

LabelMap = npt.NDArray[np.uint8]

#: Share of the smaller lung that both may claim before their outlines contradict each other.
LARGEST_OVERLAP = 0.05
#: Share of the spine that lungs may cover before one of the outlines must be wrong.
LARGEST_COVER = 0.25
#: Least pixels a carina may have on a 256 x 256 grid: the lower end of the paper's reasonable range.
SMALLEST_CARINA = 5

_VALUE = {region.name: region.value for region in HOLSTE_REGIONS}
_LEAST_ELONGATION = 1.5
_MIDLINE_LEVELS = 32


@dataclass(frozen=True)
class ComposeSettings:
    """``smoothing`` is a standard deviation as a fraction of the picture's longer side (0: none).

    ``carina_radius`` is in pixels of a 256 x 256 grid.
    """

    smoothing: float = 0.005
    carina_radius: float = 3.0


@dataclass(frozen=True)
class _Lung:
    """A smoothed outline and where on it are ``apex``, ``inner`` (towards the spine) and ``outer`` corner."""

    outline: Points
    apex: int
    inner: int
    outer: int

    def border(self, start: int, end: int) -> Points:
        """The outline from one corner to another, forwards.

        Whether that is the near way or the way around the lung is all the same to a region
        which the lung is painted over.
        """
        count = len(self.outline)
        return self.outline[(start + np.arange((end - start) % count + 1)) % count]


@dataclass(frozen=True)
class _Body:
    """The body's axes; (across, down) of a point, across towards the patient's left from the spine's midline."""

    axes: npt.NDArray[np.float64]
    levels: npt.NDArray[np.float64]
    midline: npt.NDArray[np.float64]

    def place(self, points: Points) -> Points:
        """(x, y) to (across, down), both in pixels."""
        turned = points @ self.axes.T
        turned[:, 0] -= np.interp(turned[:, 1], self.levels, self.midline)
        return np.asarray(turned, np.float64)

    def on_the_left(self, pixels: npt.NDArray[np.intp]) -> Mask:
        """Which of (row, column) lie on the patient's left of the spine."""
        return np.asarray(self.place(pixels[:, ::-1].astype(np.float64) + 0.5)[:, 0] > 0)


def compose_regions(
    shape: tuple[int, int], outlines: DrawnOutlines, settings: ComposeSettings | None = None
) -> LabelMap:
    """Divide a chest into the eight regions of :data:`schema.regions.HOLSTE_REGIONS`.

    Parameters
    ----------
    shape
        (rows, columns) of the picture that was drawn on.

    Returns
    -------
    uint8 of that shape; every region has at least one pixel.

    Raises
    ------
    DataError
        An outline has too few points or lies off the picture, outlines contradict each other (lungs
        exchanged, thorax bottom above the lungs, carina in a lung ...), or a region comes out empty.
    """
    try:
        return _divided(shape, outlines, settings or ComposeSettings())
    except _ContradictionError as error:
        raise DataError(f"{outlines.name}: {error}.") from None


class _ContradictionError(ValueError):
    """The outlines cannot be meant as drawn; the message says which, without the picture's name."""


def _divided(shape: tuple[int, int], outlines: DrawnOutlines, settings: ComposeSettings) -> LabelMap:
    sigma = settings.smoothing * max(shape)
    drawn = _checked(shape, outlines)
    spine = smooth_line(drawn["spine"], sigma, closed=True)
    body = _body(spine)
    right = _lung(smooth_line(drawn["right_lung"], sigma, closed=True), body, -1.0)
    left = _lung(smooth_line(drawn["left_lung"], sigma, closed=True), body, 1.0)
    bottom = _bottom(smooth_line(drawn["thorax_bottom"], sigma, closed=False), left, right, body)

    labels = np.zeros(shape, np.uint8)
    below = np.concatenate([bottom, left.border(left.outer, left.inner), right.border(right.inner, right.outer)])
    belly = np.argwhere(fill_polygon(shape, below))
    of_left = body.on_the_left(belly)
    labels[tuple(belly.T)] = np.where(of_left, _VALUE[Region.LEFT_SUBDIAPHRAGM], _VALUE[Region.RIGHT_SUBDIAPHRAGM])
    between = np.concatenate([right.border(right.apex, right.inner), left.border(left.inner, left.apex)])
    labels[fill_polygon(shape, between)] = _VALUE[Region.MEDIASTINUM]
    column = fill_polygon(shape, spine) & fill_polygon(shape, _thorax(bottom, left, right, body, shape))
    labels[column] = _VALUE[Region.SPINE]
    _put_lungs(labels, left, right, body)
    _put_carina(labels, outlines.carina, settings.carina_radius)
    _drop_slivers(labels)
    _check_complete(labels)
    return labels


# What the lines say about the body


def _body(spine: Points) -> _Body:
    spread, directions = np.linalg.eigh(np.cov(spine.T))
    down = directions[:, 1] * (1.0 if directions[1, 1] >= 0 else -1.0)
    if spread[1] < _LEAST_ELONGATION**2 * spread[0]:
        _refuse("the spine's outline is about as wide as it is long; draw it from the apices to the thorax bottom")
    if down[1] < np.sqrt(0.5):
        _refuse("the spine runs across the picture; turn the picture so that the head is up")
    axes = np.asarray([[down[1], -down[0]], down])
    across, level = (spine @ axes.T).T
    edges = np.linspace(level.min(), level.max(), _MIDLINE_LEVELS + 1)
    bins = np.clip(np.digitize(level, edges) - 1, 0, _MIDLINE_LEVELS - 1)
    found = np.unique(bins)
    midline = [(across[bins == one].min() + across[bins == one].max()) / 2 for one in found]
    return _Body(axes, 0.5 * (edges[found] + edges[found + 1]), np.asarray(midline))


def _lung(outline: Points, body: _Body, side: float) -> _Lung:
    """``side`` is 1 for the patient's left and -1 for the right."""
    across, down = body.place(outline).T
    inwards, lower = _unit(-side * across), _unit(down)
    if side * across.mean() <= 0:
        which, other = ("left", "right") if side > 0 else ("right", "left")
        _refuse(
            f"the {which} lung lies on the patient's {other} of the spine; left and right are the patient's, "
            "whose right is on the picture's left",
        )
    inner, outer = inwards + 2 * lower, 2 * lower - inwards
    return _Lung(outline, int(down.argmin()), int(inner.argmax()), int(outer.argmax()))


def _unit(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray((values - values.min()) / max(float(np.ptp(values)), 1e-9))


def _bottom(line: Points, left: _Lung, right: _Lung, body: _Body) -> Points:
    """The bottom of the thorax from the patient's right to the left, no further out than the lungs."""
    place = body.place(line)
    if place[0, 0] > place[-1, 0]:
        line, place = line[::-1], place[::-1]
    limits = body.place(right.outline)[:, 0].min(), body.place(left.outline)[:, 0].max()
    within = np.flatnonzero((place[:, 0] >= limits[0]) & (place[:, 0] <= limits[1]))
    line, place = line[within], place[within]
    if not len(line) or place[0, 0] >= 0 or place[-1, 0] <= 0:
        _refuse("the thorax bottom does not cross the spine; draw it from one side of the chest to the other")
    crossing = place[np.flatnonzero(place[:, 0] <= 0)[-1], 1]
    if crossing <= max(body.place(lung.outline[[lung.inner]])[0, 1] for lung in (left, right)):
        _refuse("the thorax bottom lies above the lower end of a lung beside the spine; draw it below both lungs")
    return line


def _thorax(bottom: Points, left: _Lung, right: _Lung, body: _Body, shape: tuple[int, int]) -> Points:
    """A polygon that holds all of the spine between the higher apex and the bottom of the thorax."""
    across, down = body.axes
    far = 2.0 * sum(shape)
    top = min(float(lung.outline[lung.apex] @ down) for lung in (left, right))
    sides = [bottom[0] - far * across, bottom[-1] + far * across]
    raised = [side + (top - side @ down) * down for side in sides]
    return np.concatenate([[raised[0], sides[0]], bottom, [sides[1], raised[1]]])


# Painting


def _put_lungs(labels: LabelMap, left: _Lung, right: _Lung, body: _Body) -> None:
    shape = (labels.shape[0], labels.shape[1])
    of_left, of_right = (fill_polygon(shape, lung.outline) for lung in (left, right))
    for mask, which in ((of_left, "left"), (of_right, "right")):
        if not mask.any():
            _refuse(f"the {which} lung lies outside the picture or has no area")
    column = labels == _VALUE[Region.SPINE]
    if np.count_nonzero(column & (of_left | of_right)) > LARGEST_COVER * np.count_nonzero(column):
        _refuse("a lung covers much of the spine; correct the outline of the lung or of the spine")
    both = of_left & of_right
    if np.count_nonzero(both) > LARGEST_OVERLAP * min(np.count_nonzero(of_left), np.count_nonzero(of_right)):
        _refuse("the lungs' outlines overlap; correct one of them")
    labels[of_left] = _VALUE[Region.LEFT_LUNG]
    labels[of_right] = _VALUE[Region.RIGHT_LUNG]
    shared = np.argwhere(both)
    labels[tuple(shared[body.on_the_left(shared)].T)] = _VALUE[Region.LEFT_LUNG]


def _put_carina(labels: LabelMap, point: tuple[float, float], radius: float) -> None:
    shape = (labels.shape[0], labels.shape[1])
    between = np.isin(labels, [_VALUE[Region.SPINE], _VALUE[Region.MEDIASTINUM]])
    disc = carina_disc(shape, point, radius) & between
    if np.count_nonzero(disc) < max(1.0, SMALLEST_CARINA * labels.size / CARINA_GRID**2):
        _refuse(f"the carina at ({point[0]:g}, {point[1]:g}) lies outside spine and mediastinum; correct its place")
    labels[disc] = _VALUE[Region.CARINA]


def _drop_slivers(labels: LabelMap) -> None:
    for region, value in _VALUE.items():
        if region == Region.BACKGROUND:
            continue
        own = labels == value
        before = [_VALUE[Region(name)] for name in CONTINUES_BEHIND.get(region, ()) if name in _VALUE]
        joined = own | np.isin(labels, before)
        pieces = cv2.connectedComponents(joined.view(np.uint8), connectivity=CONNECTIVITY)[1]
        sizes = np.bincount(pieces[own], minlength=2)
        labels[own & (pieces != sizes.argmax())] = _VALUE[Region.BACKGROUND]


def _check_complete(labels: LabelMap) -> None:
    present = np.bincount(labels.ravel(), minlength=len(_VALUE))
    for region, value in _VALUE.items():
        if not present[value]:
            title = REGION_BY_NAME[region].title.lower()
            _refuse(f"the outlines leave no room for the {title}; correct those around it")


# Checks


def _checked(shape: tuple[int, int], outlines: DrawnOutlines) -> Mapping[str, Points]:
    """Each line as float64 (N, 2) without repeated points, the spine as one closed polygon."""
    x, y = outlines.carina
    if not (0 <= x < shape[1] and 0 <= y < shape[0]):
        _refuse(f"the carina at ({x:g}, {y:g}) lies outside the picture of {shape[1]} x {shape[0]} pixels")
    if len(outlines.spine) not in (1, 2):
        _refuse("the spine is one closed outline or its two edges")
    edges = len(outlines.spine) == 2
    spine = [_line(shape, edge, "spine", 2 if edges else 3) for edge in outlines.spine]
    if edges and (spine[0][-1, 1] - spine[0][0, 1]) * (spine[1][-1, 1] - spine[1][0, 1]) > 0:
        spine[1] = spine[1][::-1]
    return {
        "left_lung": _line(shape, outlines.left_lung, "left lung", 3),
        "right_lung": _line(shape, outlines.right_lung, "right lung", 3),
        "spine": np.concatenate(spine),
        "thorax_bottom": _line(shape, outlines.thorax_bottom, "thorax bottom", 2),
    }


def _line(shape: tuple[int, int], points: Points, what: str, least: int) -> Points:
    line = np.asarray(points, np.float64)
    if line.ndim != 2 or line.shape[1] != 2:
        _refuse(f"the outline of the {what} is not a list of (x, y) points")
    if far_outside(line, shape):
        _refuse(f"the outline of the {what} has points far outside the picture; it must be in its pixels")
    repeated = np.concatenate([[False], (np.diff(line, axis=0) == 0).all(axis=1)]) if len(line) else np.zeros(0, bool)
    line = line[~repeated]
    if len(line) < least or np.ptp(line, axis=0).max() < 1.0:
        _refuse(f"the outline of the {what} needs at least {least} different points")
    return np.asarray(line, np.float64)


def _refuse(problem: str) -> NoReturn:
    raise _ContradictionError(problem)
