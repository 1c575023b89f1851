"""Modality LUT and rescale (PS3.3 C.11.1): from stored values to what the detector measured."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.errors import FilmError
from worker.film import values
from worker.film.elements import Elements, Encoding, Value, read_items
from worker.film.prepared import Observation

MODALITY_LUT_SEQUENCE, RESCALE_INTERCEPT, RESCALE_SLOPE = 0x00283000, 0x00281052, 0x00281053
RESCALE_TAGS = frozenset({MODALITY_LUT_SEQUENCE, RESCALE_INTERCEPT, RESCALE_SLOPE})
LUT_DESCRIPTOR, LUT_DATA = 0x00283002, 0x00283006
LUT_TAGS = frozenset({LUT_DESCRIPTOR, LUT_DATA})

FloatTable = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LookupTable:
    """A LUT: ``first`` is the input mapped to ``entries[0]``; inputs outside take the nearest entry."""

    first: int
    entries: FloatTable

    def apply(self, inputs: FloatTable) -> FloatTable:
        """Look up inputs of any shape."""
        index = np.clip(np.rint(inputs) - self.first, 0, self.entries.size - 1)
        return self.entries[index.astype(np.int64)]


@dataclass(frozen=True)
class Rescale:
    """The modality transformation: a table, or ``slope * value + intercept``."""

    slope: float = 1.0
    intercept: float = 0.0
    table: LookupTable | None = None
    observations: tuple[Observation, ...] = ()

    def apply(self, stored: FloatTable) -> FloatTable:
        """From stored values to modality values, any shape."""
        return self.table.apply(stored) if self.table is not None else stored * self.slope + self.intercept


def rescale_of(elements: Elements, *, signed: bool) -> Rescale:
    """The header's modality transformation; ``signed`` says whether stored values are.

    A slope that is empty, zero or unreadable counts as 1; that, a negative slope and an
    unreadable table or intercept are observed as ``bad_rescale``.
    """
    found = elements.values.get
    sequence = found(MODALITY_LUT_SEQUENCE)
    if sequence is not None and sequence.data:
        table = lookup_tables(sequence, elements.encoding, signed=signed)[:1]
        if table and table[0] is not None:
            return Rescale(table=table[0])
        return Rescale(observations=(Observation("bad_rescale", None, "the modality LUT cannot be read"),))
    slopes, intercepts = values.decimals(found(RESCALE_SLOPE)), values.decimals(found(RESCALE_INTERCEPT))
    slope = slopes[0] if slopes else 0.0
    intercept = intercepts[0] if intercepts else 0.0
    if slope == 0.0:
        declared = found(RESCALE_SLOPE) is not None
        observations = (Observation("bad_rescale", None, "the slope is no number but zero"),) if declared else ()
        slope = 1.0
    elif slope < 0.0:
        observations = (Observation("bad_rescale", slope, "the slope is negative"),)
    else:
        observations = ()
    if intercepts is None:
        observations = (Observation("bad_rescale", None, "the intercept cannot be read"),)
    return Rescale(slope, intercept, None, observations)


def lookup_tables(sequence: Value, encoding: Encoding, *, signed: bool) -> list[LookupTable | None]:
    """The tables of a LUT sequence's items, None for each that is malformed.

    ``signed`` says whether the inputs are: without a value representation nothing else tells.
    """
    try:
        items = read_items(sequence, encoding, LUT_TAGS)
    except FilmError:
        return [None]
    return [_lookup_table(item, encoding, signed) for item in items]


def _lookup_table(item: dict[int, Value], encoding: Encoding, signed: bool) -> LookupTable | None:
    descriptor, data = item.get(LUT_DESCRIPTOR), item.get(LUT_DATA)
    if descriptor is None or data is None or len(descriptor.data) != 6:
        return None
    order = ">" if encoding.big_endian else "<"
    first_is_signed = descriptor.vr == b"SS" or (not descriptor.vr and signed)
    count, first, _bits = struct.unpack(order + ("HhH" if first_is_signed else "HHH"), descriptor.data)
    count = count or 65536
    if len(data.data) in (2 * count, 2 * count + 2):
        entries = np.frombuffer(data.data, order + "u2", count)
    elif len(data.data) in (count, count + 1):
        entries = np.frombuffer(data.data, np.uint8, count)
    else:
        return None
    return LookupTable(first, entries.astype(np.float64))
