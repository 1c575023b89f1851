from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from labelled_films import LAST, NIGHT, NOW, LabelledFilms
from sqlalchemy import insert
from stored_films import Films

from schema import tables
from schema.database import Database
from worker.monitor.alert_rules import (
    DRIFT_RULES,
    LEAST_ENDED,
    LEDGER_RULES,
    RULES,
    Level,
    Reading,
    disk_readings,
    drift_readings,
    ledger_readings,
)
from worker.monitor.auc import track
from worker.monitor.drift import ALL, Family, Group, Series, State
from worker.monitor.drift_nights import DriftReport
from worker.settings import Settings

OFF = Settings(
    alert_wait_icu=0, alert_wait_archive=0, alert_no_films=0, alert_failures=0, alert_disk=0, alert_auc_floor=0
)
CR1 = Group("station", "CR1")


def readings(database: Database, **limits: float) -> dict[str, Reading]:
    """Subject → reading of the rules that are on."""
    with database.read() as connection:
        found = ledger_readings(connection, dataclasses.replace(OFF, **limits))
    return {reading.subject: reading for reading in found}


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def test_every_reading_has_a_rule_and_every_rule_words() -> None:
    assert set(RULES) == LEDGER_RULES | DRIFT_RULES | {"disk"}
    assert all(rule.meaning.endswith(".") and rule.advice for rule in RULES.values())
    assert max(map(len, RULES)) <= tables.alert.c.rule.type.length


def test_rules_that_are_off_say_nothing(films: Films) -> None:
    films.film("ready", created_at=ago(1e6))
    assert readings(films.database) == {}


@pytest.mark.parametrize(("waited", "level"), [(700, Level.ON), (450, Level.BETWEEN), (200, Level.OFF)])
def test_the_oldest_ready_film_of_each_lane(films: Films, waited: float, level: Level) -> None:
    films.film("ready", created_at=ago(waited))
    films.film("done", created_at=ago(1e6))
    found = readings(films.database, alert_wait_icu=600.0, alert_wait_archive=600.0)
    assert {name: reading.level for name, reading in found.items()} == {"icu": level, "archive": Level.OFF}
    assert found["icu"].value == pytest.approx(waited, abs=60) and "1 are ready" in found["icu"].detail


def test_silence_needs_that_something_came_before(films: Films) -> None:
    assert readings(films.database, alert_no_films=60.0) == {}
    films.arrival("instance", films.instance(), arrived_at=ago(120))
    assert readings(films.database, alert_no_films=60.0)["all senders"].level is Level.ON
    films.arrival("instance", films.instance(), arrived_at=ago(10))
    assert readings(films.database, alert_no_films=60.0)["all senders"].level is Level.OFF


def test_the_failure_rate_is_that_of_a_day_with_films_enough(films: Films) -> None:
    for _ in range(LEAST_ENDED - 2):
        films.film("done")
    films.film("failed")
    films.film("ineligible", finished_at=ago(2 * 86_400))
    assert readings(films.database, alert_failures=0.01) == {}
    films.film("failed")
    found = readings(films.database, alert_failures=0.08)["all films"]
    assert (found.level, found.value) == (Level.ON, 2 / LEAST_ENDED) and "2 of 20" in found.detail
    assert readings(films.database, alert_failures=0.15)["all films"].level is Level.BETWEEN
    assert readings(films.database, alert_failures=0.5)["all films"].level is Level.OFF


def disks(films: Films, home: Path, limit: int) -> dict[str, Reading]:
    with films.database.read() as connection:
        return {one.subject: one for one in disk_readings(connection, Settings(home=home, alert_disk=limit), "host")}


def test_the_disk_of_this_machine(films: Films, tmp_path: Path) -> None:
    on = disks(films, tmp_path, 1 << 60)["host"]
    assert on.level is Level.ON and "host" in on.detail
    assert disks(films, tmp_path, 1)["host"].level is Level.OFF
    assert disks(films, tmp_path, 0) == {}


