from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_rows import Ledger, add_bundle, full_result, register_films, settings_for
from sqlalchemy import event, insert, select

from schema import tables
from schema.database import Database
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.ledger import register_worker
from worker.queue.outcomes import Outcome

NIGHT = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6)


def after(template: Path, contents: list[str], batch: int) -> list[Any]:
    """What a ledger says when films of these contents are finished ``batch`` at a time."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(template, Path(folder) / "carina.sqlite")
        database = Database(f"sqlite:///{folder}/carina.sqlite")
        ledger = Ledger(
            database, settings_for(Path(folder)), register_worker(database, settings_for(Path(folder)), "w")
        )
        register_films(database, [f"{number}" for number in range(len(contents))])
        while (claimed := ledger.claim(batch)) is not None:
            outcomes = [Outcome(item, result=full_result(contents[item.id - 1])) for item in claimed.jobs]
            finish(database, claimed, outcomes, settings=ledger.settings)
        assert check_invariants(database) == []
        with database.read() as connection:
            rows = [
                *connection.execute(select(tables.job.c.id, tables.job.c.state, tables.job.c.code)),
                *connection.execute(select(*(c for c in tables.instance.c if c.name != "created_at"))),
                *connection.execute(select(*(c for c in tables.arrival.c if c.name != "arrived_at"))),
            ]
        ledger.worker.release_name()
        database.close()
    return rows


@given(contents=NIGHT, batch=st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_a_batch_is_settled_as_its_films_one_by_one(template: Path, contents: list[str], batch: int) -> None:
    assert after(template, contents, batch) == after(template, contents, 1)


def test_reading_the_same_films_again_costs_no_more(ledger: Ledger) -> None:
    def statements(bundle_id: int) -> int:
        claimed = ledger.must_claim(8, bundle_id=bundle_id)
        outcomes = [Outcome(item, result=full_result(item.source.path)) for item in claimed.jobs]
        ran: list[object] = []

        def count(*arguments: object) -> None:
            ran.append(arguments)

        event.listen(ledger.database._writer, "before_cursor_execute", count)
        report = finish(ledger.database, claimed, outcomes, settings=ledger.settings)
        event.remove(ledger.database._writer, "before_cursor_execute", count)
        assert set(report.states.values()) == {"done"}
        return len(ran)

    register_films(ledger.database, [f"film-{number}" for number in range(8)])
    first = statements(ledger.bundle_id)
    with ledger.database.write() as connection:
        connection.execute(
            insert(tables.job), [{"instance_id": number, "arrival_id": number, "priority": 0} for number in range(1, 9)]
        )
    assert statements(add_bundle(ledger.database, "next")) == first < 20
