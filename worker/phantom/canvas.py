"""Drawing in the chest's own coordinates.

A chest point is (u, v): ``u`` runs from -1 (the rib cage's edge on the patient's right,
the image's left) to +1, ``v`` from 0 (lung apices) to 1 (costophrenic angles). Shapes are
mapped to pixels point by point, so rotation, stretching and a bent spine move picture and
truth together and no truth is ever resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]

_SHIFT = 4  # OpenCV draws with 1/16 pixel precision
_CIRCLE = np.stack([f(2 * np.pi * np.arange(40) / 40) for f in (np.cos, np.sin)])
_LIMIT = 8000.0  # pixels; OpenCV overflows on far-away points


@dataclass(frozen=True)
class Frame:
    """Where the chest lies on the film.

    ``centre_x`` and ``top_y`` are the pixel of (u, v) = (0, 0); ``half_width`` and ``height``
    are pixels per unit of u and v; ``angle`` is in radians, clockwise on the image; ``bend``
    is the scoliosis amplitude in units of u and ``bend_phase`` where along v its peak lies.
    """

    centre_x: float
    top_y: float
    half_width: float
    height: float
    angle: float = 0.0
    bend: float = 0.0
    bend_phase: float = 0.0

    @property
    def aspect(self) -> float:
        """Lung height over half the chest's width, in pixels."""
        return self.height / self.half_width

    def pixels(self, points: Points) -> Points:
        """Map chest points of shape (N, 2) to pixel (x, y)."""
        u, v = points[:, 0], points[:, 1]
        x = (u + self.bend * np.sin(np.pi * (v - self.bend_phase))) * self.half_width
        y = (v - 0.5) * self.height
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        mapped = np.stack(
            [self.centre_x + cosine * x - sine * y, self.top_y + 0.5 * self.height + sine * x + cosine * y], axis=1
        )
        return np.clip(mapped, -_LIMIT, _LIMIT)


class Canvas:
    """Rasterises chest shapes of one film to coverage pictures, float32 in 0..1."""

    def __init__(self, rows: int, columns: int, frame: Frame) -> None:
        self.rows = rows
        self.columns = columns
        self.frame = frame

    def _fixed(self, shapes: Sequence[Points]) -> list[npt.NDArray[np.int32]]:
        mapped = np.round(self.frame.pixels(np.concatenate(shapes)) * (1 << _SHIFT)).astype(np.int32)
        return np.split(mapped, np.cumsum([len(shape) for shape in shapes])[:-1])

    def fill(self, *shapes: Points) -> Image:
        """The union of filled polygons, edges smoothed."""
        picture = np.zeros((self.rows, self.columns), np.uint8)
        for outline in self._fixed(shapes):
            cv2.fillPoly(picture, [outline], 255, cv2.LINE_AA, _SHIFT)
        return picture.astype(np.float32) * np.float32(1 / 255)

    def label(self, labels: Mask, shape: Points, value: int) -> None:
        """Write ``value`` into the label map wherever the polygon lies; edges are not smoothed."""
        cv2.fillPoly(labels, self._fixed([shape]), int(value), cv2.LINE_8, _SHIFT)

    def stroke(self, paths: Sequence[Points], width: float, core: float = 1.0) -> Image:
        """Lines ``width`` units of u wide; ``core`` below 1 hollows them like cortical bone."""
        picture = np.zeros((self.rows, self.columns), np.uint8)
        fixed = self._fixed(paths)
        pixels = max(1, round(width * self.frame.half_width))
        cv2.polylines(picture, fixed, False, 255, pixels, cv2.LINE_AA, _SHIFT)
        if core < 1.0 and pixels > 3:
            inner = max(1, round(pixels * 0.62))
            cv2.polylines(picture, fixed, False, round(255 * core), inner, cv2.LINE_AA, _SHIFT)
        return picture.astype(np.float32) * np.float32(1 / 255)

    def ellipse(self, u: float, v: float, half_u: float, half_v: float, turn: float = 0.0) -> Points:
        """An ellipse's outline; both radii in units of u, ``turn`` in radians."""
        a, b = half_u * _CIRCLE[0], half_v * _CIRCLE[1]
        cosine, sine = np.cos(turn), np.sin(turn)
        return np.stack([u + a * cosine - b * sine, v + (a * sine + b * cosine) / self.frame.aspect], axis=1)

    def blur(self, picture: Image, sigma: float) -> Image:
        """Gaussian blur; ``sigma`` in units of u. Below a third of a pixel nothing happens."""
        pixels = sigma * self.frame.half_width
        return picture if pixels < 0.34 else blur(picture, pixels)


def blur(picture: Image, sigma: float) -> Image:
    """Gaussian blur with ``sigma`` in pixels; wide ones are done on a smaller copy."""
    if sigma <= 4:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)
    factor = int(sigma / 2)
    rows, columns = picture.shape
    small = cv2.resize(picture, (max(2, columns // factor), max(2, rows // factor)), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / factor)
    return np.asarray(cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR), np.float32)


def thickness(mask: Image, depth: float) -> Image:
    """How thick a rounded body with this outline is, 0..1, full ``depth`` pixels from its edge."""
    distance = cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    rest = 1.0 - np.minimum(distance / max(depth, 1.0), 1.0)
    return np.asarray(np.sqrt(np.maximum(1.0 - rest * rest, 0.0)), np.float32)


def cloud(rng: np.random.Generator, rows: int, columns: int, cells: float) -> Image:
    """Smooth random field of about ``cells`` bumps across, zero mean, roughly within ±1."""
    n = max(2, round(cells))
    coarse = rng.standard_normal((n + 2, n + 2), dtype=np.float32) * np.float32(0.6)
    return np.asarray(cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC), np.float32)


def curve(*points: tuple[float, float], count: int = 24) -> Points:
    """A smooth line through the points (Catmull-Rom), ``count`` points per span."""
    p = np.asarray([points[0], *points, points[-1]], float)[:, None, :]
    t = (np.arange(count) / count)[None, :, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    spans = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.concatenate([spans.reshape(-1, 2), p[-1]])
