"""What tests of a real PostgreSQL work on; ``database`` is one of either kind here too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_rows import Ledger, add_bundle, settings_for

from schema.database import Database
from worker.queue.workers import register_worker


@pytest.fixture
def postgresql(postgresql_url: str) -> Iterator[Database]:
    """A fresh PostgreSQL database with a bundle."""
    opened = Database(postgresql_url)
    add_bundle(opened)
    yield opened
    opened.close()


@pytest.fixture
def ledger(postgresql: Database, tmp_path: Path) -> Iterator[Ledger]:
    """The same with a worker named ``one``."""
    settings = settings_for(tmp_path)
    worker = register_worker(postgresql, settings, "one")
    yield Ledger(postgresql, settings, worker)
    worker.release_name()
