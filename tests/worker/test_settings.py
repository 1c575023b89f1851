from __future__ import annotations

import stat
from dataclasses import fields
from pathlib import Path

import pytest

from worker.errors import CarinaError
from worker.settings import Settings, load_settings, site_key

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_defaults_suit_one_machine(tmp_path: Path) -> None:
    settings = load_settings({"CARINA_HOME": str(tmp_path)})
    assert settings.url == f"sqlite:///{tmp_path}/carina.sqlite"
    assert settings.root_folders == {"local": Path("/")}
    assert settings.decoder_count >= 1


def test_values_are_converted(tmp_path: Path) -> None:
    settings = load_settings({"CARINA_CLAIM_SIZE": "4", "CARINA_POLL_SECONDS": "0.5", "CARINA_ROOTS": "a=/x, b=/y"})
    assert (settings.claim_size, settings.poll_seconds) == (4, 0.5)
    assert settings.root_folders == {"a": Path("/x"), "b": Path("/y")}


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(CarinaError, match="Did you mean CARINA_CLAIM_SIZE"):
        load_settings({"CARINA_CLAIMSIZE": "4"})


def test_wrong_type_is_refused() -> None:
    with pytest.raises(CarinaError, match="CARINA_CLAIM_SIZE must be a number"):
        load_settings({"CARINA_CLAIM_SIZE": "many"})


def test_bad_root_is_refused() -> None:
    with pytest.raises(CarinaError, match="ABSOLUTE"):
        _ = load_settings({"CARINA_ROOTS": "pacs=relative"}).root_folders


def test_secret_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("sqlite:////somewhere/else.sqlite\n")
    assert load_settings({"CARINA_DATABASE_URL_FILE": str(file)}).url == "sqlite:////somewhere/else.sqlite"
    with pytest.raises(CarinaError, match="CARINA_DATABASE_URL_FILE"):
        load_settings({"CARINA_DATABASE_URL_FILE": str(tmp_path / "absent")})


def test_site_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    settings = load_settings({"CARINA_HOME": str(tmp_path / "home")})
    key = site_key(settings)
    assert len(key) == 32
    assert site_key(settings) == key
    assert stat.S_IMODE((tmp_path / "home" / "site.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert [file.name for file in (tmp_path / "home").iterdir()] == ["site.key"]


def test_a_damaged_site_key_is_said(tmp_path: Path) -> None:
    (tmp_path / "site.key").write_text("abc")
    with pytest.raises(CarinaError, match="estore it"):
        site_key(load_settings({"CARINA_HOME": str(tmp_path)}))


def test_every_setting_is_documented() -> None:
    text = DOCUMENT.read_text("utf-8")
    missing = [item.name for item in fields(Settings) if f"`CARINA_{item.name.upper()}`" not in text]
    assert missing == []
    for item in fields(Settings):
        assert item.metadata["meaning"] in text, item.name
