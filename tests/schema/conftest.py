from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stored_films import DIALECTS, Films, fresh_database

from schema.database import Database


@pytest.fixture(params=DIALECTS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def films(database: Database) -> Films:
    return Films(database)
