from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import drift_rows
import pytest
from click.testing import CliRunner
from drift_rows import NightRows
from sqlalchemy import select
from stored_films import Films, fresh_database

from schema import tables
from worker.cli import main
from worker.monitor.drift_charts import BASELINE_NIGHTS

NIGHTS = BASELINE_NIGHTS + 6


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NightRows]:
    """Nights until yesterday."""
    monkeypatch.setenv("CARINA_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    monkeypatch.setattr(drift_rows, "FIRST", noon - timedelta(days=NIGHTS))
    with fresh_database("sqlite", tmp_path) as database:
        yield NightRows(Films(database))


def carina(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, words)
    return result.exit_code, result.output


def test_quiet_nights(rows: NightRows) -> None:
    rows.add(range(NIGHTS))
    code, said = carina("drift")
    assert code == 0 and "0 have moved" in said and "grey level" not in said
    code, said = carina("drift", "--all")
    assert code == 0 and "grey level" in said and "quiet" in said


def test_what_has_moved_is_shown_and_alerted(rows: NightRows) -> None:
    rows.add(range(BASELINE_NIGHTS + 2))
    rows.add(range(BASELINE_NIGHTS + 2, NIGHTS), gain=1.2)
    code, said = carina("drift")
    assert code == 3 and "grey level" in said and "all films" in said
    code, said = carina("drift", "--json")
    told = json.loads(said)
    moved = {(each["name"], each["group"]) for each in told["series"] if each["state"] == "signal"}
    assert code == 3 and told["bundle"] == "phantom:1" and ("grey level", "all films") in moved
    assert carina("alerts") == (0, "No alert is open.\n")
    code, said = carina("alerts", "--update")
    assert code == 3 and "input_drift" in said and "--accept" in said
    number = rows.films.value(select(tables.alert.c.id).where(tables.alert.c.rule == "input_drift"))
    code, said = carina("alerts", "acknowledge", str(number), "--accept")
    assert code == 0 and "learned anew" in said
    code, said = carina("alerts", "list", "--all", "--json")
    states = {row["id"]: row["closed_at"] is not None for row in json.loads(said)}
    assert states[number]
    code, said = carina("drift")
    assert "still learned" in said and "grey" not in said


def test_before_anything_was_read(rows: NightRows) -> None:
    assert carina("drift")[0] == 0
    with rows.database.write() as connection:
        connection.execute(tables.bundle_alias.delete())
    assert "No bundle is in service" in carina("drift")[1]
    assert json.loads(carina("drift", "--json")[1]) == {"bundle": None, "until": None, "series": []}
