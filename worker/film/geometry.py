"""How a network's grid lies on the film, and the one way from label maps to the film's grid."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from worker.film import values
from worker.film.elements import Elements, Value
from worker.film.prepared import Geometry, Observation

#: Raised when :func:`to_film_grid` would give another mask for the same label map.
RESAMPLER_VERSION = 1

PATIENT_ORIENTATION, IMAGER_SPACING, PIXEL_SPACING = 0x00200020, 0x00181164, 0x00280030
CALIBRATION_TYPE = 0x00280A02
GEOMETRY_TAGS = frozenset({PATIENT_ORIENTATION, IMAGER_SPACING, PIXEL_SPACING, CALIBRATION_TYPE})

LabelMap = npt.NDArray[np.uint8]


def geometry_of(elements: Elements, rows: int, columns: int) -> tuple[Geometry, list[Observation]]:
    """Geometry of a stored picture of ``rows`` x ``columns``, and what was odd about it.

    PatientOrientation names where the rows and the columns run to (PS3.3 C.7.6.1.1.1): a
    frontal film runs to the patient's left and feet, anything else is turned back where one
    or two flips do it.
    """
    observations: list[Observation] = []
    directions = values.codes(elements.values.get(PATIENT_ORIENTATION))
    along_row, along_column = (directions[0][:1], directions[1][:1]) if len(directions) == 2 else ("", "")
    flip_columns, flip_rows = along_row == "R", along_column == "H"
    if flip_columns or flip_rows:
        what = " and ".join(word for word, on in (("mirrored", flip_columns), ("upside down", flip_rows)) if on)
        observations.append(Observation("orientation_mirrored", None, f"stored {what}; turned back for the networks"))
    elif along_row in ("H", "F"):
        observations.append(Observation("orientation_mirrored", None, "stored lying on its side; not turned"))
    spacing, source, odd = _spacing(elements)
    if odd:
        observations.append(Observation("spacing_invalid", None, "pixel spacing is not two positive lengths"))
    row_spacing, column_spacing = spacing or (None, None)
    return Geometry(rows, columns, flip_columns, flip_rows, row_spacing, column_spacing, source), observations


def to_film_grid(labels: LabelMap, geometry: Geometry) -> LabelMap:
    """A label map on the film as stored: nearest neighbour, flips undone.

    Parameters
    ----------
    labels
        uint8 (height, width) on the network's grid, which covers the whole film.
    geometry
        Of that film.

    Returns
    -------
    uint8 of shape (film_rows, film_columns).
    """
    grid = cv2.resize(
        np.ascontiguousarray(labels),
        (geometry.film_columns, geometry.film_rows),
        interpolation=cv2.INTER_NEAREST_EXACT,
    )
    return np.asarray(flipped(grid, geometry), np.uint8)


def flipped(picture: npt.NDArray[Any], geometry: Geometry) -> npt.NDArray[Any]:
    """A picture of shape (rows, columns) with the geometry's flips done, which also undoes them."""
    code = {(True, False): 1, (False, True): 0, (True, True): -1}.get((geometry.flip_columns, geometry.flip_rows))
    return picture if code is None else np.asarray(cv2.flip(picture, code))


def _spacing(elements: Elements) -> tuple[tuple[float, float] | None, str, bool]:
    """Row and column spacing in mm, its source by PS3.3 10.7.1.1, and whether one given is unusable."""
    pixel, pixel_is_bad = _pair(elements.values.get(PIXEL_SPACING))
    imager, imager_is_bad = _pair(elements.values.get(IMAGER_SPACING))
    odd = pixel_is_bad or imager_is_bad
    if pixel is None:
        return (imager, "detector", odd) if imager else (None, "none", odd)
    if values.code(elements.values.get(CALIBRATION_TYPE)) in ("GEOMETRY", "FIDUCIAL"):
        return pixel, "corrected", odd
    if imager is None:
        return pixel, "undeterminable", odd
    return pixel, ("uncalibrated" if np.allclose(pixel, imager, rtol=1e-4, atol=0.0) else "corrected"), odd


def _pair(value: Value | None) -> tuple[tuple[float, float] | None, bool]:
    numbers = values.decimals(value)
    if numbers == []:
        return None, False
    if numbers is None or len(numbers) != 2 or min(numbers) <= 0.0:
        return None, True
    return (numbers[0], numbers[1]), False
