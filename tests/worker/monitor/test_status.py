from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from stored_films import Films, result

from schema import tables
from schema.database import Database
from worker.monitor.status import duration, free_bytes, render, snapshot, warnings
from worker.settings import Settings


@pytest.fixture
def read_settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def shown(seen: dict[str, object]) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(render(seen))
    return console.export_text()


def test_a_new_database_has_a_status(database: Database, read_settings: Settings) -> None:
    seen = snapshot(database, read_settings)
    assert json.loads(json.dumps(seen)) == seen
    assert set(seen["films"].values()) == {0}
    assert seen["oldest_ready_seconds"] is None
    assert seen["seconds_left"] is None
    assert warnings(seen) == []
    text = shown(seen)
    assert "No worker was seen" in text and "No film ended" in text
    assert "Research use, not a medical device." in text


def test_everything_is_told(database: Database, films: Films, read_settings: Settings) -> None:
    films.film("done", stored=result())
    films.film("failed")
    films.film("leased")
    films.film("ready", created_at=datetime.now(UTC) - timedelta(hours=2))
    films.film("ready", priority=10)
    films.arrival("conflict", 1)
    seen = snapshot(database, read_settings)
    assert json.loads(json.dumps(seen)) == seen
    assert (seen["films"]["done"], seen["films"]["failed"], seen["films"]["ready"]) == (1, 1, 2)
    assert seen["files"]["conflict"] == 1
    assert seen["lanes"]["icu"]["ready"] == seen["lanes"]["icu"]["leased"] == seen["lanes"]["archive"]["ready"] == 1
    assert seen["oldest_ready_seconds"] == pytest.approx(7200, abs=60)
    assert seen["throughput"]["films_per_hour"] == 24
    assert seen["seconds_left"] == pytest.approx(3 / 24 * 3600)
    assert seen["workers"][0]["alive"] is True
    assert seen["bundles"] == {"champion": "phantom:1"}
    text = shown(seen)
    for part in (
        "icu",
        "archive",
        "host-1",
        "running",
        "phantom:1",
        "24 films/h",
        "2.0 h",
        "carina failed",
        "conflict",
    ):
        assert part in text, part


def test_no_identity_is_told(database: Database, films: Films, read_settings: Settings) -> None:
    films.film("failed", uid="1.2.840.4711", detail="why")
    seen = snapshot(database, read_settings)
    assert "4711" not in json.dumps(seen) + shown(seen)
    assert ".dcm" not in json.dumps(seen) + shown(seen)


@pytest.mark.parametrize("gone", ["stopped", "silent"])
def test_films_that_wait_for_nobody_are_said(
    database: Database, films: Films, read_settings: Settings, gone: str
) -> None:
    films.film("ready")
    now = datetime.now(UTC)
    values = {"stopped_at": now} if gone == "stopped" else {"seen_at": now - timedelta(minutes=30)}
    films.update(tables.worker, films.worker, **values)
    seen = snapshot(database, read_settings)
    assert warnings(seen) == ["1 film waiting and no worker running. Start one: carina worker"]
    assert gone in shown(seen)


def test_films_that_this_machine_cannot_reach_are_said(database: Database, films: Films, tmp_path: Path) -> None:
    films.film("ready")
    films.film("done", stored=result())
    seen = snapshot(database, Settings(home=tmp_path, roots=f"pacs={tmp_path}"))
    assert json.loads(json.dumps(seen)) == seen
    assert seen["missing_roots"] == {"local": {"films": 1, "reason": "CARINA_ROOTS does not name it"}}
    (sentence,) = warnings(seen)
    assert "1 film waiting under the root local, which this machine lacks" in sentence
    assert "under the root local" in shown(seen)
    assert snapshot(database, Settings(home=tmp_path))["missing_roots"] == {}


def test_a_full_disk_is_said(database: Database, tmp_path: Path) -> None:
    seen = snapshot(database, Settings(home=tmp_path, disk_reserve=1 << 60))
    assert [warning for warning in warnings(seen) if warning.startswith("Work pauses")]


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.0, "0 s"),
        (89.0, "89 s"),
        (90.0, "2 min"),
        (5399.0, "90 min"),
        (7200.0, "2.0 h"),
        (432_000.0, "5.0 d"),
    ],
)
def test_durations_in_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words
