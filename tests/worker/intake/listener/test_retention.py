from __future__ import annotations

import os
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from intake_rows import film_bytes, rows
from sqlalchemy import insert, select, update

from schema import tables
from schema.database import Database
from schema.types import database_now
from worker.intake.listener.retention import delete_expired, register_unrecorded
from worker.intake.listener.spool import Spool
from worker.settings import Settings

DAY = 86_400.0
OLD = 40 * DAY


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, listen_keep_days=30.0)


@pytest.fixture
def spool(settings: Settings) -> Spool:
    return Spool(settings)


def receive(database: Database, settings: Settings, spool: Spool, level: int = 0, uid: str = "2.25.1") -> Path:
    """A film that came ``OLD`` ago and is registered."""
    file = spool.incoming / "film"
    file.write_bytes(film_bytes(uid, level=level))
    os.utime(file, (datetime.now(UTC).timestamp() - OLD,) * 2)
    place = spool.folder / spool.keep(file).path
    assert register_unrecorded(database, settings, spool, stop=threading.Event()) == 1
    return place


def finish(database: Database, state: str = "done") -> None:
    """Let every film's job end so."""
    with database.write() as connection:
        bundle_id = connection.scalar(select(tables.bundle.c.id).order_by(tables.bundle.c.id))
        values = {"state": state, "finished_at": database_now(), "code": "NOT_A_CHEST" if state != "done" else None}
        connection.execute(update(tables.job).values(bundle_id=bundle_id, revision=1, **values))


def instance_id(database: Database) -> int:
    return int(rows(database, tables.instance)[0].id)


@pytest.mark.parametrize("state", ["done", "ineligible"])
def test_an_old_film_that_is_through_goes_and_its_results_stay(
    database: Database, settings: Settings, spool: Spool, state: str
) -> None:
    place = receive(database, settings, spool)
    assert delete_expired(database, settings, spool) == 0
    finish(database, state)
    assert delete_expired(database, settings, spool) == 1
    assert not place.exists()
    assert [row.state for row in rows(database, tables.job)] == [state]


def test_never_before_its_days_are_over(database: Database, settings: Settings, spool: Spool) -> None:
    place = receive(database, settings, spool)
    finish(database)
    for days in (0.0, 41.0):
        assert delete_expired(database, replace(settings, listen_keep_days=days), spool) == 0
    assert place.exists()


def test_a_failed_film_stays(database: Database, settings: Settings, spool: Spool) -> None:
    place = receive(database, settings, spool)
    finish(database, "failed")
    assert delete_expired(database, settings, spool) == 0
    assert place.exists()


def test_an_open_verification_keeps_both_files(database: Database, settings: Settings, spool: Spool) -> None:
    receive(database, settings, spool)
    finish(database)
    receive(database, settings, spool, level=7)
    assert [row.kind for row in rows(database, tables.job)] == ["process", "verify"]
    assert delete_expired(database, settings, spool) == 0


def test_a_conflict_keeps_its_film(database: Database, settings: Settings, spool: Spool) -> None:
    receive(database, settings, spool)
    receive(database, settings, spool, level=7)
    finish(database)
    with database.write() as connection:
        connection.execute(
            update(tables.arrival).where(tables.arrival.c.state == "unverified").values(state="conflict")
        )
    assert delete_expired(database, settings, spool) == 0
    with database.write() as connection:
        connection.execute(update(tables.arrival).where(tables.arrival.c.state == "conflict").values(state="duplicate"))
    assert delete_expired(database, settings, spool) == 2


def test_a_labelled_film_stays_unless_told_otherwise(database: Database, settings: Settings, spool: Spool) -> None:
    receive(database, settings, spool)
    finish(database)
    with database.write() as connection:
        connection.execute(
            insert(tables.label).values(
                instance_id=instance_id(database),
                finding="pneumonia",
                value="present",
                reader="r1",
                source="random",
                labelled_at=database_now(),
            )
        )
    assert delete_expired(database, settings, spool) == 0
    assert delete_expired(database, replace(settings, listen_keep_labelled="no"), spool) == 1


def test_delivery_is_waited_for(database: Database, settings: Settings, spool: Spool) -> None:
    receive(database, settings, spool)
    finish(database)
    with database.write() as connection:
        destination = connection.execute(
            insert(tables.delivery_destination).values(
                name="pacs", kind="dicom", configuration={}, filled_until=database_now(-3600.0)
            )
        ).inserted_primary_key[0]
    # Whoever delivers has not looked at the result yet.
    assert delete_expired(database, settings, spool) == 0
    with database.write() as connection:
        connection.execute(update(tables.delivery_destination).values(filled_until=database_now(60.0)))
        connection.execute(
            insert(tables.delivery).values(
                destination_id=destination,
                job_id=rows(database, tables.job)[0].id,
                output="report",
                revision=1,
                priority=0,
            )
        )
    assert delete_expired(database, settings, spool) == 0
    with database.write() as connection:
        connection.execute(update(tables.delivery).values(state="failed", code="X"))
    assert delete_expired(database, settings, spool) == 0
    with database.write() as connection:
        connection.execute(update(tables.delivery).values(state="sent", sent_at=database_now()))
    assert delete_expired(database, settings, spool) == 1


def test_only_the_spool_is_touched(database: Database, settings: Settings, spool: Spool, tmp_path: Path) -> None:
    from worker.intake.scan import submit

    mine = tmp_path / "mine.dcm"
    mine.write_bytes(film_bytes("2.25.9"))
    os.utime(mine, (0, 0))
    submit(database, settings, [mine])
    finish(database)
    assert delete_expired(database, settings, spool) == 0
    assert mine.exists()


def test_a_file_the_ledger_does_not_know_is_registered_not_deleted(
    database: Database, settings: Settings, spool: Spool
) -> None:
    file = spool.incoming / "film"
    file.write_bytes(film_bytes("2.25.1"))
    os.utime(file, (0, 0))
    place = spool.folder / spool.keep(file).path
    assert delete_expired(database, settings, spool) == 0
    announced: list[int] = []
    for expected in (1, 0):
        found = register_unrecorded(database, settings, spool, stop=threading.Event(), announce=announced.append)
        assert found == expected
    assert announced == [1]
    assert place.exists()
    assert len(rows(database, tables.instance)) == 1
