from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from stored_films import Films, fresh_database

from schema import tables
from worker.cli import main


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Films]:
    monkeypatch.setenv("CARINA_HOME", str(tmp_path))
    monkeypatch.setenv("CARINA_ALERT_DISK", "0")
    monkeypatch.setenv("COLUMNS", "200")
    with fresh_database("sqlite", tmp_path) as database:
        yield Films(database)


def carina(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, words)
    return result.exit_code, result.output


def test_what_is_open_is_listed_until_somebody_knows(films: Films) -> None:
    assert carina("alerts") == (0, "No alert is open.\n")
    films.film("ready", created_at=datetime.now(UTC) - timedelta(days=1))
    code, said = carina("alerts", "--update")
    assert code == 3 and "oldest_ready" in said and "icu" in said and "carina status" in said
    assert carina("alerts", "list")[0] == 3
    assert carina("alerts", "acknowledge", "1") == (0, "Alert 1 is acknowledged.\n")
    code, said = carina("alerts")
    assert code == 0 and "acknowledged" in said
    (row,) = json.loads(carina("alerts", "--json")[1])
    assert row["rule"] == "oldest_ready" and row["closed_at"] is None and row["acknowledged_at"]


def test_what_is_over_is_listed_on_request(films: Films) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    films.insert(tables.alert, rule="disk", subject="host", opened_at=past, quiet_since=past, closed_at=past)
    assert carina("alerts") == (0, "No alert is open.\n")
    code, said = carina("alerts", "--all")
    assert code == 0 and "closed" in said and "disk" in said


def test_what_cannot_be_done_is_said(films: Films) -> None:
    films.insert(tables.alert, rule="disk", subject="host")
    code, said = carina("alerts", "acknowledge", "7")
    assert code == 1 and "no alert 7" in said
    code, said = carina("alerts", "acknowledge", "1", "--accept")
    assert code == 1 and "closes by itself" in said
    assert carina("alerts", "--all", "acknowledge", "1")[0] == 2
