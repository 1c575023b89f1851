"""Grey scale: from stored values to the film's brightness, one fixed policy (version 1).

Modality LUT first. Then the first that is usable of

1. ``lut``: the first well-formed item of the VOI LUT Sequence, over the range of its entries;
2. ``window``, ``window_exact``, ``window_sigmoid``: the first window of positive width,
   by VOILUTFunction LINEAR, LINEAR_EXACT, SIGMOID (PS3.3 C.11.2.1);
3. ``identity``: where the header gives neither and at most 8 bits are stored, the pixels
   are ready for display: their full range;
4. ``percentiles``: 0.5 and 99.5 % of the valid pixels, observed as ``voi_fallback``.

A LUT or window that clips more than 60 % of the valid pixels is replaced by percentiles
too, observed as ``voi_clipped``. MONOCHROME1 is inverted over the output range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.film import values
from worker.film.elements import Elements
from worker.film.prepared import FloatArray, Observation
from worker.film.rescale import FloatTable, Rescale, lookup_tables
from worker.film.stored import StoredPicture

POLICY_VERSION = 1
WINDOW_CENTRE, WINDOW_WIDTH, WINDOW_FUNCTION = 0x00281050, 0x00281051, 0x00281056
VOI_LUT_SEQUENCE, PRESENTATION_LUT_SHAPE = 0x00283010, 0x20500020
VOI_TAGS = frozenset({WINDOW_CENTRE, WINDOW_WIDTH, WINDOW_FUNCTION, VOI_LUT_SEQUENCE, PRESENTATION_LUT_SHAPE})
MOST_CLIPPED = 0.6
_PERCENTILES = (0.5, 99.5)
_DISPLAY_READY_BITS = 8

#: VOILUTFunction → policy name, least width, brightness from centre and width. Unclipped: 0-1 is inside.
_WINDOW_FUNCTIONS: dict[str, tuple[str, float, Callable[[FloatTable, float, float], FloatTable]]] = {
    "LINEAR": ("window", 1.0, lambda x, c, w: (x - (c - 0.5)) / max(w - 1.0, 1e-6) + 0.5),
    "LINEAR_EXACT": ("window_exact", 0.0, lambda x, c, w: (x - c) / w + 0.5),
    "SIGMOID": ("window_sigmoid", 0.0, lambda x, c, w: 1.0 / (1.0 + np.exp(np.clip(-4.0 * (x - c) / w, -60.0, 60.0)))),
}


@dataclass(frozen=True)
class GreyScale:
    """Brightness (0-1, white is dense) of every possible stored value, from ``lowest`` upwards."""

    lowest: int
    table: FloatArray
    policy: str
    observations: tuple[Observation, ...]


def grey_scale(
    stored: StoredPicture, histogram: npt.NDArray[np.int64], rescale: Rescale, elements: Elements
) -> GreyScale:
    """The film's grey scale by the policy above.

    Parameters
    ----------
    stored
        The stored picture.
    histogram
        Valid pixels per stored value, from the dtype's lowest value; at least two values occur.
    rescale, elements
        The modality transformation and the header.
    """
    lowest = int(np.iinfo(stored.pixels.dtype).min)
    modality = rescale.apply(np.arange(lowest, lowest + histogram.size, dtype=np.float64))
    observations: list[Observation] = []
    brightness, policy = None, ""
    candidate = next(_header_candidates(modality, stored, elements), None)
    if candidate is not None:
        policy, brightness = candidate
        clipped = float(histogram[(brightness < 0.0) | (brightness > 1.0)].sum() / histogram.sum())
        if clipped > MOST_CLIPPED:
            observations.append(Observation("voi_clipped", clipped, f"{clipped:.0%} of the pixels are clipped"))
            brightness = None
    elif not _is_declared(elements) and stored.bits <= _DISPLAY_READY_BITS:
        policy, brightness = "identity", _full_range(modality, stored, lowest)
    else:
        observations.append(Observation("voi_fallback", None, "no usable window or VOI LUT"))
    if brightness is None:
        policy, brightness = "percentiles", _between_percentiles(modality, histogram)
    table = np.clip(brightness, 0.0, 1.0)
    if stored.photometric == "MONOCHROME1":
        table = 1.0 - table
    observations += polarity_conflict(stored.photometric, elements)
    return GreyScale(lowest, table.astype(np.float32), f"v{POLICY_VERSION}:{policy}", tuple(observations))


def polarity_conflict(photometric: str, elements: Elements) -> list[Observation]:
    """Photometric interpretation decides; a Presentation LUT Shape that says otherwise is observed."""
    shape = values.code(elements.values.get(PRESENTATION_LUT_SHAPE))
    if (photometric, shape) in (("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")):
        return [Observation("polarity_conflict", None, f"{photometric} with presentation LUT shape {shape}")]
    return []


def _is_declared(elements: Elements) -> bool:
    return any(
        (value := elements.values.get(tag)) is not None and value.data.strip(b" \0")
        for tag in (VOI_LUT_SEQUENCE, WINDOW_CENTRE, WINDOW_WIDTH)
    )


def _header_candidates(
    modality: FloatTable, stored: StoredPicture, elements: Elements
) -> Iterator[tuple[str, FloatTable]]:
    found = elements.values.get
    sequence = found(VOI_LUT_SEQUENCE)
    for table in lookup_tables(sequence, elements.encoding, signed=stored.signed) if sequence else []:
        if table is None or np.ptp(table.entries) == 0:
            continue
        low, high = float(table.entries.min()), float(table.entries.max())
        brightness = (table.apply(modality) - low) / (high - low)
        outside = (modality < table.first) | (modality > table.first + table.entries.size - 1)
        # Beyond the table's ends the brightness stays that of the end, but counts as clipped.
        yield "lut", np.where(outside, np.where(brightness >= 0.5, 1.0 + brightness, brightness - 1.0), brightness)
    function = values.code(found(WINDOW_FUNCTION)) or "LINEAR"
    if function not in _WINDOW_FUNCTIONS:
        return
    name, least_width, apply = _WINDOW_FUNCTIONS[function]
    centres, widths = values.decimals(found(WINDOW_CENTRE)) or [], values.decimals(found(WINDOW_WIDTH)) or []
    for centre, width in zip(centres, widths, strict=False):
        if width > 0.0 and width >= least_width:
            yield name, apply(modality, centre, width)


def _full_range(modality: FloatTable, stored: StoredPicture, lowest: int) -> FloatTable:
    first = -(1 << (stored.bits - 1)) if stored.signed else 0
    possible = modality[first - lowest : first - lowest + (1 << stored.bits)]
    return _stretched(modality, float(possible.min()), float(possible.max()))


def _between_percentiles(modality: FloatTable, histogram: npt.NDArray[np.int64]) -> FloatTable:
    order = np.argsort(modality, kind="stable")
    cumulative = np.cumsum(histogram[order]) / histogram.sum() * 100.0
    low, high = (float(modality[order[np.searchsorted(cumulative, percent)]]) for percent in _PERCENTILES)
    if low == high:
        present = modality[histogram > 0]
        low, high = float(present.min()), float(present.max())
    return _stretched(modality, low, high)


def _stretched(modality: FloatTable, low: float, high: float) -> FloatTable:
    return (modality - low) / (high - low) if high > low else np.zeros_like(modality)
