from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_rows import Ledger, add_bundle, settings_for, template_database

from schema.database import Database
from worker.queue.ledger import register_worker
from worker.settings import Settings


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    add_bundle(database)
    yield database
    database.close()


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return settings_for(tmp_path, database_url=database_url)


@pytest.fixture
def ledger(database: Database, settings: Settings) -> Iterator[Ledger]:
    worker = register_worker(database, settings, "one")
    yield Ledger(database, settings, worker)
    worker.release_name()
