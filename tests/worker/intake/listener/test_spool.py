from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from worker.errors import CarinaError
from worker.intake.listener.spool import Spool
from worker.intake.sources import resolve
from worker.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def spool(settings: Settings) -> Spool:
    return Spool(settings)


def received(spool: Spool, name: str, data: bytes = b"film") -> Path:
    file = spool.incoming / name
    file.write_bytes(data)
    return file


def test_a_film_is_kept_by_its_hash_and_found_below_the_root_spool(spool: Spool, settings: Settings) -> None:
    source = spool.keep(received(spool, "a"))
    digest = hashlib.sha256(b"film").hexdigest()
    assert (source.root, source.path) == ("spool", f"films/{digest[0]}/{digest[1]}/{digest}.dcm")
    assert resolve(settings, source).read_bytes() == b"film"
    assert list(spool.incoming.iterdir()) == []


def test_the_same_bytes_again_are_the_same_file(spool: Spool) -> None:
    first, again = (spool.keep(received(spool, name)) for name in "ab")
    assert first == again
    assert len(list(spool.films.rglob("*.dcm"))) == 1
    assert spool.keep(received(spool, "c", b"another")) != first


def test_only_a_machine_with_a_listener_has_the_root(settings: Settings) -> None:
    assert "spool" not in settings.root_folders
    Spool(settings)
    assert settings.root_folders["spool"] == settings.home / "spool"


def test_what_a_dead_listener_left_is_swept(spool: Spool) -> None:
    for process in ("17", "18"):
        (spool.incoming / process).mkdir()
        (spool.incoming / process / "half.dcm").write_bytes(b"ha")
    kept = spool.keep(received(spool, "a"))
    assert spool.sweep(17) == 1
    assert spool.sweep(99) == 0
    assert (spool.incoming / "18" / "half.dcm").exists()
    assert spool.sweep() == 1
    assert list(spool.incoming.iterdir()) == []
    assert (spool.folder / kept.path).exists()


def test_the_scratch_folder_goes_with_what_is_in_it(spool: Spool) -> None:
    with spool.scratch() as folder:
        (folder / "half.dcm").write_bytes(b"ha")
    assert not folder.exists()


def test_two_listeners_do_not_share_a_home(spool: Spool, settings: Settings) -> None:
    other = Spool(settings)
    with spool.ours(), pytest.raises(CarinaError, match="Another listener uses this home folder"), other.ours():
        pass
    with other.ours():
        pass


def test_a_home_that_cannot_be_written_is_said_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(CarinaError, match="CARINA_HOME") as raised:
        Spool(Settings(home=tmp_path / "home"))
    assert str(tmp_path) not in str(raised.value)
