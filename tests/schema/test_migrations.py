from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import JSON, Boolean, Connection, Date, Float, LargeBinary, Table, func, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from stored_films import DIALECTS, empty_url

from schema.daily import COUNTED
from schema.database import Database, DatabaseVersionError, head_revision, view_statements
from schema.keys import location_hash
from schema.tables import metadata
from schema.types import UtcDateTime

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"

#: Columns whose values the constraints prescribe; everything else is made up.
PRESCRIBED: dict[str, dict[str, Any]] = {
    "submission": {"lane": "icu"},
    "instance": {"alias_of": None, "age_days": 400, "sex": "F"},
    "arrival": {"state": "instance"},
    "bundle_alias": {"alias": "champion"},
    "job": {"kind": "process", "state": "leased", "lease_id": "text", "priority": 0},
    "failure_flag": {"source": "raw"},
    "finding_score": {"probability": 0.5},
    "region_measurement": {"area_fraction": 0.5},
    "label": {"value": "present", "source": "random"},
    "rebuild": {"state": "finished"},
    "delivery_destination": {"kind": "dicom"},
    "delivery": {"output": "report", "state": "leased"},
    "label_map": {"source": "random"},
    **{
        name: {"cohort": "age", "period": "7d", "too_few": False}
        for name in ("auc_tracking", "dice_tracking", "auc_comparison")
    },
}

#: Tables that the first version did not have: who goes back to it loses them.
TRACKING = {"label_map", "region_dice", "auc_tracking", "dice_tracking", "auc_comparison", "tracking_run", "alert"}
YOUNGER = {"label", "rebuild", "delivery", "delivery_destination", *TRACKING, *(table.name for table in COUNTED)}


@pytest.fixture(params=DIALECTS)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    database = Database(empty_url(request.param, tmp_path))
    yield database
    database.close()


def invented(table: Table) -> dict[str, Any]:
    """A row with every column filled."""
    row: dict[str, Any] = {}
    for column in table.columns:
        kind = column.type
        if isinstance(kind, UtcDateTime):
            value: Any = datetime(2026, 2, 3, 4, 5, 6, 789, UTC)
        elif isinstance(kind, Date):
            value = date(2026, 2, 3)
        elif isinstance(kind, JSON):
            value = {"a": [1, 2.5, "ü"]}
        elif isinstance(kind, LargeBinary):
            value = bytes(range(256))
        elif isinstance(kind, Boolean):
            value = True
        elif isinstance(kind, Float):
            value = 0.125
        elif kind.python_type is int:
            value = 1
        else:
            value = "text"
        row[column.name] = value
    return {**row, **PRESCRIBED.get(table.name, {})}


def fill(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        connection.execute(insert(table).values(**invented(table)))


def counts(database: Database) -> dict[str, int]:
    with database.read() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in metadata.sorted_tables
        }


def config(connection: Connection) -> Config:
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    made.attributes["connection"] = connection
    return made


def test_up_down_up_with_rows_in_every_table(empty: Database) -> None:
    empty.upgrade()
    with empty.write() as connection:
        fill(connection)
    assert set(counts(empty).values()) == {1}
    empty.upgrade()
    assert set(counts(empty).values()) == {1}
    empty.downgrade("base")
    with empty.read() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
        assert inspect(connection).get_view_names() == []
    empty.upgrade()
    empty.require_current()
    with empty.write() as connection:
        fill(connection)
    assert set(counts(empty).values()) == {1}


def test_each_step_down_and_up_keeps_the_rows(empty: Database) -> None:
    empty.upgrade()
    with empty.write() as connection:
        fill(connection)
    revision = head_revision()
    while revision != "0001":
        empty.downgrade("-1")
        revision = empty.version() or ""
    empty.upgrade()
    assert counts(empty) == {name: int(name not in YOUNGER) for name in metadata.tables}


PLACES = [
    ("local", "films/a.dcm", "", 5, 7),
    ("local", "films/a.dcm", "", 5, 8),
    ("archive", "röntgen 100%.zip", "b/☃ 'c'\\", 2**40, 2**60),
]


def test_files_registered_before_are_found_by_their_hash_after(empty: Database) -> None:
    empty.upgrade("0002")
    submission = "INSERT INTO submission VALUES (1, :now, NULL, 'icu', :yes, 0, 0)"
    arrival = "INSERT INTO arrival VALUES (:id, 1, NULL, :now, 'rejected', :no, 'X', '', NULL, NULL)"
    identity = "INSERT INTO identity VALUES (:id, :root, :path, :member, :size, :modified_ns)"
    fixed = {"now": "2026-01-01 00:00:00.000000", "yes": True, "no": False}
    with empty.write() as connection:
        connection.execute(text(submission), fixed)
        for number, place in enumerate(PLACES, start=1):
            connection.execute(text(arrival), {"id": number, **fixed})
            values = dict(zip(("root", "path", "member", "size", "modified_ns"), place, strict=True))
            connection.execute(text(identity), {"id": number, **values})
    empty.upgrade()
    hashes = "SELECT location_hash FROM identity ORDER BY arrival_id"
    with empty.read() as connection:
        assert list(connection.scalars(text(hashes))) == [location_hash(*place) for place in PLACES]
    empty.downgrade("0002")
    with empty.read() as connection:
        places = connection.execute(text("SELECT * FROM identity ORDER BY arrival_id")).all()
    assert [tuple(row)[1:] for row in places] == PLACES
    with pytest.raises(IntegrityError), empty.write() as connection:
        connection.execute(text("UPDATE identity SET modified_ns = 7 WHERE arrival_id = 2"))


