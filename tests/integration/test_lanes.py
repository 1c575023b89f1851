"""Who waits behind whom: urgent films behind an archive of 200,000."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bulk_rows import register_many
from intake_rows import film, register
from ledger_rows import Ledger, add_bundle, settings_for
from sqlalchemy import Connection, event, func, select

from schema import tables
from schema.database import Database
from schema.tables import PRIORITY, Lane
from worker.queue.ledger import ARCHIVE_SHARE, register_worker, release

ARCHIVE = 200_000
URGENT = 40
BATCH = 16


@pytest.fixture
def ledger(database: Database, tmp_path: Path) -> Iterator[Ledger]:
    """200,000 archive films are ready, then 40 urgent ones come in."""
    add_bundle(database)
    register_many(database, ARCHIVE)
    urgent = [film(f"2.25.{number}", f"/films/{number}") for number in range(1, URGENT + 1)]
    assert register(database, *urgent, lane=Lane.ICU).registered == URGENT
    settings = settings_for(tmp_path)
    worker = register_worker(database, settings, "one")
    yield Ledger(database, settings, worker)
    worker.release_name()


def claims(ledger: Ledger, draw: Callable[[], float]) -> Iterator[set[int]]:
    """Batch after batch, as a worker claims them, which all stay claimed: job ids."""
    while (claimed := ledger.claim(BATCH, draw=draw)) is not None:
        yield {job.id for job in claimed.jobs}


def test_urgent_films_are_all_in_the_next_batches(ledger: Ledger) -> None:
    """The rule: 3 batches for 40 films, and one more for each claim that is the archive's turn (1 in 20)."""
    with ledger.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.job)) == ARCHIVE + URGENT
        urgent = set(connection.scalars(select(tables.job.c.id).where(tables.job.c.priority == PRIORITY[Lane.ICU])))
    assert len(urgent) == URGENT
    needed = math.ceil(URGENT / BATCH)
    chance = random.Random(4)
    unlucky = iter([0.0, 0.99, 0.0, *itertools.repeat(0.99, 20)])
    for turns in (lambda: 0.99, unlucky.__next__, *[chance.random] * 5):
        drawn: list[float] = []

        def draw(turns: Callable[[], float] = turns, drawn: list[float] = drawn) -> float:
            drawn.append(turns())
            return drawn[-1]

        waiting, batches = set(urgent), 0
        for batch in claims(ledger, draw):
            batches += 1
            archives_turn = drawn[-1] < ARCHIVE_SHARE
            # A batch that is not the archive's is as full of urgent films as can be.
            assert len(batch & urgent) == (0 if archives_turn else min(BATCH, len(waiting)))
            assert len(batch) == BATCH
            waiting -= batch
            if not waiting:
                break
        assert batches == needed + sum(number < ARCHIVE_SHARE for number in drawn)
        give_everything_back(ledger)


def give_everything_back(ledger: Ledger) -> None:
    with ledger.database.read() as connection:
        leases = list(connection.scalars(select(tables.lease.c.id)))
    for lease in leases:
        release(ledger.database, lease)


def test_a_claim_goes_by_the_index_of_what_is_ready(ledger: Ledger) -> None:
    ran: list[tuple[str, Any]] = []
    engine = ledger.database._writer

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if "chosen" in statement:
            ran.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    for drawn in (0.99, 0.0, 0.1):
        ledger.must_claim(BATCH, draw=lambda drawn=drawn: drawn)
    event.remove(engine, "before_cursor_execute", note)
    # Fresh films, the archive, the suspects and, as there are none, fresh films again.
    assert len(ran) == 4
    for statement, parameters in ran:
        with ledger.database.write() as connection:
            plans = list(_plans(connection, statement, parameters))
        for plan in plans:
            assert re.search(r"ix_job_(ready|suspect)", plan), plan
            assert not re.search(r"Seq Scan on job|SCAN job(?! USING INDEX ix_job_(ready|suspect))", plan), plan
            assert not re.search(r"Sort Key: .*priority|TEMP B-TREE", plan), plan


def _plans(connection: Connection, statement: str, parameters: Any) -> Iterator[str]:
    """What the database does for a statement; PostgreSQL also without knowing the values (a prepared one)."""
    if connection.dialect.name == "sqlite":
        yield "\n".join(row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters))
        return
    yield "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    prepared = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)
    connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
    connection.exec_driver_sql(f"PREPARE claim AS {prepared}")
    values = ", ".join(repr(parameters[name]) for name in names)
    yield "\n".join(connection.exec_driver_sql(f"EXPLAIN EXECUTE claim ({values})").scalars())
    connection.exec_driver_sql("DEALLOCATE claim")
