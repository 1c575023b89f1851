"""Films read in this process, without a decoder child."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dicom_files
import pytest
from pydicom.dataset import Dataset

from worker.film.prepare import prepare
from worker.film.prepared import PreparedFilm
from worker.film.source import FilmSource

SHARED_FILMS = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "dicom"
ReadFilm = Callable[[Dataset | bytes], PreparedFilm]


@pytest.fixture
def read_film(tmp_path: Path) -> ReadFilm:
    """Reads a data set; its tensor ``film`` is the normalised film at full size, (1, rows, columns)."""

    def read(content: Dataset | bytes) -> PreparedFilm:
        path = tmp_path / "film.dcm"
        path.write_bytes(content if isinstance(content, bytes) else dicom_files.to_bytes(content))
        return prepare(FilmSource(path), {"film": []})

    return read


@pytest.fixture(scope="session")
def shared_films() -> list[Path]:
    """Real CR and DX files beside the repository; the test is skipped without them."""
    films = sorted(SHARED_FILMS.glob("*/*.dcm"))
    if not films:
        pytest.skip("the shared films are not on this machine")
    return films
