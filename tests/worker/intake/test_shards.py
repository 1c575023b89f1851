from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intake_rows import film, header, rows, source, write_film
from ledger_rows import settings_for

from schema import tables
from schema.database import Database
from worker.errors import CODES, CarinaError, Kind
from worker.intake.register import Examined
from worker.intake.scan import submit
from worker.intake.shards import Shard, parse_shard, shard_file, use_shard
from worker.settings import load_settings


def shards(count: int) -> list[Shard]:
    return [Shard(number, count) for number in range(1, count + 1)]


def takers(file: Examined, count: int) -> list[int]:
    return [shard.number for shard in shards(count) if shard.takes(file)]


@given(st.text(max_size=70), st.text(max_size=20), st.integers(1, 40))
def test_every_film_is_in_one_shard_wherever_it_lies(uid: str, path: str, count: int) -> None:
    assert len(takers(film(uid, path), count)) == 1
    assert takers(film(uid, path), count) == takers(film(uid, "elsewhere"), count)


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_file_without_a_header_is_in_one_shard_unless_the_trouble_may_be_the_machines(code: str) -> None:
    owners = takers(Examined(source("a/b", member="c"), None, code), 7)
    assert len(owners) == (7 if CODES[code].kind is Kind.TRANSIENT else 1)


def test_what_is_registered_already_stays_in_its_shard() -> None:
    assert takers(Examined(source("a")), 3) == [1, 2, 3]


def test_shards_are_of_one_size() -> None:
    counts = [sum(shard.takes(film(f"2.25.{number}", "f")) for number in range(3000)) for shard in shards(3)]
    assert min(counts) > 900


def test_the_division_is_for_ever() -> None:
    # A shard that is run again by a newer program must find its own films.
    assert [takers(film(f"2.25.{number}", "f"), 4)[0] for number in range(8)] == [3, 1, 4, 4, 2, 1, 3, 1]


def test_reading_a_shard() -> None:
    assert parse_shard(" 3/16 ") == Shard(3, 16)
    for wrong in ("0/4", "5/4", "3", "a/b", "-1/3", "1/0", "1/2/3", ""):
        with pytest.raises(ValueError, match="shard"):
            parse_shard(wrong)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARINA_BROKER_URL", "redis://broker")
    monkeypatch.delenv("CARINA_DATABASE_URL", raising=False)
    (tmp_path / "url").write_text("postgresql://somewhere/else")
    monkeypatch.setenv("CARINA_DATABASE_URL_FILE", str(tmp_path / "url"))


@pytest.mark.usefixtures("environment")
def test_children_work_in_the_shards_database_and_without_a_broker(tmp_path: Path) -> None:
    before = load_settings()
    settings = use_shard(before, Shard(2, 3))
    # What a worker process reads from the environment.
    assert load_settings() == settings
    assert (settings.home, settings.broker_url) == (before.home, "")
    file = tmp_path / "home" / "shards" / "carina-2-of-3.sqlite"
    assert settings.url == f"sqlite:///{file}"
    assert shard_file(before, Shard(2, 3)) == file
    database = Database(settings.url)
    database.require_current()
    database.close()
    assert "CARINA_DATABASE_URL_FILE" not in os.environ
    assert use_shard(before, Shard(2, 3), tmp_path / "local").url == f"sqlite:///{tmp_path}/local/carina-2-of-3.sqlite"


@pytest.mark.usefixtures("environment")
def test_a_folder_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CarinaError, match="--shard-folder"):
        use_shard(load_settings(), Shard(1, 1), tmp_path / "file" / "folder")


def test_shards_together_register_what_one_machine_would(tmp_path: Path, template: Path, home: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for number in range(20):
        write_film(films / f"{number}.dcm", f"2.25.{number // 2}", level=number)
    (films / "empty").write_bytes(b"")
    (films / "README").write_text("about these films")
    (films / "gone").symlink_to(films / "nowhere")
    found: list[tuple[str, str]] = []
    others = 0
    for shard in shards(3):
        file = tmp_path / f"{shard.number}.sqlite"
        file.write_bytes(template.read_bytes())
        database = Database(f"sqlite:///{file}")
        options = settings_for(home, database_url=database.url.render_as_string())
        report = submit(database, options, [films], takes=shard.takes)
        again = submit(database, options, [films], takes=shard.takes)
        assert again.counts.seen_before + again.counts.not_dicom + again.counts.rejected.total() == report.files_seen
        assert again.counts.work == 0
        others += report.counts.not_dicom
        # Both files of a UID are here.
        states = [row.state for row in rows(database, tables.arrival)]
        assert states.count("instance") == states.count("unverified")
        places = {row.arrival_id: row.path for row in rows(database, tables.identity)}
        found += [(places[row.id], row.state) for row in rows(database, tables.arrival) if row.code != "SOURCE_MISSING"]
        assert states.count("rejected") - 1 in (0, 1)
        database.close()
    assert others == 1
    assert len(found) == len(set(found)) == 21


def test_a_header_decides_even_where_it_is_odd() -> None:
    odd = Examined(source("f"), header("2.25.1\ud800"))
    assert len(takers(odd, 5)) == 1
