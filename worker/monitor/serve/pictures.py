"""Pictures of the film page: the film at a window, and its regions or an activation map as a layer over it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.regions import RegionDefinition
from worker.errors import FilmError
from worker.film.pictures import PictureReader
from worker.intake.sources import resolve
from worker.queue.outcomes import SourceReference
from worker.results.film_card import activation
from worker.results.masks import decode_mask
from worker.results.overlay import display_size, heat_layer, jpeg_bytes, labels_on, png_bytes, region_layer
from worker.settings import Settings

ByteArray = npt.NDArray[np.uint8]

#: Longest side of a film on its page, pixels.
PICTURE_SIZE = 1024
#: Films kept in memory, so that another window needs no other reading: 1 MiB each.
_KEPT = 16
#: Least width of a window in percent: with 256 greys a narrower one shows steps.
LEAST_WIDTH = 10


class Pictures:
    """Reads films, one at a time, and remembers the last few. Safe to use from threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._reader: PictureReader | None = None
        self._kept: OrderedDict[SourceReference, ByteArray] = OrderedDict()

    def close(self) -> None:
        """End the process that reads films."""
        with self._lock:
            if self._reader is not None:
                self._reader.__exit__(None, None, None)
                self._reader = None

    def path(self, source: SourceReference | None) -> Path | None:
        """The film's file; None where it is gone or changed, and where it is not known."""
        if source is None:
            return None
        try:
            return resolve(self._settings, source)
        except FilmError:
            return None

    def film(self, source: SourceReference | None) -> ByteArray | None:
        """The whole film, uint8 (rows, columns); None where its file is gone, changed or unreadable."""
        path = self.path(source)
        if source is None or path is None:
            return None
        with self._lock:
            if source in self._kept:
                self._kept.move_to_end(source)
                return self._kept[source]
            if self._reader is None:
                self._reader = PictureReader(self._settings, PICTURE_SIZE).__enter__()
            picture = self._reader.read(path, source.member or None)
            if picture is not None:
                self._kept[source] = picture
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return picture


def windowed(picture: ByteArray, center: int, width: int) -> bytes:
    """A film as a JPEG; ``center`` and ``width`` of the window in percent of its greys, 50 and 100 for all."""
    width = max(LEAST_WIDTH, width)
    low = 255.0 * (center - width / 2) / 100.0
    table = np.clip((np.arange(256) - low) * (100.0 / width), 0, 255)
    return jpeg_bytes(np.rint(table).astype(np.uint8)[picture])


def picture_shape(film_rows: int, film_columns: int) -> tuple[int, int]:
    """Rows and columns of a film on its page."""
    return display_size(film_rows, film_columns, PICTURE_SIZE)


def regions_png(
    row: Any,
    regions: Collection[RegionDefinition],
    shown: Collection[str],
    *,
    opacity: int,
    outlines: bool,
) -> bytes:
    """Regions named in ``shown`` as a PNG over the film; ``row`` is of ``segmentation``, ``opacity`` in percent.

    Raises
    ------
    worker.results.masks.DamagedMaskError
        The stored mask is not what was written.
    """
    labels = decode_mask(row.mask, (row.height, row.width))
    large = labels_on(picture_shape(row.film_rows, row.film_columns), labels)
    wanted = [region for region in regions if region.name in shown]
    return png_bytes(region_layer(large, wanted, fill=opacity / 100.0, outlines=outlines))


def heat_png(heat: Any, finding: str, shape: tuple[int, int]) -> bytes | None:
    """The activation map of a finding as a PNG over the film; None where there is none."""
    found = activation(heat, finding)
    return None if found is None else png_bytes(heat_layer(found, shape))
