from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.event import listen
from stored_films import Films, result

from schema import queries, tables
from schema.database import Database
from schema.queries import SubmissionCounts, source_text
from worker.intake.sources import stored_path


def counts(database: Database, submission: int | None = 1) -> SubmissionCounts:
    with database.read() as connection:
        return queries.submission_counts(connection, submission)


def one_of_each(films: Films) -> None:
    films.film("done", stored=result(flags=("low_confidence", "missing_region")))
    films.film("done", stored=result())
    for state in ("ineligible", "failed", "cancelled", "ready", "leased", "delayed"):
        films.film(state)
    films.arrival("duplicate", 1)
    films.arrival("conflict", 1)
    films.arrival("alias", films.instance(alias_of=1), current=True)
    films.arrival("rejected", None, code="EMPTY_FILE")
    films.job(1, "ready", kind="verify", arrival_id=films.arrival("unverified", 1))
    films.update(tables.submission, films.submission, not_dicom=3)


def test_every_file_is_counted_once(database: Database, films: Films) -> None:
    one_of_each(films)
    found = counts(database)
    assert found == SubmissionCounts(
        done=2, flagged=1, duplicate=1, conflict=1, alias=1, ineligible=1, failed=1, rejected=1, cancelled=1,
        not_dicom=3, ready=2, leased=1, delayed=1, registered=0,
    )  # fmt: skip
    assert found.open == 4
    assert found.finished == 5
    assert found.files == 16
    assert counts(database, None) == found
    assert json.loads(json.dumps(found.to_json()))["open"] == 4


def test_a_submission_counts_what_it_saw_and_nothing_else(database: Database, films: Films) -> None:
    films.film("done", stored=result())
    films.film("ready")
    second = films.insert(tables.submission, lane="icu")
    films.insert_plain(tables.submission_arrival, submission_id=second, arrival_id=1, seen_before=True)
    assert counts(database, second) == SubmissionCounts(done=1)
    assert counts(database, 99) == SubmissionCounts()
    with database.read() as connection:
        assert queries.open_films(connection, 1) == 1
        assert queries.open_films(connection, second) == 0


def test_open_films_are_the_open_ones_of_the_counts(database: Database, films: Films) -> None:
    one_of_each(films)
    with database.read() as connection:
        assert queries.open_films(connection, 1) == counts(database).open == 4


def test_frequent_questions_are_answered_from_indexes(films: Films) -> None:
    if films.database.dialect != "sqlite":
        pytest.skip("asks SQLite for its plan")
    asked: list[tuple[str, tuple[object, ...]]] = []
    with films.database.read() as connection:
        listen(connection, "before_cursor_execute", lambda *seen: asked.append((seen[2], seen[3])))
        queries.open_films(connection, 1)
        queries.backlog(connection)
        queries.throughput(connection)
        queries.workers_seen(connection)
        for statement, parameters in list(asked):
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            scans = [step for step in plan if step.startswith(("SCAN job", "SCAN arrival")) and "INDEX" not in step]
            assert not scans, (statement, plan)


def test_states_are_counted_without_shadow_jobs(database: Database, films: Films) -> None:
    one_of_each(films)
    films.job(1, "done", revision=2, published=False)
    with database.read() as connection:
        assert queries.state_counts(connection) == {
            "done": 2, "ineligible": 1, "failed": 1, "cancelled": 1, "ready": 1, "leased": 1, "delayed": 1,
        }  # fmt: skip
        assert queries.arrival_counts(connection) == {
            "instance": 8, "duplicate": 1, "conflict": 1, "alias": 1, "rejected": 1, "unverified": 1,
        }  # fmt: skip


def test_backlog_tells_the_lanes_apart_and_how_long_the_oldest_waits(database: Database, films: Films) -> None:
    now = datetime.now(UTC)
    films.film("ready", created_at=now - timedelta(hours=2))
    films.film("ready")
    films.film("leased")
    films.film("ready", priority=10, created_at=now - timedelta(days=9), available_at=now - timedelta(minutes=1))
    films.film("done")
    with database.read() as connection:
        lanes = queries.backlog(connection)
    assert (lanes["icu"].ready, lanes["icu"].leased, lanes["icu"].delayed) == (2, 1, 0)
    assert lanes["icu"].oldest_ready_seconds == pytest.approx(7200, abs=60)
    # A film that waited out a backoff is ready since then, not since it came.
    assert lanes["archive"].oldest_ready_seconds == pytest.approx(60, abs=50)


def test_nothing_ready_is_no_age(database: Database, films: Films) -> None:
    films.film("done")
    with database.read() as connection:
        assert {lane.oldest_ready_seconds for lane in queries.backlog(connection).values()} == {None}


