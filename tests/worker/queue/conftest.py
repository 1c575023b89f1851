from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_rows import Ledger, settings_for, template_database

from schema.database import Database
from worker.queue.ledger import register_worker
from worker.settings import Settings


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template_database(tmp_path_factory.mktemp("template"))


@pytest.fixture
def database(template: Path, tmp_path: Path) -> Iterator[Database]:
    file = tmp_path / "carina.sqlite"
    shutil.copy(template, file)
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path)


@pytest.fixture
def ledger(database: Database, settings: Settings) -> Iterator[Ledger]:
    worker = register_worker(database, settings, "one")
    yield Ledger(database, settings, worker)
    worker.release_name()
