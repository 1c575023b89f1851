from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from output_films import Site, output_site

from worker.film.pictures import PictureReader
from worker.results.outputs.capture import LONGEST_SIDE
from worker.settings import load_settings

pytest.importorskip("highdicom", reason="the extra pacs is not installed")


@pytest.fixture(scope="session")
def pictures() -> Iterator[PictureReader]:
    with PictureReader(load_settings({}), LONGEST_SIDE) as reader:
        yield reader


@pytest.fixture
def site(tmp_path: Path, pictures: PictureReader) -> Iterator[Site]:
    with output_site(tmp_path, pictures) as opened:
        yield opened