def test_throughput_counts_the_last_minutes(database: Database, films: Films) -> None:
    for state in ("done", "done", "ineligible", "failed"):
        films.film(state)
    films.film("done", finished_at=datetime.now(UTC) - timedelta(hours=1))
    with database.read() as connection:
        pace = queries.throughput(connection, 300)
        none = queries.throughput(connection, 0.001)
    assert (pace.done, pace.ineligible, pace.failed) == (2, 1, 1)
    assert pace.films_per_hour == 48
    assert (pace.mean_wait_seconds, pace.mean_run_seconds) == (2.0, 1.0)
    assert (none.done, none.films_per_hour, none.mean_run_seconds) == (0, 0, None)


def test_failed_films_and_rejected_files_are_listed_newest_first(database: Database, films: Films) -> None:
    now = datetime.now(UTC)
    films.film("failed", uid="1.2.3", detail="why", attempts=2, finished_at=now - timedelta(hours=1))
    films.arrival("rejected", None, code="EMPTY_FILE", path="a.zip", member="b.dcm", arrived_at=now)
    films.film("failed", uid="1.2.4", arrival_id=None, finished_at=now - timedelta(hours=2))
    films.film("done")
    with database.read() as connection:
        first, second, third = queries.failed_films(connection)
        assert queries.failed_films(connection, limit=1) == [first]
        assert queries.failed_films(connection, submission_id=99) == []
        assert len(queries.failed_films(connection, submission_id=1)) == 3
        assert queries.failed_films(connection, limit=1, roots={})[0].source == "local:a.zip!b.dcm"
    assert (first.job_id, first.code, first.source, first.sop_instance_uid) == (None, "EMPTY_FILE", "/a.zip!b.dcm", "")
    assert (second.job_id, second.code, second.stage, second.detail, second.attempts) == (
        1, "DECODE_FAILED", "decode", "why", 2,
    )  # fmt: skip
    assert (second.sop_instance_uid, second.source) == ("1.2.3", "/films/1.dcm")
    # Its job lost its arrival: the film's current file stands in.
    assert (third.sop_instance_uid, third.source) == ("1.2.4", "/films/3.dcm")


def test_workers_are_listed_with_what_they_hold(database: Database, films: Films) -> None:
    films.film("leased")
    films.film("leased")
    films.insert(
        tables.worker, name="old", host="h", process_id=1, boot_id="b", version="0",
        seen_at=datetime.now(UTC) - timedelta(minutes=10), stopped_at=datetime.now(UTC),
    )  # fmt: skip
    with database.read() as connection:
        recent, old = queries.workers_seen(connection)
        assert [worker.name for worker in queries.workers_seen(connection, 60)] == ["host-1"]
    assert (recent.name, recent.bundle, recent.running, recent.films_in_work) == ("host-1", "phantom:1", True, 2)
    assert recent.seen_seconds_ago == pytest.approx(0, abs=60)
    assert (old.name, old.bundle, old.running, old.films_in_work) == ("old", None, False, 0)
    assert old.seen_seconds_ago == pytest.approx(600, abs=60)


def test_aliases_submissions_and_clock(database: Database, films: Films) -> None:
    films.insert_plain(tables.bundle_alias, alias="candidate", bundle_id=films.add_bundle("2"))
    with database.read() as connection:
        assert queries.bundle_aliases(connection) == {"candidate": "phantom:2", "champion": "phantom:1"}
        assert queries.latest_submission(connection) == 1
        later = datetime.now(UTC) + timedelta(seconds=100)
        assert queries.seconds_ahead(connection, later) == pytest.approx(100, abs=20)


def test_duties_that_nobody_does_are_overdue(database: Database, films: Films) -> None:
    now = datetime.now(UTC)
    for name, due, until in (
        ("late", now - timedelta(hours=3), None),
        ("abandoned", now - timedelta(hours=3), now - timedelta(hours=2)),
        ("in hand", now - timedelta(hours=3), now + timedelta(hours=1)),
        ("due", now, None),
    ):
        films.insert_plain(tables.duty, name=name, every_seconds=60.0, due_at=due, claimed_until=until)
    with database.read() as connection:
        assert queries.overdue_duties(connection) == ["abandoned", "late"]


@given(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_a_path_is_shown_as_it_was(name: str) -> None:
    if name in (".", ".."):
        return
    assert source_text("local", stored_path(name), "") == f"/{name}"


def test_bytes_that_are_no_text_stay_encoded() -> None:
    assert source_text("local", stored_path("a\udcff%.dcm"), "") == "/a%FF%25.dcm"
    assert source_text("", "", "") == ""
