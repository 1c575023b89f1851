"""Does the decoded film show breaks that no film shows? Then bytes of its codestream may be corrupted.

A corrupted byte in a JPEG stream shifts everything behind it: the level, the position, or
both change from one row to the next along a good part of the width, and the rows on either
side of that step are smooth. Edges of a patient, a device or a collimator are slanted or
spread over several rows. Measured on 20 corrupted bytes: 98 % of baseline and extended JPEG
films and 85 % of lossless JPEG films are found. JPEG-LS and HTJ2K decoders refuse such
streams themselves. In JPEG 2000 the damage stays inside code blocks, mostly below the film's
own noise, and is not found here.
"""

from __future__ import annotations

import cv2
import numpy as np

from worker.film.prepared import FloatArray, Observation
from worker.film.valid_area import BoolArray

_SEGMENT_COLUMNS = 32
_FEWEST_SEGMENTS = 8
_EDGE_ROWS = 8
_STRIP_ROWS = 64
#: A segment's step counts from this brightness (of 0-1) and this multiple of the film's usual step on.
_LEAST_STEP = 0.02
_TIMES_USUAL = 8.0
#: Share of the width that must break between the same two rows. Intact films stay below 0.25.
BROKEN_SHARE = 0.35


def damage_observations(film: FloatArray, valid: BoolArray | None) -> list[Observation]:
    """``decode_damage_suspected`` with the largest broken share of a row, or nothing.

    Parameters
    ----------
    film
        float32 (rows, columns), 0-1, as stored (flips would not matter).
    valid
        bool of the same shape, or None when all pixels are.
    """
    share = broken_share(film, valid)
    if share < BROKEN_SHARE:
        return []
    return [Observation("decode_damage_suspected", share, f"{share:.0%} of a row breaks from its neighbour")]


def broken_share(film: FloatArray, valid: BoolArray | None) -> float:
    """Largest share (0-1) of the width that breaks between two neighbouring rows."""
    rows, columns = film.shape
    segments = max(columns // _SEGMENT_COLUMNS, _FEWEST_SEGMENTS)
    if rows < 4 or columns < segments:
        return 0.0
    well_inside = None
    if valid is not None:
        # The edge of a collimated field is sharp, but no break.
        well_inside = np.asarray(cv2.erode(valid.view(np.uint8), np.ones((2 * _EDGE_ROWS + 1, 1), np.uint8)), bool)
    # In strips that stay in the processor's cache, for they are gone through five times.
    by_segment = np.concatenate(
        [
            _isolated_steps(film[strip], None if well_inside is None else well_inside[strip], segments)
            for strip in (slice(start, start + _STRIP_ROWS + 3) for start in range(0, rows - 3, _STRIP_ROWS))
        ]
    )
    limit = max(_LEAST_STEP, _TIMES_USUAL * float(np.median(by_segment)))
    return float((by_segment > limit).mean(axis=1).max())


def _isolated_steps(film: FloatArray, well_inside: BoolArray | None, segments: int) -> FloatArray:
    """Between the rows 1 and 2, 2 and 3 ... but the last: mean step of each segment, where its neighbours have less."""
    steps = cv2.absdiff(film[1:], film[:-1])
    around = cv2.max(steps[:-2], steps[2:])
    isolated = cv2.threshold(cv2.subtract(steps[1:-1], around), 0.0, 0.0, cv2.THRESH_TOZERO)[1]
    if well_inside is not None:
        isolated[~(well_inside[1:-2] & well_inside[2:-1])] = 0.0
    whole_segments = isolated[:, : film.shape[1] // segments * segments]
    by_segment = cv2.resize(whole_segments, (segments, len(isolated)), interpolation=cv2.INTER_AREA)
    return np.asarray(by_segment, np.float32)