def test_the_disks_of_machines_with_workers(films: Films, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    rows = {
        "full": {"host": "one", "home_free_bytes": 10},
        "beside it": {"host": "one", "home_free_bytes": 1 << 50},
        "here": {"host": "host", "home_free_bytes": 10},
        "roomy": {"host": "two", "home_free_bytes": 1 << 50},
        "untold": {"host": "three", "home_free_bytes": None},
        "stopped": {"host": "four", "home_free_bytes": 10, "stopped_at": now},
        "silent": {"host": "five", "home_free_bytes": 10, "seen_at": now - timedelta(hours=1)},
    }
    with films.database.write() as connection:
        for name, values in rows.items():
            common = {"name": name, "process_id": 1, "boot_id": name, "version": "1"}
            connection.execute(insert(tables.worker).values(**common, **values))
    levels = {host: reading.level for host, reading in disks(films, tmp_path, 1000).items()}
    assert levels == {"one": Level.ON, "host": Level.ON, "two": Level.OFF}


def test_the_floor_of_an_auroc(films: Films) -> None:
    site = LabelledFilms(films)
    ids, truth = site.night(LAST - 3 * NIGHT, 300, np.random.default_rng(1), gain=0.2)
    site.label(ids, truth)
    track(site.database, replicates=200, now=NOW, history_days=0)
    found = readings(site.database, alert_auc_floor=0.8)
    assert found["phantom:1, pneumonia"].level is Level.ON
    assert found["phantom:1, pneumonia"].value < 0.8 and "AUROC" in found["phantom:1, pneumonia"].detail
    assert readings(site.database, alert_auc_floor=0.3)["phantom:1, pneumonia"].level is Level.OFF
    low = (found["phantom:1, pneumonia"].value or 0) - 1e-3
    assert readings(site.database, alert_auc_floor=low)["phantom:1, pneumonia"].level is Level.BETWEEN


def test_too_few_labels_neither_open_nor_close(films: Films) -> None:
    site = LabelledFilms(films)
    ids, truth = site.night(LAST - 3 * NIGHT, 10, np.random.default_rng(1))
    site.label(ids, truth)
    track(site.database, replicates=20, now=NOW, history_days=0)
    assert readings(site.database, alert_auc_floor=0.99)["phantom:1, pneumonia"].level is Level.BETWEEN


def series(family: Family, state: State, group: Group = CR1, name: str = "grey level", **more: object) -> Series:
    numbers = {"nights": 30, "seen": 0.5, "expected": 0.4, "sigma": 4.0, **more}
    return Series(family, name, group, state, **numbers)  # type: ignore[arg-type]


def drifting(*found: Series) -> dict[tuple[str, str], Reading]:
    report = DriftReport("phantom:1", LAST.date(), found)
    return {(each.rule, each.subject): each for each in drift_readings(report)}


def test_series_of_a_family_and_group_make_one_alert() -> None:
    found = drifting(
        series(Family.INPUT, State.SIGNAL),
        series(Family.INPUT, State.SIGNAL, name="grey contrast", sigma=-6.0),
        series(Family.INPUT, State.QUIET, ALL),
        series(Family.AREAS, State.FADING, name="area of heart"),
        series(Family.FLAGS, State.LEARNING, seen=None),
    )
    assert {key: each.level for key, each in found.items()} == {
        ("input_drift", "phantom:1, station CR1"): Level.ON,
        ("input_drift", "phantom:1, all films"): Level.OFF,
        ("area_drift", "phantom:1, station CR1"): Level.BETWEEN,
        ("flag_drift", "phantom:1, station CR1"): Level.OFF,
    }
    on = found["input_drift", "phantom:1, station CR1"]
    assert (on.value, on.threshold) == (6.0, 3.0)
    assert on.detail == ("grey level 0.5, expected 0.4 (+4.0 sigma); grey contrast 0.5, expected 0.4 (-6.0 sigma).")


def test_what_moved_with_a_mix_is_told_there_and_alerts_for_nothing_else() -> None:
    mix = "mix of views"
    found = drifting(
        series(Family.MIX, State.SIGNAL, name=mix, seen=0.6, expected=0.25),
        series(Family.AREAS, State.SIGNAL, name="area of heart", with_mix=(mix,)),
    )
    assert found["area_drift", "phantom:1, station CR1"].level is Level.BETWEEN
    told = found["mix_shift", "phantom:1, station CR1"]
    assert told.level is Level.ON
    assert told.detail.startswith("mix of views (stability index 0.60, limit 0.25). With it moved: area of heart")


def test_a_long_list_is_cut() -> None:
    many = [series(Family.AREAS, State.SIGNAL, name=f"area {number}") for number in range(9)]
    (reading,) = drifting(*many).values()
    assert reading.detail.endswith("and 3 more.")
