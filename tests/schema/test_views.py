from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from stored_films import Films, result

from schema import tables, view_tables
from schema.database import Database
from worker.results.write import write_results

NIGHT = datetime(2026, 3, 1, 23, 0, tzinfo=UTC)


def rows(database: Database, view: str, order: str = "1") -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(text(f"SELECT * FROM {view} ORDER BY {order}")).mappings()]


def day(moment: datetime) -> str:
    return moment.date().isoformat()


def test_film_state_has_one_row_per_file(database: Database, films: Films) -> None:
    films.film("done", stored=result(flags=("low_confidence",)))
    films.arrival("duplicate", 1)
    films.film("failed", detail="why")
    films.arrival("rejected", None, code="EMPTY_FILE", detail="0 bytes")
    unverified = films.arrival("unverified", 1)
    films.job(1, "delayed", kind="verify", arrival_id=unverified)
    found = rows(database, "film_state", "arrival_id")
    assert [(row["state"], row["code"], row["detail"], row["flagged"]) for row in found] == [
        ("done", None, "", 1),
        ("duplicate", None, "", 0),
        ("failed", "DECODE_FAILED", "why", 0),
        ("rejected", "EMPTY_FILE", "0 bytes", 0),
        ("delayed", "DECODE_FAILED", "", 0),
    ]
    assert found[0]["bundle"] == "phantom:1"
    assert [row["arrival_state"] for row in found] == ["instance", "duplicate", "instance", "rejected", "unverified"]


def test_film_state_shows_the_newest_job_that_was_not_cancelled(database: Database, films: Films) -> None:
    films.film("failed")
    arrival = films.arrival_of(1)
    films.job(1, "done", arrival_id=arrival)
    films.job(1, "cancelled", arrival_id=arrival)
    assert [(row["job_id"], row["state"]) for row in rows(database, "film_state")] == [(2, "done")]
    films.film("cancelled")
    assert [row["state"] for row in rows(database, "film_state")] == ["done", "cancelled"]


def test_a_film_whose_file_was_replaced_stands_where_the_new_one_stands(database: Database, films: Films) -> None:
    films.film("failed")
    old = films.arrival_of(1)
    films.update(tables.job, 1, state="cancelled", published=False)
    films.update(tables.arrival, old, current=False, state="rejected", code="DECODE_FAILED")
    films.job(1, "ready", arrival_id=films.arrival("instance", 1, current=True), generation=2)
    found = rows(database, "film_state", "arrival_id")
    assert [(row["state"], row["job_id"]) for row in found] == [("rejected", None), ("ready", 2)]


def test_published_result_is_one_row_per_film(database: Database, films: Films) -> None:
    films.film("done", stored=result(flags=("low_confidence",)))
    films.job(1, "done", revision=2)
    films.job(1, "done", bundle_id=films.add_bundle("2"))
    films.job(1, "done", revision=3, published=False)
    films.film("failed")
    assert [(row["job_id"], row["bundle"], row["flagged"]) for row in rows(database, "published_result")] == [
        (2, "phantom:1", 0)
    ]
    with database.write() as connection:
        connection.execute(tables.bundle_alias.update().values(alias="previous"))
    assert [row["job_id"] for row in rows(database, "published_result")] == [3]
    films.update(tables.instance, 1, generation=2)
    assert rows(database, "published_result") == []


def test_what_a_bundle_on_trial_does_is_in_its_own_rates_and_nowhere_else(database: Database, films: Films) -> None:
    films.film("done", stored=result())
    views = ("film_state", "published_result", "overnight_summary", "turnaround", "backlog", "dead_letters")
    before = {view: rows(database, view) for view in views}
    second = films.add_bundle("2")
    for state in ("ready", "failed", "ineligible", "done"):
        shadow = {"kind": "shadow", "published": False, "priority": 20, "bundle_id": second}
        job = films.job(1, state, **shadow)
    with database.write() as connection:
        write_results(connection, [(job, result(flags=("low_confidence",), pneumonia=0.9))])
    assert {view: rows(database, view) for view in views} == before
    assert [(row["bundle"], row["films"]) for row in rows(database, "flag_rates")] == [("phantom:2", 1)]
    rates = {(row["bundle"], row["finding"]): row["rate"] for row in rows(database, "finding_rates", "bundle, finding")}
    assert (rates["phantom:1", "pneumonia"], rates["phantom:2", "pneumonia"]) == (0.0, 1.0)


