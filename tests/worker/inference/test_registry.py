from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from tiny_bundle import make_bundle

from schema import tables
from schema.database import Database
from worker.errors import FilmError
from worker.inference.registry import bundle_folder, champion, record_engine
from worker.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    bundle = make_bundle(tmp_path / "bundle")
    return load_settings({"CARINA_HOME": str(tmp_path / "home"), "CARINA_BUNDLE": str(bundle)})


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Database]:
    settings.home.mkdir()
    database = Database(settings.url)
    database.upgrade()
    yield database
    database.close()


def test_the_first_bundle_is_registered_once_and_kept_here(ledger: Database, settings: Settings) -> None:
    first = champion(ledger, settings)
    assert champion(ledger, settings) == first
    assert first.directory == bundle_folder(settings, first.sha256)
    with ledger.read() as connection:
        assert connection.scalar(select(tables.bundle_alias.c.alias)) == "champion"
        assert connection.scalar(select(tables.audit_event.c.action)) == "promote"
    shutil.rmtree(settings.bundle)
    assert champion(ledger, settings) == first


def test_a_second_machine_that_brings_the_same_bundle_can_serve(
    ledger: Database, settings: Settings, tmp_path: Path
) -> None:
    first = champion(ledger, settings)
    other = load_settings({"CARINA_HOME": str(tmp_path / "other"), "CARINA_BUNDLE": settings.bundle})
    second = champion(ledger, other)
    assert (second.id, second.sha256) == (first.id, first.sha256)
    assert second.directory.is_relative_to(other.home)
    assert (second.directory / "bundle.json").is_file()


def test_a_machine_without_the_files_says_which_bundle_it_lacks(
    ledger: Database, settings: Settings, tmp_path: Path
) -> None:
    champion(ledger, settings)
    other = make_bundle(tmp_path / "newer", version="2")
    elsewhere = load_settings({"CARINA_HOME": str(tmp_path / "other"), "CARINA_BUNDLE": str(other)})
    with pytest.raises(FilmError, match=":1,") as refused:
        champion(ledger, elsewhere)
    assert refused.value.code == "BUNDLE_MISSING"


def test_an_engine_is_noted_once(ledger: Database, settings: Settings) -> None:
    registered = champion(ledger, settings)
    description = {"backend": "openvino", "backend_version": "1", "device": "CPU", "precision": "fp32", "members": {}}
    for _ in range(2):
        record_engine(ledger, registered.id, description, {"films": 2})
    with ledger.read() as connection:
        assert connection.execute(select(tables.engine.c.precision, tables.engine.c.parity)).all() == [
            ("fp32", {"films": 2})
        ]
