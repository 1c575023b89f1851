"""Outlines of chests as a person would draw them: traced along a label map, or made up from a few numbers."""

from __future__ import annotations

import cv2
import numpy as np

from schema.regions import HOLSTE_REGIONS, Region
from trainer.outlines import DrawnOutlines, Points

VALUE = {region.name: region.value for region in HOLSTE_REGIONS}
_FINE = 4


def outline(mask: np.ndarray) -> Points:
    """The outline of a mask's largest piece along its pixels' edges, to 1/8 of a pixel."""
    fine = np.kron(mask.astype(np.uint8), np.ones((_FINE, _FINE), np.uint8))
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return (max(contours, key=cv2.contourArea)[:, 0].astype(float) + 0.5) / _FINE


def traced(labels: np.ndarray, name: str = "film.png") -> DrawnOutlines:
    """The boundaries of an eight-region label map."""
    below = np.isin(labels, [VALUE[Region.LEFT_SUBDIAPHRAGM], VALUE[Region.RIGHT_SUBDIAPHRAGM]])
    columns = np.flatnonzero(below.any(axis=0))
    belly = below | (labels == VALUE[Region.SPINE])
    bottom = [(column + 0.5, len(labels) - np.argmax(belly[::-1, column])) for column in columns]
    carina = np.argwhere(labels == VALUE[Region.CARINA]).mean(axis=0) + 0.5
    spine = np.isin(labels, [VALUE[Region.SPINE], VALUE[Region.CARINA]]).astype(np.uint8)
    # What of the carina's disc stands out beside the spine is none of it.
    spine = cv2.morphologyEx(spine, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    return DrawnOutlines(
        name,
        outline(labels == VALUE[Region.LEFT_LUNG]),
        outline(labels == VALUE[Region.RIGHT_LUNG]),
        (outline(spine > 0),),
        np.asarray(bottom, float),
        (float(carina[1]), float(carina[0])),
    )


def simple(
    size: int = 256, *, tilt: float = 0.0, bend: float = 0.0, heart: float = 0.0, **changes: object
) -> DrawnOutlines:
    """A chest of straight lines on a square picture.

    ``tilt`` is in degrees, ``bend`` bows the spine and ``heart`` pushes the left lung's inner border out, both as
    fractions of the picture; ``changes`` replace outlines afterwards.
    """
    right = [[0.43, 0.15], [0.44, 0.4], [0.44, 0.68], [0.28, 0.62], [0.14, 0.75], [0.16, 0.4], [0.30, 0.17]]
    left = [[0.57, 0.15], [0.56, 0.4], [0.56 + heart, 0.55], [0.56 + heart, 0.68], [0.74, 0.64], [0.86, 0.75],
            [0.84, 0.4], [0.70, 0.17]]  # fmt: skip
    edges = [[[x, y] for y in (0.05, 0.3, 0.5, 0.7, 0.98)] for x in (0.47, 0.53)]
    bottom = [[0.15, 0.9], [0.5, 0.93], [0.85, 0.9]]

    def placed(points: list[list[float]]) -> Points:
        p = np.asarray(points, float)
        x = p[:, 0] + bend * np.sin(np.pi * p[:, 1]) - 0.5
        y = p[:, 1] - 0.5
        cosine, sine = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
        return (np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=1) * 0.9 + 0.5) * size

    carina = placed([[0.5, 0.35]])[0]
    drawn: dict[str, object] = {
        "name": "film.png",
        "left_lung": placed(left),
        "right_lung": placed(right),
        "spine": tuple(placed(edge) for edge in edges),
        "thorax_bottom": placed(bottom),
        "carina": (float(carina[0]), float(carina[1])),
    }
    return DrawnOutlines(**(drawn | changes))  # type: ignore[arg-type]
