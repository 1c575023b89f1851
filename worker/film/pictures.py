"""A film as a person looks at it: 8-bit grey, at most 512 pixels, white is dense."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from worker.errors import FilmError
from worker.film.pool import DecoderDied, DecoderPool
from worker.film.source import FilmSource
from worker.settings import Settings

PICTURE_SIZE = 512
_STEPS: tuple[dict[str, Any], ...] = (
    {"step": "percentile", "low": 0.5, "high": 99.5},
    {"step": "resize", "height": PICTURE_SIZE, "width": PICTURE_SIZE, "mode": "area", "fit": "longest_side"},
)


class PictureReader:
    """Reads display pictures through the same decoder children as the night does."""

    def __init__(self, settings: Settings) -> None:
        self._pool = DecoderPool(
            {"picture": _STEPS},
            size=1,
            memory_bytes=settings.decode_memory,
            timeout_seconds=settings.decode_timeout,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def read(self, path: Path, member: str | None = None) -> npt.NDArray[np.uint8] | None:
        """The picture of a file as uint8 (rows, columns), or None where it cannot be read any more."""
        try:
            film = self._pool.prepare(FilmSource(path, member))
        except (FilmError, DecoderDied):
            return None
        return np.rint(film.tensors["picture"][0] * 255.0).clip(0, 255).astype(np.uint8)
