"""A film as a person looks at it: 8-bit grey, 512 pixels long by default, white is dense."""

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


def _steps(size: int) -> tuple[dict[str, Any], ...]:
    return (
        {"step": "percentile", "low": 0.5, "high": 99.5},
        {"step": "resize", "height": size, "width": size, "mode": "area", "fit": "longest_side"},
    )


class PictureReader:
    """Reads display pictures through the same decoder children as the night does.

    Their longest side has ``size`` pixels.
    """

    def __init__(self, settings: Settings, size: int = PICTURE_SIZE) -> None:
        self._pool = DecoderPool(
            {"picture": _steps(size)},
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
        """The picture of a file as :meth:`picture`, or None where it cannot be read any more."""
        try:
            return self.picture(path, member)
        except FilmError:
            return None

    def picture(self, path: Path, member: str | None = None) -> npt.NDArray[np.uint8]:
        """The whole film as the networks see it, uint8 (rows, columns).

        Raises
        ------
        FilmError
            Why it cannot be read.
        """
        try:
            film = self._pool.prepare(FilmSource(path, member))
        except DecoderDied:
            raise FilmError("DECODE_FAILED", "the process that read it died") from None
        square = film.tensors["picture"][0]
        picture = _without_border(square, film.geometry.film_rows, film.geometry.film_columns)
        return np.rint(picture * 255.0).clip(0, 255).astype(np.uint8)


def _without_border(square: npt.NDArray[np.float32], rows: int, columns: int) -> npt.NDArray[np.float32]:
    """The film inside the square it was fitted into: label maps and activation maps cover the film alone."""
    size = square.shape[0]
    scale = size / max(rows, columns)
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    top, left = (size - height) // 2, (size - width) // 2
    return square[top : top + height, left : left + width]
