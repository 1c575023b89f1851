"""The pages of performance and drift."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import drift_rows
import pytest
from drift_rows import NightRows
from page_server import Browser
from stored_films import Films, result

from schema import tables
from worker.monitor.drift_charts import BASELINE_NIGHTS
from worker.results.write import write_results

MIDNIGHT = datetime(2026, 3, 8, tzinfo=UTC)


def track(films: Films, finding: str, auroc: float | None, *, days_ago: int = 0, **values: Any) -> None:
    ends = MIDNIGHT - timedelta(days=days_ago)
    numbers = {} if auroc is None else {"auroc": auroc, "auroc_low": auroc - 0.05, "auroc_high": auroc + 0.04}
    films.insert(
        tables.auc_tracking,
        **{
            "bundle_id": films.bundle, "finding": finding, "cohort": "all", "cohort_value": "", "period": "30d",
            "starts_at": ends - timedelta(days=30), "ends_at": ends, "digest": "", "readers": "majority",
            "positives": 40, "negatives": 160, "patients": 190, "too_few": auroc is None, "replicates": 10_000,
            **numbers, **values,
        },
    )  # fmt: skip


def test_without_labels_it_says_how_to_bring_them_in(films: Films, browser: Browser) -> None:
    assert "carina labels import FILE" in browser.page("/performance").words


def test_numbers_have_their_intervals(films: Films, browser: Browser) -> None:
    track(films, "pneumonia", 0.91)
    track(films, "pneumonia", 0.88, days_ago=1)
    track(films, "bronchitis", None)
    page = browser.page("/performance")
    assert "0.910 0.860–0.950" in page.words
    assert "too few films for a number" in page.words
    assert "2026-03-06: AUROC 0.880 (0.830 to 0.920), 40 with and 160 without" in page.words
    assert page.text.count("<polyline") == 1


def test_cohorts_and_periods_are_chosen(films: Films, browser: Browser) -> None:
    track(films, "pneumonia", 0.91)
    track(films, "pneumonia", 0.71, cohort="station", cohort_value="ROOM 1")
    track(films, "pneumonia", 0.81, period="7d")
    assert "0.710" in browser.page("/performance?cohort=station%20ROOM%201").words
    assert "0.810" in browser.page("/performance?period=7d").words
    # What is not known is as if it were not said.
    assert "0.910" in browser.page("/performance?cohort=x&period=x&bundle=x").words


def test_dice_has_its_place(films: Films, browser: Browser) -> None:
    track(films, "pneumonia", 0.91)
    films.insert_plain(
        tables.dice_tracking, bundle_id=films.bundle, region="left_lung", cohort="all", cohort_value="", period="30d",
        starts_at=MIDNIGHT, ends_at=MIDNIGHT, digest="", readers="majority", films=31, patients=30, too_few=False,
        replicates=10_000, dice=0.951, dice_low=0.94, dice_high=0.96,
    )  # fmt: skip
    assert "Left lung 31 0.951 0.940–0.960" in browser.page("/performance").words


def test_without_results_there_is_no_drift(browser: Browser) -> None:
    assert "No film has a result" in browser.page("/drift").words


@pytest.fixture
def two_days(films: Films) -> Films:
    today = datetime.now(UTC)
    for days, station, pneumonia in ((1, "ROOM1", 0.2), (1, "ROOM2", 0.4), (0, "ROOM1", 0.8), (0, "ROOM1", 0.6)):
        instance = films.instance(station=station)
        arrival = films.arrival("instance", instance, current=True)
        job = films.job(instance, "done", arrival_id=arrival, finished_at=today - timedelta(days=days))
        with films.database.write() as connection:
            flags = ("missing_region",) if station == "ROOM2" else ()
            write_results(connection, [(job, result(pneumonia=pneumonia, flags=flags))])
    return films


def test_drift_is_counted_by_day(two_days: Films, browser: Browser) -> None:
    words = browser.page("/drift").words
    assert re.search(r": 1 of 2 films flagged", words) and re.search(r": 0 of 2 films flagged", words)
    assert ": 30.0% on average, 2 films" in words and ": 70.0% on average, 2 films" in words
    assert "Left lung" in words and "Background" not in words


def test_what_detectors_deliver_is_shown(two_days: Films, browser: Browser) -> None:
    words = browser.page("/drift").words
    assert "Grey level" in words and "View unknown" in words and ": 2 of 2 films so taken" in words
    assert "Pixel spacing, mm" in words and "apart on average, 2 films" in words
    assert "What has moved Nothing can be said yet" in words


def test_quiet_nights_are_said_to_be_quiet(films: Films, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    monkeypatch.setattr(drift_rows, "FIRST", noon - timedelta(days=BASELINE_NIGHTS + 2))
    NightRows(films).add(range(BASELINE_NIGHTS + 2))
    assert re.search(r"What has moved Nothing of \d\d series, as of", browser.page("/drift").words)


def test_what_has_moved_is_named(films: Films, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    monkeypatch.setattr(drift_rows, "FIRST", noon - timedelta(days=BASELINE_NIGHTS + 4))
    rows = NightRows(films)
    rows.add(range(BASELINE_NIGHTS))
    rows.add(range(BASELINE_NIGHTS, BASELINE_NIGHTS + 4), gain=1.2)
    words = browser.page("/drift").words
    assert re.search(r"What has moved .* all films grey level 0\.4[5-9]\d* 0\.\d+ \+\d+\.\d", words)


def test_drift_of_one_station(two_days: Films, browser: Browser) -> None:
    words = browser.page("/drift?station=ROOM1&days=30").words
    assert ": 20.0% on average, 1 film" in words and "40.0%" not in re.sub(r"\d\d+%|interval", "", words)
    assert not re.search(r": 1 of \d+ films? flagged", words)
