from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from phantom_bundle import PHANTOM_BUNDLE
from sqlalchemy import text
from stored_films import Films, result

from schema import tables
from schema.bundle import MANIFEST_NAME, sha256_of
from schema.database import Database
from worker.inference.bundles import PACKAGED_BUNDLE
from worker.monitor import doctor
from worker.monitor.doctor import CHECKS, Check, examine, information
from worker.settings import Settings, site_key


@pytest.fixture
def here(tmp_path: Path, database: Database) -> Settings:
    """Settings of the database under test."""
    url = database.url.render_as_string(hide_password=False)
    return Settings(home=tmp_path, database_url=url, decoders=1)


def check(settings: Settings, name: str) -> Check:
    return next(item for item in examine(settings) if item.name == name)


def test_a_machine_where_nothing_was_started_yet_is_examined_without_a_trace(tmp_path: Path) -> None:
    home = tmp_path / "not" / "yet"
    checks = examine(Settings(home=home))
    assert [item.name for item in checks] == [name for name, _ in CHECKS]
    assert [item for item in checks if item.ok == "fail" and item.name != "bundle"] == []
    assert not home.exists() and list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps([item.to_json() for item in checks]))[0]["name"] == "Python"


def test_what_is_not_well_has_an_advice(here: Settings) -> None:
    for item in examine(here):
        assert item.finding
        assert item.ok == "ok" or item.advice, item


def test_a_sound_database_is_well(here: Settings, films: Films) -> None:
    films.film("done", stored=result())
    site_key(here)
    found = {item.name: item.ok for item in examine(here)}
    assert {found[name] for name in ("database", "ledger", "work", "site key", "clock", "home folder")} == {"ok"}


def test_a_database_of_another_version_is_told_with_both_versions(here: Settings, database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    found = check(here, "database")
    assert found.ok == "fail" and "9999" in found.finding


def test_a_database_that_does_not_answer_stops_no_other_check(tmp_path: Path) -> None:
    (tmp_path / "carina.sqlite").write_bytes(b"not a database" * 1000)
    checks = examine(Settings(home=tmp_path))
    found = {item.name: item for item in checks}
    assert len(checks) == len(CHECKS)
    assert found["database"].ok == "fail" and "does not answer" in found["database"].finding
    assert found["ledger"].ok == "ok"


def test_a_ledger_that_contradicts_itself_is_told(here: Settings, films: Films) -> None:
    films.film("done")
    found = check(here, "ledger")
    assert found.ok == "fail" and "jobs done without a result" in found.finding


def test_films_that_wait_too_long_are_told(here: Settings, films: Films) -> None:
    films.film("ready")
    assert check(here, "work").ok == "ok"
    films.update(tables.job, 1, created_at=datetime.now(UTC) - timedelta(hours=2))
    found = check(here, "work")
    assert found.ok == "warn" and "2.0 h" in found.finding and "carina status" in found.advice


def test_the_site_key_is_looked_after(here: Settings, films: Films) -> None:
    path = here.home / "site.key"
    assert check(here, "site key").ok == "ok"
    site_key(here)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert check(here, "site key").ok == "ok"
    path.chmod(0o644)
    assert check(here, "site key").ok == "warn"
    path.write_text("zz")
    assert check(here, "site key").ok == "fail"
    path.unlink()
    films.instance()
    found = check(here, "site key")
    assert found.ok == "fail" and "backup" in found.advice
    assert not path.exists()


def test_a_home_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check(Settings(home=tmp_path / "file"), "home folder").ok == "fail"


def test_a_home_on_a_share_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype="nfs4")]
    monkeypatch.setattr(doctor.psutil, "disk_partitions", lambda all: mounts)
    found = check(Settings(home=tmp_path / "home"), "home folder")
    assert found.ok == "warn" and "nfs4" in found.finding and "local disk" in found.advice
    assert check(Settings(home=tmp_path.parent), "home folder").ok == "ok"


