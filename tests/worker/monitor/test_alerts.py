from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drift_rows import NightRows, morning_after
from labelled_films import LAST, NIGHT, LabelledFilms
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from stored_films import Films

from schema import tables
from schema.database import Database
from worker.errors import CarinaError
from worker.monitor.alert_rules import DRIFT_RULES, LEDGER_RULES, Level, Reading
from worker.monitor.alerts import (
    AlertReport,
    acknowledge,
    alert_duty,
    drift_duty,
    keep_alerts,
    list_alerts,
    look_at_ledger,
    look_at_nights,
)
from worker.monitor.auc import track
from worker.monitor.drift_charts import BASELINE_NIGHTS
from worker.settings import Settings

START = datetime(2026, 3, 1, tzinfo=UTC)
QUIET = {"alert_wait_icu": 0, "alert_wait_archive": 0, "alert_no_films": 0, "alert_failures": 0, "alert_disk": 0}


def alerts(database: Database, **wanted: Any) -> list[Any]:
    with database.read() as connection:
        rows = list_alerts(connection, closed=True)
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def told(database: Database, level: Level | None, minutes: float, rule: str = "oldest_ready") -> AlertReport:
    """What a look finds after so many minutes; None: the subject is no more."""
    readings = [] if level is None else [Reading(rule, "icu", level, minutes, 1.0, f"after {minutes:g} minutes")]
    return keep_alerts(database, readings, LEDGER_RULES, now=START + timedelta(minutes=minutes))


def test_an_alert_is_opened_once_and_kept_current(database: Database) -> None:
    assert told(database, Level.BETWEEN, 0) == AlertReport(0, 0)
    assert told(database, Level.ON, 1) == AlertReport(1, 0)
    assert str(told(database, Level.ON, 2)) == "0 opened, 0 closed"
    (row,) = alerts(database)
    assert (row.opened_at, row.seen_at) == (START + timedelta(minutes=1), START + timedelta(minutes=2))
    assert (row.value, row.detail, row.closed_at) == (2.0, "after 2 minutes", None)


def test_it_is_closed_when_it_has_been_quiet_for_a_while(database: Database) -> None:
    told(database, Level.ON, 0)
    assert told(database, Level.OFF, 1) == AlertReport(0, 0)
    assert told(database, Level.OFF, 10) == AlertReport(0, 0)
    # It flutters: the time begins anew.
    assert told(database, Level.BETWEEN, 12) == AlertReport(0, 0)
    assert told(database, None, 13) == AlertReport(0, 0)
    assert told(database, None, 27) == AlertReport(0, 0)
    assert told(database, Level.OFF, 28) == AlertReport(0, 1)
    (row,) = alerts(database)
    assert row.closed_at == START + timedelta(minutes=28) and row.quiet_since == START + timedelta(minutes=13)
    # The next one is another alert.
    assert told(database, Level.ON, 60) == AlertReport(1, 0)
    assert [each.closed_at is None for each in alerts(database)] == [True, False]


def test_a_look_that_does_not_tell_of_a_rule_leaves_its_alerts_alone(database: Database) -> None:
    disk = Reading("disk", "other-host", Level.ON)
    keep_alerts(database, [disk], LEDGER_RULES, now=START)
    assert told(database, None, 600) == AlertReport(0, 0)
    assert keep_alerts(database, [], DRIFT_RULES, now=START + timedelta(hours=23)) == AlertReport(0, 0)
    assert len(alerts(database, closed_at=None)) == 1


def test_the_disk_of_a_machine_that_was_taken_away_is_no_alert_for_ever(database: Database) -> None:
    keep_alerts(database, [Reading("disk", "other-host", Level.ON)], LEDGER_RULES, now=START)
    assert told(database, None, 24 * 60 + 1) == AlertReport(0, 0)
    assert told(database, None, 24 * 60 + 3) == AlertReport(0, 1)


def test_the_database_refuses_a_second_open_one(database: Database) -> None:
    told(database, Level.ON, 0)
    with pytest.raises(IntegrityError), database.write() as connection:
        connection.execute(insert(tables.alert).values(rule="oldest_ready", subject="icu", detail=""))


def test_the_ledger_opens_and_closes_alerts(films: Films, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, **{**QUIET, "alert_wait_icu": 60.0, "alert_disk": 1 << 60})
    job = films.film("ready", created_at=datetime.now(UTC) - timedelta(hours=1))
    assert look_at_ledger(films.database, settings) == AlertReport(2, 0)
    assert {row.rule for row in alerts(films.database)} == {"oldest_ready", "disk"}
    films.update(tables.job, job, state="cancelled")
    now = datetime.now(UTC)
    assert look_at_ledger(films.database, settings, now=now) == AlertReport(0, 0)
    assert look_at_ledger(films.database, settings, now=now + timedelta(minutes=16)) == AlertReport(0, 1)
    assert [row.rule for row in alerts(films.database, closed_at=None)] == ["disk"]