JOB = """INSERT INTO job (id, instance_id, kind, state, priority, generation, bundle_id, revision, published, attempts,
    crashes, detail, created_at, finished_at)
    VALUES (:id, 1, :kind, :state, :priority, 1, :bundle, 1, :published, 1, 0, '', :now, :now)"""
RESULT = """INSERT INTO region_measurement (job_id, region, area_pixels, area_fraction, components, repaired_pixels)
    VALUES (:id, 'spine', 1, 0.5, 1, 0)"""


def test_results_of_before_outlive_shadow_jobs_there_and_back(empty: Database) -> None:
    """On SQLite the table of jobs cannot be made anew: whoever drops it deletes all results."""
    film = """INSERT INTO instance (id, key, patient_key, study_key, series_key, held_out, created_at, generation,
        sop_class_uid, transfer_syntax_uid, modality, body_part, view_position, station, manufacturer,
        photometric_interpretation, sex)
        VALUES (1, 'a', '', '', '', :no, :now, 1, '', '', '', '', '', '', '', '', '')"""
    bundle = "INSERT INTO bundle VALUES (:id, 'x', :version, :version, :now, '{}')"
    fixed = {"now": "2026-01-01 00:00:00.000000", "no": False}
    done = {**fixed, "kind": "process", "state": "done", "priority": 0, "bundle": 1, "published": True}
    trial = {**done, "id": 2, "kind": "shadow", "priority": 20, "bundle": 2, "published": False}
    empty.upgrade("0003")
    with empty.write() as connection:
        connection.execute(text(film), fixed)
        for number in (1, 2):
            connection.execute(text(bundle), {"id": number, "version": str(number), **fixed})
        connection.execute(text(JOB), {**done, "id": 1})
        connection.execute(text(RESULT), {"id": 1})
    with pytest.raises(IntegrityError), empty.write() as connection:
        connection.execute(text(JOB), trial)
    empty.upgrade("0004")
    with empty.write() as connection:
        connection.execute(text(JOB), trial)
        connection.execute(text(RESULT), {"id": 2})
    for wrong in ({"priority": 0}, {"published": True}, {"bundle": None}):
        with pytest.raises(IntegrityError), empty.write() as connection:
            connection.execute(text(JOB), {**trial, "id": 3, **wrong})
    assert results(empty) == {1: "done", 2: "done"}
    empty.downgrade("0003")
    assert results(empty) == {1: "done"}
    with pytest.raises(IntegrityError), empty.write() as connection:
        connection.execute(text(JOB), trial)
    empty.upgrade("0004")
    # What the table had besides is there still.
    with pytest.raises(DBAPIError, match="final"), empty.write() as connection:
        connection.execute(text("UPDATE job SET state = 'failed', code = 'X'"))
    with pytest.raises(IntegrityError), empty.write() as connection:
        connection.execute(text(JOB), {**done, "id": 4})
    with empty.write() as connection:
        connection.execute(text("DELETE FROM job"))
    assert results(empty) == {}


def results(database: Database) -> dict[int, str]:
    query = "SELECT job.id, job.state FROM job JOIN region_measurement ON region_measurement.job_id = job.id"
    with database.read() as connection:
        return {row.id: row.state for row in connection.execute(text(query))}


def test_what_was_written_comes_back(empty: Database) -> None:
    empty.upgrade()
    with empty.write() as connection:
        fill(connection)
    with empty.read() as connection:
        for table in metadata.sorted_tables:
            assert dict(connection.execute(select(table)).mappings().one()) == invented(table), table.name


def test_tables_in_code_and_in_migrations_are_the_same(empty: Database) -> None:
    empty.upgrade()
    with empty.write() as connection:
        # Raises when autogenerate would find something to do.
        command.check(config(connection))
        tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
    assert tables == set(metadata.tables)


def test_every_view_exists_after_an_upgrade_and_answers(empty: Database) -> None:
    empty.upgrade()
    with empty.write() as connection:
        fill(connection)
    with empty.read() as connection:
        assert set(inspect(connection).get_view_names()) == set(view_statements(empty.dialect))
        for name in view_statements(empty.dialect):
            connection.execute(text(f"SELECT * FROM {name}")).all()


def test_every_view_says_which_question_it_answers() -> None:
    for name, statement in view_statements("sqlite").items():
        first, *_ = statement.splitlines()
        assert first.startswith("-- ") and first.endswith("?"), name
        assert f"CREATE VIEW {name} AS" in statement
        # psycopg would take a per cent sign for a parameter.
        assert "%" not in statement, name


# Code and database of different versions


def test_an_empty_database_is_refused_with_the_command_that_makes_it(empty: Database) -> None:
    assert empty.version() is None
    with pytest.raises(DatabaseVersionError, match=r"no Carina tables yet\. Run: carina db upgrade"):
        empty.require_current()


def test_an_older_database_is_refused_with_both_versions(empty: Database) -> None:
    empty.upgrade("0001")
    with pytest.raises(DatabaseVersionError) as refusal:
        empty.require_current()
    for part in ("0001", head_revision(), "carina db upgrade", "back the database up"):
        assert part in str(refusal.value)


def test_a_newer_database_is_refused_without_offering_an_upgrade(empty: Database) -> None:
    empty.upgrade()
    with empty.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseVersionError) as refusal:
        empty.require_current()
    assert "9999" in str(refusal.value) and "newer Carina" in str(refusal.value)
    assert "db upgrade" not in str(refusal.value)


def test_a_failed_migration_leaves_the_database_as_it_was(empty: Database) -> None:
    with empty.write() as connection:
        connection.execute(text("CREATE TABLE heatmap (id INTEGER)"))
    with pytest.raises(Exception, match="heatmap"):
        empty.upgrade()
    with empty.read() as connection:
        assert inspect(connection).get_table_names() == ["heatmap"]
    assert empty.version() is None