@pytest.mark.parametrize(
    ("version", "ok"), [((3, 40, 1), "warn"), ((3, 51, 2), "warn"), ((3, 51, 3), "ok"), ((3, 53, 0), "ok")]
)
def test_sqlite_versions_with_the_write_ahead_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], ok: str
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    assert check(Settings(home=tmp_path), "SQLite").ok == ok


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert check(Settings(home=tmp_path, disk_reserve=free * 2), "disk").ok == "fail"
    assert check(Settings(home=tmp_path, disk_reserve=free // 2), "disk").ok == "warn"
    assert check(Settings(home=tmp_path, disk_reserve=free // 100), "disk").ok == "ok"


def test_an_engine_backend_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert check(Settings(home=tmp_path), "engine").ok == "ok"
    assert check(Settings(home=tmp_path, backend="abacus"), "engine").ok == "fail"
    assert check(Settings(home=tmp_path, precision="int2"), "engine").ok == "warn"


def test_every_decoder_loads_and_a_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(Settings(home=tmp_path), "decoders").ok == "ok"

    def absent(_frame: bytes, _layout: object) -> None:
        raise ImportError

    syntax = next(uid for uid, item in doctor.SYNTAXES.items() if item.decode is not None)
    broken = SimpleNamespace(title="A syntax", decode=absent)
    monkeypatch.setitem(doctor.SYNTAXES, syntax, broken)  # type: ignore[arg-type]
    found = check(Settings(home=tmp_path), "decoders")
    assert found.ok == "fail" and "A syntax" in found.finding


def test_film_folders_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "film").touch()
    assert check(Settings(home=tmp_path, roots=f"pacs={tmp_path}"), "film folders").ok == "ok"
    found = check(Settings(home=tmp_path, roots=f"pacs={tmp_path / 'absent'}"), "film folders")
    assert found.ok == "warn" and "pacs" in found.finding
    assert check(Settings(home=tmp_path, roots="pacs=relative"), "film folders").ok == "fail"


def test_films_under_a_root_of_other_machines_are_told(here: Settings, films: Films) -> None:
    films.film("ready")
    assert check(here, "film folders").ok == "ok"
    (here.home / "film").touch()
    found = check(replace(here, roots=f"pacs={here.home}"), "film folders")
    assert found.ok == "warn" and "1 film waiting there" in found.finding
    assert "local: CARINA_ROOTS does not name it" in found.finding and "other machines" in found.advice


def test_more_decoder_memory_than_there_is_is_told(tmp_path: Path) -> None:
    assert check(Settings(home=tmp_path, decoders=1, decode_memory=1 << 20), "processor").ok == "ok"
    assert check(Settings(home=tmp_path, decoders=4, decode_memory=1 << 50), "processor").ok == "warn"


def test_a_check_that_fails_itself_is_told_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_machine: object) -> doctor.Finding:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(doctor, "CHECKS", (("odd", broken), *CHECKS[:1]))
    odd, python = examine(Settings(home=tmp_path))
    assert odd.ok == "fail" and "ZeroDivisionError" in odd.finding and "secret" not in odd.finding
    assert python.ok == "ok"


@pytest.mark.skipif(not (PHANTOM_BUNDLE / MANIFEST_NAME).is_file(), reason="the packaged bundle is not built")
def test_the_bundle_in_service_is_verified(here: Settings, database: Database, films: Films) -> None:
    with database.write() as connection:
        connection.execute(tables.bundle_alias.delete())
    assert check(here, "bundle").ok == "ok"
    with database.write() as connection:
        connection.execute(tables.bundle_alias.insert().values(alias="champion", bundle_id=films.bundle))
    assert check(here, "bundle").ok == "fail"
    folder = here.home / "bundles" / doctor_bundle_name(database)
    shutil.copytree(PHANTOM_BUNDLE, folder)
    assert check(here, "bundle").ok == "ok"
    next(folder.glob("*.onnx")).write_bytes(b"another network")
    found = check(here, "bundle")
    assert found.ok == "fail" and "SHA-256 differs" in found.finding


def test_a_packaged_bundle_that_the_database_does_not_know_is_told(
    here: Settings, database: Database, films: Films
) -> None:
    """After an upgrade the old bundle goes on serving: nobody would hear of the new one otherwise."""
    folder = here.home / "bundles" / doctor_bundle_name(database)
    shutil.copytree(PHANTOM_BUNDLE, folder)
    assert "brings" not in check(replace(here, bundle=str(PHANTOM_BUNDLE)), "bundle").finding
    found = check(replace(here, bundle=""), "bundle")
    assert found.ok == "ok" and "phantom" in found.finding and "carina:1" in found.finding
    assert f"carina bundle add {PACKAGED_BUNDLE}" in found.advice and "shadow carina:1 --last 500" in found.advice
    registered = sha256_of(PACKAGED_BUNDLE / MANIFEST_NAME)
    with database.write() as connection:
        row = dict(connection.execute(tables.bundle.select()).mappings().one())
        connection.execute(
            tables.bundle.insert().values({**row, "id": row["id"] + 1, "name": "carina", "sha256": registered})
        )
    assert "brings" not in check(replace(here, bundle=""), "bundle").finding


def doctor_bundle_name(database: Database) -> str:
    with database.read() as connection:
        return str(connection.scalar(tables.bundle.select().with_only_columns(tables.bundle.c.sha256)))[:16]


def test_information_is_complete_and_fit_for_json(here: Settings, films: Films) -> None:
    facts = information(here)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["schema_version"]["program"] == facts["schema_version"]["database"]
    assert facts["bundles"] == {"champion": "phantom:1"}
    assert facts["transfer_syntaxes"]["1.2.840.10008.1.2.4.70"]
    assert facts["regions"]["7"] == "carina"
    assert facts["engine"]["backend"] == "openvino"
    assert facts["packages"]["pydicom"]
    assert facts["intended_use"] == "Research use, not a medical device."


def test_information_needs_no_database_and_shows_no_password(tmp_path: Path) -> None:
    facts = information(Settings(home=tmp_path / "new"))
    assert facts["schema_version"]["database"] is None and facts["bundles"] is None
    assert not (tmp_path / "new").exists()
    pytest.importorskip("psycopg")
    facts = information(Settings(home=tmp_path, database_url="postgresql+psycopg://carina:secret@127.0.0.1:1/carina"))
    assert "secret" not in json.dumps(facts) and facts["schema_version"]["database"] is None
