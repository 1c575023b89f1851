"""Where on the film a finding's evidence lies: the share of a class activation map that is inside the lungs.

The map is a network's own, as it leaves the engine: not normalised, its negative part (evidence against the
finding) put to 0. Beside the share stands what a map that is the same everywhere would have: the lungs' share of
the picture. Lungs are the truth's, never a network's.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def mass_inside(cam: npt.NDArray[np.floating], lungs: npt.NDArray[Any]) -> tuple[float, float]:
    """The share of a map's positive mass inside the lungs, and the lungs' share of the picture.

    Parameters
    ----------
    cam
        (h, w), raw; covers the same picture as ``lungs`` on a coarser grid.
    lungs
        (height, width): whether, or how much of, each pixel is lung, 0-1.

    Returns
    -------
    Both 0-1; the first is NaN for a map without positive activation. A cell that lies half in the lungs counts half.
    """
    positive = np.maximum(np.asarray(cam, np.float64), 0.0)
    cells = cv2.resize(lungs.astype(np.float64), cam.shape[::-1], interpolation=cv2.INTER_AREA)
    total = float(positive.sum())
    share = float((positive * cells).sum() / total) if total > 0.0 else float("nan")
    return share, float(cells.mean())
