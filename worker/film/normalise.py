"""From stored values to the film a network sees: float32, 0-1, white is dense, the patient's right at the left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.errors import FilmError
from worker.film.damage import damage_observations
from worker.film.elements import Elements
from worker.film.geometry import flipped, geometry_of
from worker.film.levels import count_levels, look_up
from worker.film.prepared import FloatArray, Geometry, Observation
from worker.film.rescale import Rescale
from worker.film.stored import StoredPicture
from worker.film.valid_area import BoolArray, valid_area
from worker.film.voi import GreyScale, grey_scale


@dataclass(frozen=True)
class NormalisedFilm:
    """A film ready for any network's preprocessing.

    ``film`` is float32 (rows, columns), 0-1, white is dense, 0 outside the valid area;
    ``valid`` is bool of the same shape, or None when every pixel is valid. Both have the
    geometry's flips done. ``grey_mean`` and ``grey_spread`` are mean and standard deviation of the
    valid stored values, as shares of their range (0-1).
    """

    film: FloatArray
    valid: BoolArray | None
    geometry: Geometry
    voi_policy: str
    observations: tuple[Observation, ...]
    grey_mean: float
    grey_spread: float


def normalise(stored: StoredPicture, rescale: Rescale, elements: Elements) -> NormalisedFilm:
    """Apply modality LUT, valid area, grey scale and orientation, in this order.

    Raises
    ------
    FilmError
        ``BLANK_PICTURE`` when the valid pixels have one value or there are none.
    """
    observations = [*stored.observations, *rescale.observations]
    valid, seen = valid_area(stored, elements)
    observations += seen
    histogram = _histogram(stored, valid)
    if np.count_nonzero(histogram) < 2:
        raise FilmError("BLANK_PICTURE")
    scale = grey_scale(stored, histogram, rescale, elements)
    observations += scale.observations
    film = _look_up(stored, scale)
    if valid is not None:
        film[~valid] = 0.0
    observations += damage_observations(film, valid)
    rows, columns = film.shape
    geometry, seen = geometry_of(elements, rows, columns)
    observations += seen
    film = np.asarray(flipped(film, geometry), np.float32)
    if valid is not None and (geometry.flip_rows or geometry.flip_columns):
        valid = flipped(valid.view(np.uint8), geometry).view(np.bool_)
    return NormalisedFilm(
        film, valid, geometry, scale.policy, tuple(observations), *_grey_values(histogram, stored.bits, stored.signed)
    )


def _histogram(stored: StoredPicture, valid: BoolArray | None) -> npt.NDArray[np.int64]:
    """Valid pixels per stored value, from the dtype's lowest value."""
    counts = count_levels(stored.pixels.view(f"u{stored.pixels.itemsize}"), valid)
    # Negative values wrap to the upper half: bring them back in front.
    return np.roll(counts, -int(np.iinfo(stored.pixels.dtype).min)) if stored.signed else counts


def _grey_values(histogram: npt.NDArray[np.int64], bits: int, signed: bool) -> tuple[float, float]:
    """Mean and standard deviation of the stored values as shares of the range of ``bits``."""
    lowest = 1 << (bits - 1) if signed else 0
    # A signed picture's histogram begins at its type's lowest value, not at that of its bits.
    values = np.arange(len(histogram)) - (len(histogram) // 2 - lowest if signed else 0)
    used = np.flatnonzero(histogram)
    counts, shares = histogram[used], values[used] / (1 << bits)
    mean = float(np.average(shares, weights=counts))
    return mean, float(np.sqrt(np.average((shares - mean) ** 2, weights=counts)))


def _look_up(stored: StoredPicture, scale: GreyScale) -> FloatArray:
    pixels = stored.pixels
    if not stored.signed:
        return look_up(scale.table, pixels)
    unsigned_order = np.roll(scale.table, scale.lowest)
    return look_up(unsigned_order, pixels.view(np.uint16))