def test_overnight_summary_counts_by_day_and_lane(database: Database, films: Films) -> None:
    films.film("done", stored=result(flags=("a", "b")), finished_at=NIGHT, wait_seconds=10.0, run_seconds=2.0)
    films.film("done", stored=result(), finished_at=NIGHT, wait_seconds=20.0, run_seconds=4.0)
    films.film("failed", finished_at=NIGHT, wait_seconds=None, run_seconds=None)
    films.film("ineligible", finished_at=NIGHT + timedelta(hours=2))
    films.film("done", priority=10, finished_at=NIGHT)
    films.film("done", published=False, finished_at=NIGHT)
    films.film("ready")
    found = {(str(row["day"]), row["lane"]): row for row in rows(database, "overnight_summary")}
    assert set(found) == {
        (day(NIGHT), "icu"), (day(NIGHT), "archive"), (day(NIGHT + timedelta(hours=2)), "icu"),
    }  # fmt: skip
    night = found[day(NIGHT), "icu"]
    assert (night["done"], night["flagged"], night["ineligible"], night["failed"]) == (2, 1, 0, 1)
    assert (night["mean_wait_seconds"], night["mean_run_seconds"]) == (15.0, 3.0)
    assert found[day(NIGHT + timedelta(hours=2)), "icu"]["ineligible"] == 1


def test_turnaround_has_median_and_tail(database: Database, films: Films) -> None:
    for seconds in range(1, 21):
        films.film("done", finished_at=NIGHT, wait_seconds=float(seconds), run_seconds=100.0)
    films.film("ineligible", finished_at=NIGHT, wait_seconds=9999.0)
    (row,) = rows(database, "turnaround")
    assert row["films"] == 20
    assert row["median_seconds"] == 110.0
    assert row["percentile_95_seconds"] == 119.0
    assert row["longest_seconds"] == 120.0
    assert row["mean_wait_seconds"] == pytest.approx(10.5)


def test_backlog_counts_open_work(database: Database, films: Films) -> None:
    old = datetime(2026, 1, 1, tzinfo=UTC)
    films.film("ready", created_at=old)
    films.film("ready")
    films.film("ready", priority=10)
    films.film("leased")
    films.film("done")
    found = rows(database, "backlog", "lane, state")
    assert [(row["lane"], row["state"], row["films"]) for row in found] == [
        ("archive", "ready", 1),
        ("icu", "leased", 1),
        ("icu", "ready", 2),
    ]
    assert "2026-01-01" in str(found[2]["oldest_created_at"])


def test_dead_letters_say_why_but_not_whose(database: Database, films: Films) -> None:
    films.film("failed", uid="1.2.840.4711", detail="12 of 13 bytes", attempts=3)
    films.film("done")
    (row,) = rows(database, "dead_letters")
    assert (row["code"], row["stage"], row["detail"], row["attempts"]) == (
        "DECODE_FAILED", "decode", "12 of 13 bytes", 3,
    )  # fmt: skip
    assert "4711" not in str(row) and ".dcm" not in str(row)


def test_flag_rates_count_films_not_flags(database: Database, films: Films) -> None:
    films.film("done", stored=result(flags=("missing_region", "missing_region", "low_confidence")))
    films.film("done", stored=result(flags=("missing_region",)))
    for _ in range(2):
        films.film("done", stored=result())
    films.film("done", bundle_id=films.add_bundle("2"), published=False, stored=result(flags=("low_confidence",)))
    found = rows(database, "flag_rates", "bundle, rule")
    assert [(row["bundle"], row["rule"], row["flagged_films"], row["films"], row["rate"]) for row in found] == [
        ("phantom:1", "low_confidence", 1, 4, 0.25),
        ("phantom:1", "missing_region", 2, 4, 0.5),
        ("phantom:2", "low_confidence", 1, 1, 1.0),
    ]