def test_a_scanner_that_changes_its_gain_is_alerted_before_any_label(films: Films) -> None:
    """Acceptance: seen within three nights of the change, once, and over when it is changed back."""
    rows, change = NightRows(films), BASELINE_NIGHTS + 3
    nights = range(change - 3, change + 15)
    rows.add(range(change + 15), station="DR2")
    rows.add(range(change))
    rows.add(range(change, change + 8), gain=1.2)
    rows.add(range(change + 8, change + 15))
    opened = {night: look_at_nights(films.database, now=morning_after(night)).opened for night in nights}
    assert {night: count for night, count in opened.items() if count} == {change + 2: 1}
    (row,) = alerts(films.database)
    assert (row.rule, row.subject) == ("input_drift", "phantom:1, station CR1")
    assert "grey level" in row.detail and row.threshold == 3.0 and row.value > 3
    assert row.opened_at == morning_after(change + 2)
    assert morning_after(change + 8) < row.closed_at <= morning_after(change + 14)
    assert films.value(select(tables.label.c.id)) is None


def test_accepting_learns_anew(films: Films) -> None:
    rows = NightRows(films)
    rows.add(range(BASELINE_NIGHTS))
    rows.add(range(BASELINE_NIGHTS, BASELINE_NIGHTS + 6), gain=1.2)
    look_at_nights(films.database, now=morning_after(BASELINE_NIGHTS + 5))
    (row,) = alerts(films.database)
    acknowledge(films.database, row.id, actor="somebody", accept=True)
    (row,) = alerts(films.database)
    assert row.closed_at == row.accepted_at == row.acknowledged_at
    assert look_at_nights(films.database, now=morning_after(BASELINE_NIGHTS + 5)) == AlertReport(0, 0)
    with films.database.read() as connection:
        event = connection.execute(select(tables.audit_event)).one()
    assert (event.actor, event.action, event.detail["alert"]) == ("somebody", "accept alert", row.id)


def test_acknowledging_leaves_it_open(database: Database) -> None:
    told(database, Level.ON, 0)
    (row,) = alerts(database)
    acknowledge(database, row.id, actor="somebody")
    (row,) = alerts(database)
    assert row.acknowledged_at is not None and row.closed_at is None
    with pytest.raises(CarinaError, match="closes by itself"):
        acknowledge(database, row.id, actor="somebody", accept=True)
    with pytest.raises(CarinaError, match="no alert 99"):
        acknowledge(database, 99, actor="somebody")


def test_the_duties_say_what_they_did(films: Films, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, **QUIET)
    assert alert_duty(films.database, settings) == "0 opened, 0 closed; no webhook"
    assert drift_duty(films.database) == "0 opened, 0 closed"


# Sixty nights with labels


def nights_with_alerts(site: LabelledFilms, nights: range, drop_on: int | None, seed: int) -> list[int]:
    """Fifty films a night, labelled up to five nights late: the nights on which an alert was opened."""
    settings = Settings(**{**QUIET, "alert_auc_floor": 0.8})
    rng = np.random.default_rng(seed)
    begin = LAST - 60 * NIGHT
    gains = np.array([0.2 if drop_on is not None and night >= drop_on else 1.8 for night in range(60)])
    truth = rng.random((60, 50)) < 1 / 3
    scores = 1 / (1 + np.exp(-(rng.normal(0, 1, truth.shape) + gains[:, None] * truth - 1.0)))
    times = [begin + night * NIGHT for night in range(60) for _ in range(50)]
    ids = np.array(site.add(times, scores.ravel().tolist())).reshape(truth.shape)
    told_on = np.arange(60) + rng.integers(0, 6, 60)
    found, known = [], np.zeros(60, bool)
    for night in nights:
        new = (told_on <= night) & ~known
        known |= new
        morning = begin + (night + 1) * NIGHT - timedelta(hours=1)
        site.label(ids[new].ravel().tolist(), truth[new].ravel(), at=morning)
        track(site.database, replicates=200, now=morning, history_days=0)
        if look_at_ledger(site.database, settings, now=morning).opened:
            found.append(night)
    return found


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_drop_alerts_once_within_seven_nights(films: Films) -> None:
    opened = nights_with_alerts(LabelledFilms(films), range(36, 48), drop_on=40, seed=5)
    assert len(opened) == 1 and 40 <= opened[0] <= 47
    assert [row.rule for row in alerts(films.database)] == ["auc_floor"]


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("drop_on", [40, None])
def test_sixty_nights(films: Films, seed: int, drop_on: int | None) -> None:
    opened = nights_with_alerts(LabelledFilms(films), range(60), drop_on=drop_on, seed=seed)
    before = [night for night in opened if drop_on is None or night < drop_on]
    assert len(before) <= 1
    assert drop_on is None or any(drop_on <= night <= drop_on + 7 for night in opened)
