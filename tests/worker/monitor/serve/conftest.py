from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_server import Browser, serving
from stored_films import DIALECTS, Films, fresh_database

from schema.database import Database
from worker.settings import Settings


@pytest.fixture(params=DIALECTS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with fresh_database(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def films(database: Database) -> Films:
    return Films(database)


@pytest.fixture
def page_settings(tmp_path: Path) -> Settings:
    (tmp_path / "root" / "films").mkdir(parents=True)
    return Settings(home=tmp_path / "home", roots=f"local={tmp_path / 'root'}")


@pytest.fixture
def browser(database: Database, page_settings: Settings) -> Iterator[Browser]:
    with serving(database, page_settings) as opened:
        yield opened