def test_a_notice_flags_no_film(database: Database, films: Films) -> None:
    films.film("done", stored=result(flags=("border_masked",)), finished_at=NIGHT)
    films.film("done", stored=result(flags=("border_masked", "low_confidence")), finished_at=NIGHT)
    assert [row["flagged"] for row in rows(database, "film_state", "arrival_id")] == [0, 1]
    assert [row["flagged"] for row in rows(database, "published_result", "job_id")] == [0, 1]
    assert [row["flagged"] for row in rows(database, "overnight_summary")] == [1]
    assert [row["flagged_films"] for row in rows(database, "film_drift")] == [1]
    assert {row["rule"]: row["flagged_films"] for row in rows(database, "flag_rates")} == {
        "border_masked": 2, "low_confidence": 1,
    }  # fmt: skip


def test_finding_rates_count_positive_films(database: Database, films: Films) -> None:
    for probability in (0.2, 0.3, 0.5, 0.8):
        films.film("done", stored=result(pneumonia=probability))
    found = {row["finding"]: row for row in rows(database, "finding_rates")}
    pneumonia = found["pneumonia"]
    assert (pneumonia["films"], pneumonia["positive_films"], float(pneumonia["rate"])) == (4, 2, 0.5)
    assert pneumonia["mean_probability"] == pytest.approx(0.45)
    assert float(found["no_finding"]["rate"]) == 1.0


@pytest.mark.parametrize("view", ["film_state", "published_result"])
def test_views_on_a_large_table_use_indexes(films: Films, view: str) -> None:
    """A join that scans is quadratic: with a night's films it would never end."""
    if films.database.dialect != "sqlite":
        pytest.skip("asks SQLite for its plan")
    with films.database.read() as connection:
        plan = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN SELECT * FROM {view}"))]
    outer = {"film_state": {"SCAN arrival", "SCAN candidate"}, "published_result": {"SCAN job", "SCAN bundle"}}
    scans = [step for step in plan if step.startswith("SCAN") and not step.startswith("SCAN CONSTANT")]
    assert all(any(step.startswith(allowed) for allowed in outer[view]) for step in scans), plan


LARGE = {"arrival", "failure_flag", "finding_score", "instance", "job", "region_measurement", "segmentation"}
QUICK = ("overnight_summary", "turnaround", "backlog", "dead_letters", "flag_rates", "finding_rates", "film_drift",
         "flag_drift", "score_drift", "area_drift")  # fmt: skip


@pytest.mark.parametrize("view", QUICK)
def test_views_over_all_films_read_none_of_the_large_tables_from_end_to_end(films: Films, view: str) -> None:
    if films.database.dialect != "sqlite":
        pytest.skip("asks SQLite for its plan; benchmarks/views.py asks PostgreSQL")
    with films.database.read() as connection:
        plan = [row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN SELECT * FROM {view}"))]
    scanned = {step.split()[1] for step in plan if step.startswith("SCAN") and " USING " not in step}
    assert not scanned & LARGE, plan


def test_the_newest_windows_are_those_of_each_bundles_last_day(database: Database, films: Films) -> None:
    other = films.add_bundle("2")
    shared = {
        "cohort": "all", "cohort_value": "", "period": "7d", "starts_at": NIGHT, "digest": "x", "readers": "majority",
        "patients": 3, "replicates": 10,
    }  # fmt: skip
    auc = {**shared, "finding": "pneumonia", "positives": 1, "negatives": 2}
    for bundle, days, value in ((films.bundle, 0, 0.7), (films.bundle, 1, 0.8), (other, 0, None)):
        own = {"bundle_id": bundle, "ends_at": NIGHT + timedelta(days=days), "too_few": value is None}
        films.insert(tables.auc_tracking, **auc, **own, auroc=value)
        films.insert(tables.dice_tracking, **shared, **own, region="spine", films=3, dice=value)
    for view, number in (("latest_auc", "auroc"), ("latest_dice", "dice")):
        found = rows(database, view, "bundle")
        assert [(row["bundle"], row[number]) for row in found] == [("phantom:1", 0.8), ("phantom:2", None)]
        assert set(found[0]) == {column.name for column in getattr(view_tables, view).columns}
