"""What a bundle must show before it serves, and that whoever insists is on record."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chest_bundle import make_chest_bundle, segmentation_network
from sqlalchemy import select
from stored_films import Films, result

from schema import tables
from schema.database import Database
from worker.errors import CarinaError
from worker.inference.bundles import load_bundle
from worker.inference.promotion import LEAST_SHADOW_FILMS, Promotion, promote
from worker.inference.registry import add_bundle, bundle_folder, champion, find_bundle, record_engine
from worker.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    bundle = make_chest_bundle(tmp_path / "chest-1", 1)
    return Settings(home=home, bundle=str(bundle), precision="fp32", disk_reserve=0)


@pytest.fixture
def ledger(database: Database, settings: Settings) -> Database:
    champion(database, settings)
    return database


def add(ledger: Database, settings: Settings, folder: Path, version: int = 2, **options: Any) -> str:
    return add_bundle(ledger, settings, make_chest_bundle(folder, version, **options), actor="ann").key


def serving(ledger: Database) -> str:
    with ledger.read() as connection:
        return connection.execute(
            select(tables.bundle.c.version)
            .join(tables.bundle_alias, tables.bundle_alias.c.bundle_id == tables.bundle.c.id)
            .where(tables.bundle_alias.c.alias == "champion")
        ).scalar_one()


def last_event(ledger: Database) -> Any:
    with ledger.read() as connection:
        return connection.execute(select(tables.audit_event).order_by(tables.audit_event.c.id.desc()).limit(1)).one()


def engines(ledger: Database) -> int:
    with ledger.read() as connection:
        return len(connection.execute(select(tables.engine)).all())


def recorded(ledger: Database, settings: Settings, key: str) -> None:
    description = {"backend": "other", "backend_version": "1", "device": "elsewhere", "precision": "fp32"}
    record_engine(ledger, find_bundle(ledger, settings, key).id, description, {})


class TestEngine:
    def test_one_is_made_where_none_is_known(self, ledger: Database, settings: Settings, tmp_path: Path) -> None:
        key = add(ledger, settings, tmp_path / "next")
        assert promote(ledger, settings, key, actor="ann").overridden == ()
        assert (serving(ledger), engines(ledger)) == ("2", 1)
        assert last_event(ledger).detail == {"instead_of": "chest:1"}
        # To promote what serves already changes nothing.
        event = last_event(ledger)
        assert promote(ledger, settings, key, actor="ann") == Promotion(find_bundle(ledger, settings, key), (), ())
        assert last_event(ledger) == event

    def test_a_network_that_gives_no_numbers_is_refused_and_who_insists_is_on_record(
        self, ledger: Database, settings: Settings, tmp_path: Path
    ) -> None:
        key = add(ledger, settings, tmp_path / "next", segmenter=segmentation_network(2, broken=True))
        with pytest.raises(CarinaError, match=r"chest:2 is not put into service.*not finite.*chest:2 --force"):
            promote(ledger, settings, key, actor="ann")
        assert (serving(ledger), engines(ledger)) == ("1", 0)
        (reason,) = promote(ledger, settings, key, actor="bob", force=True).overridden
        assert serving(ledger) == "2"
        event = last_event(ledger)
        assert (event.actor, event.action, event.subject) == ("bob", "promote", "chest:2")
        assert event.detail == {"instead_of": "chest:1", "overridden": [reason]} and "not finite" in reason

    def test_none_is_made_where_the_workers_could_not_use_it(
        self, ledger: Database, settings: Settings, tmp_path: Path
    ) -> None:
        key, never = add(ledger, settings, tmp_path / "next"), replace(settings, engine_build="never")
        with pytest.raises(CarinaError, match=r"not in the engine cache, and CARINA_ENGINE_BUILD is never"):
            promote(ledger, never, key, actor="ann")
        directory = bundle_folder(settings, find_bundle(ledger, settings, key).sha256)
        load_bundle(directory, home=settings.home, precision="fp32").close()
        promote(ledger, never, key, actor="ann")
        assert (serving(ledger), engines(ledger)) == ("2", 1)

    def test_one_of_another_machine_counts_where_the_files_are_not(
        self, ledger: Database, settings: Settings, tmp_path: Path
    ) -> None:
        key = add(ledger, settings, tmp_path / "next")
        shutil.rmtree(bundle_folder(settings, find_bundle(ledger, settings, key).sha256))
        with pytest.raises(CarinaError, match=r"No engine of it has passed .* this machine lacks its files"):
            promote(ledger, settings, key, actor="ann")
        recorded(ledger, settings, key)
        promote(ledger, settings, key, actor="ann")
        assert serving(ledger) == "2"

    def test_damaged_files_count_more_than_what_is_recorded(
        self, ledger: Database, settings: Settings, tmp_path: Path
    ) -> None:
        key = add(ledger, settings, tmp_path / "next")
        recorded(ledger, settings, key)
        (bundle_folder(settings, find_bundle(ledger, settings, key).sha256) / "regions.onnx").write_bytes(b"torn")
        with pytest.raises(CarinaError, match=r"regions\.onnx is not the file"):
            promote(ledger, settings, key, actor="ann")
        assert serving(ledger) == "1"

    def test_the_first_bundle_of_all_has_nothing_to_be_compared_with(
        self, database: Database, settings: Settings, tmp_path: Path
    ) -> None:
        key = add(database, settings, tmp_path / "first")
        assert promote(database, settings, key, actor="ann").remarks == ()
        assert serving(database) == "2"


class TestShadow:
    @pytest.fixture
    def films(self, database: Database) -> Films:
        return Films(database)

    def trial(self, films: Films, settings: Settings, count: int, pneumonia: float) -> str:
        """A candidate that has read so many films, the champion saying 0.25 of each."""
        candidate = films.add_bundle("2", metrics={})
        films.update(tables.bundle, films.bundle, manifest={**manifest_of(films, films.bundle), "metrics": {}})
        recorded(films.database, settings, "phantom:2")
        for _ in range(count):
            films.film("done", stored=result())
            job = films.job(films.count, "done", kind="shadow", published=False, priority=20, bundle_id=candidate)
            store(films, job, result(pneumonia=pneumonia))
        return "phantom:2"

    def test_none_is_asked_for_unless_set(self, films: Films, settings: Settings) -> None:
        promote(films.database, settings, self.trial(films, settings, 0, 0.3), actor="ann")
        assert serving(films.database) == "2"

    def test_too_few_films_tell_nothing(self, films: Films, settings: Settings) -> None:
        key = self.trial(films, settings, 3, 0.3)
        asked = settings_with(settings, 0.9)
        with pytest.raises(CarinaError, match=r"has read 3 of the films .*carina bundle shadow phantom:2 --last 500"):
            promote(films.database, asked, key, actor="ann")

    @pytest.mark.parametrize(("pneumonia", "agrees"), [(0.3, True), (0.9, False)])
    def test_agreement_decides(self, films: Films, settings: Settings, pneumonia: float, agrees: bool) -> None:
        key = self.trial(films, settings, LEAST_SHADOW_FILMS, pneumonia)
        asked = settings_with(settings, 0.9)
        if agrees:
            promote(films.database, asked, key, actor="ann")
            assert last_event(films.database).detail["published"] == LEAST_SHADOW_FILMS
        else:
            with pytest.raises(CarinaError, match=r"agrees with phantom:1 to 0\.500 on 30 films, asked for is 0\.9"):
                promote(films.database, asked, key, actor="ann")
        assert serving(films.database) == ("2" if agrees else "1")


def settings_with(settings: Settings, agreement: float) -> Settings:
    return Settings(home=settings.home, disk_reserve=0, shadow_agreement=agreement)


def manifest_of(films: Films, bundle_id: int) -> dict[str, Any]:
    return films.value(select(tables.bundle.c.manifest).where(tables.bundle.c.id == bundle_id))


def store(films: Films, job: int, stored: Any) -> None:
    from worker.results.write import write_results

    with films.database.write() as connection:
        write_results(connection, [(job, stored)])
