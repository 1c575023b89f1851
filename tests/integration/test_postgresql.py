"""What only a real PostgreSQL can show: several clients at once, a server that dies, its own refusals.

The rest of the suite runs on PostgreSQL too, by the fixtures of its own folders.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from intake_rows import film, header, registrar, source
from ledger_rows import (
    Ledger,
    age_leases,
    full_result,
    job_row,
    job_states,
    make_due,
    register_films,
    settings_for,
)
from sqlalchemy import func, select, text, update

from schema import queries, tables
from schema.database import Database
from schema.tables import Lane
from schema.types import database_now
from worker import REVISION
from worker.errors import CarinaError, FilmError
from worker.intake.register import Examined
from worker.queue.duties import Duty, do_due_duties, ensure_duties, prune
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.leases import heartbeat, make_due_ready, sweep
from worker.queue.ledger import claim, retry
from worker.queue.outcomes import Claim, Outcome
from worker.queue.patience import Patience
from worker.queue.workers import WorkerIdentity, register_worker

pytestmark = pytest.mark.services


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(0)``, ``work(1)``, ... in threads that start at the same moment; their results or exceptions."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait()
        try:
            return work(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def claim_as(ledger: Ledger, worker: WorkerIdentity, limit: int = 16) -> Claim | None:
    return claim(
        ledger.database, worker, bundle_id=ledger.bundle_id, revision=REVISION, limit=limit, lease_seconds=120.0,
        draw=lambda: 0.99,
    )  # fmt: skip


# Several workers at once


def test_claims_never_overlap_and_never_exceed_their_limit(ledger: Ledger) -> None:
    archive = register_films(ledger.database, [f"archive {number}" for number in range(300)])
    urgent = register_films(ledger.database, [f"urgent {number}" for number in range(60)], lane=Lane.ICU)
    workers = [register_worker(ledger.database, ledger.settings, f"worker {number}") for number in range(4)]

    def empty_the_ledger(number: int) -> list[list[int]]:
        batches = []
        while (claimed := claim_as(ledger, workers[number], limit=7)) is not None:
            batches.append([job.id for job in claimed.jobs])
        return batches

    found = together(4, empty_the_ledger)
    batches = [batch for worker in found for batch in worker]
    assert Counter(job for batch in batches for job in batch) == Counter([*archive, *urgent])
    assert max(map(len, batches)) <= 7
    for worker in found:
        lanes = [job in urgent for batch in worker for job in batch]
        assert lanes == sorted(lanes, reverse=True)
    assert check_invariants(ledger.database) == []
    for worker in workers:
        worker.release_name()


def test_a_claim_steps_over_what_another_one_is_taking(ledger: Ledger) -> None:
    first, second = register_films(ledger.database, ["a", "b"])
    with ledger.database.write() as other:
        other.execute(select(tables.job.c.id).where(tables.job.c.id == first).with_for_update())
        assert [job.id for job in ledger.must_claim(1).jobs] == [second]
        assert ledger.claim(1) is None
    assert [job.id for job in ledger.must_claim(1).jobs] == [first]


def test_a_claim_of_a_large_ledger_uses_its_index(ledger: Ledger) -> None:
    register_films(ledger.database, [str(number) for number in range(3000)])
    with ledger.database.write() as connection:
        connection.execute(update(tables.job).where(tables.job.c.id % 100 != 0).values(state="cancelled"))
    with ledger.database.write() as connection:
        connection.execute(text("ANALYZE job"))
    with ledger.database.write() as connection:
        connection.execute(
            text("PREPARE chosen AS SELECT id FROM job WHERE state = 'ready' AND crashes = 0"
                 " ORDER BY priority, id LIMIT 16 FOR UPDATE SKIP LOCKED")
        )  # fmt: skip
        plan = "\n".join(connection.scalars(text("EXPLAIN EXECUTE chosen")))
        recent = select(tables.job.c.id).where(tables.job.c.finished_at >= database_now(-300.0))
        sql = recent.compile(connection.engine, compile_kwargs={"literal_binds": True})
        recent_plan = "\n".join(connection.scalars(text(f"EXPLAIN {sql}")))
    assert "ix_job_ready" in plan and "Seq Scan" not in plan
    assert "ix_job_finished_at" in recent_plan and "Seq Scan" not in recent_plan


@pytest.mark.parametrize("opposite", [False, True], ids=["same order", "opposite order"])
def test_the_same_contents_in_two_batches_become_one_film_each(ledger: Ledger, opposite: bool) -> None:
    """Two workers settle equal pictures in the same moment: the partial unique index decides."""
    contents = [f"content {number}" for number in range(8)]
    register_films(ledger.database, [f"first {content}" for content in contents])
    first = ledger.must_claim(8)
    register_films(ledger.database, [f"second {content}" for content in contents])
    second = ledger.must_claim(8)

    def results(claimed: Claim, turned: bool) -> list[Outcome]:
        jobs = claimed.jobs[::-1] if turned else claimed.jobs
        return [Outcome(job, result=full_result(job.source.path.partition(" ")[2])) for job in jobs]

    batches = [(first, results(first, False)), (second, results(second, opposite))]

    def write(number: int) -> Any:
        claimed, outcomes = batches[number]
        patience = Patience(wait=lambda _: None)
        return patience.until_done(lambda: finish(ledger.database, claimed, outcomes, settings=ledger.settings))

    reports = together(2, write)
    assert Counter(state for report in reports for state in report.states.values()) == {"done": 8, "cancelled": 8}
    with ledger.database.read() as connection:
        films = connection.execute(select(tables.instance.c.content_hash, tables.instance.c.alias_of)).all()
    assert Counter(film.content_hash for film in films if film.alias_of is None).most_common(1)[0][1] == 1
    assert sum(film.alias_of is not None for film in films) == 8
    assert check_invariants(ledger.database) == []


def test_a_sweep_beside_a_late_finish_gives_each_film_one_end(ledger: Ledger) -> None:
    """The holder writes while another worker takes its films back: one of them wins, whole."""
    for turn in range(6):
        register_films(ledger.database, [f"{turn} {number}" for number in range(4)])
        claimed = ledger.must_claim(4)
        age_leases(ledger.database)
        outcomes = [Outcome(job, result=full_result(job.source.path)) for job in claimed.jobs]
        report, swept = together(
            2,
            lambda number, claimed=claimed, outcomes=outcomes: (
                sweep(ledger.database)
                if number
                else finish(ledger.database, claimed, outcomes, settings=ledger.settings)
            ),
        )
        assert (len(report.states), swept.expired) in ((4, 0), (0, 4))
        assert check_invariants(ledger.database) == []
        with ledger.database.write() as connection:
            connection.execute(update(tables.job).where(tables.job.c.state == "ready").values(state="cancelled"))


def test_the_same_files_registered_at_once_are_registered_once(ledger: Ledger) -> None:
    files = [film(f"2.25.{number}", f"/films/{number}") for number in range(40)]
    registrars = [registrar(ledger.database) for _ in range(4)]
    patience = Patience(wait=lambda _: None)
    counts = together(4, lambda number: patience.until_done(lambda: registrars[number].register(files)))
    assert sum(count.registered for count in counts) == 40
    assert all(count.files == 40 for count in counts)
    with ledger.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.arrival)) == 40
        seen = select(func.count()).select_from(tables.submission_arrival)
        assert connection.scalar(seen) == 160
    assert Counter(job_states(ledger.database).values()) == {"ready": 40}
    assert check_invariants(ledger.database) == []


def test_workers_that_start_together_agree_on_names_and_duties(postgresql: Database, tmp_path: Path) -> None:
    """On several machines, so that no lock file keeps them apart."""
    settings = [settings_for(tmp_path / str(number)) for number in range(4)]
    started = together(4, lambda number: register_worker(postgresql, settings[number], "the same"))
    assert all(isinstance(worker, (WorkerIdentity, CarinaError)) for worker in started), started
    duties = [Duty(name, 60.0, prune) for name in ("one", "two")]
    assert together(4, lambda _: ensure_duties(postgresql, duties)) == [None] * 4
    worker = next(worker for worker in started if isinstance(worker, WorkerIdentity))
    done = together(4, lambda _: do_due_duties(postgresql, worker, duties))
    assert sorted(name for names in done for name in names) == ["one", "two"]


# A film's whole life


def test_every_way_a_film_can_go(ledger: Ledger) -> None:
    database, settings = ledger.database, ledger.settings
    names = ["done", "refused", "later", "lateral", "lost"]
    done, refused, later, lateral, lost = register_films(database, names)
    claimed = ledger.must_claim(4)
    outcomes = dict(zip(names, claimed.jobs, strict=False))
    report = finish(
        database,
        claimed,
        [
            Outcome(outcomes["done"], result=full_result("done")),
            Outcome(outcomes["refused"], error=FilmError("DECODE_FAILED", "a NUL \0 and a lone surrogate \udc80")),
            Outcome(outcomes["later"], error=FilmError("SOURCE_MISSING")),
            Outcome(outcomes["lateral"], error=FilmError("LATERAL")),
        ],
        settings=settings,
    )
    assert report.states == {done: "done", refused: "failed", later: "delayed", lateral: "ineligible"}
    assert [job.id for job in ledger.must_claim().jobs] == [lost]
    assert heartbeat(database, job_row(database, lost).lease_id, 60.0)
    age_leases(database)
    assert sweep(database).expired == 1
    make_due(database)
    assert make_due_ready(database) == 1
    assert retry(database, codes=["DECODE_FAILED"], actor="someone") == 1
    with database.read() as connection:
        backlog = queries.backlog(connection)["archive"]
        assert (backlog.ready, backlog.leased, backlog.delayed) == (3, 0, 0)
        assert queries.throughput(connection).done == 1
        assert queries.workers_seen(connection)[0].name == "one"
    assert check_invariants(database) == []


def test_words_postgresql_cannot_keep_cost_at_most_their_own_film(ledger: Ledger) -> None:
    register_films(ledger.database, ["good", "odd facts", "odd flag"])
    claimed = ledger.must_claim()
    good, facts, flag = (full_result(job.source.path) for job in claimed.jobs)
    facts = replace(facts, facts=replace(facts.facts, body_part="ÄÖ\0\udc80" * 40, view_position="P" * 40))
    flag.flags[0] = replace(flag.flags[0], detail="\0")
    outcomes = [Outcome(job, result=result) for job, result in zip(claimed.jobs, (good, facts, flag), strict=True)]
    report = finish(ledger.database, claimed, outcomes, settings=ledger.settings)
    assert [report.states[job.id] for job in claimed.jobs] == ["done", "done", "failed"]
    assert job_row(ledger.database, claimed.jobs[2].id).code == "RESULT_REJECTED"
    assert check_invariants(ledger.database) == []


def test_headers_with_words_postgresql_cannot_keep_are_registered(ledger: Ledger) -> None:
    files = [
        film("2.25.1", "/a", patient_id="NUL \0", station_name="\udc80" * 99, manufacturer="é" * 99),
        Examined(source("/b"), None, "BAD_VALUE", "the header says \0 and \udc80"),
        Examined(source("/ü \udc80".encode("utf-8", "surrogateescape").hex()), header("2.25.3")),
    ]
    counts = registrar(ledger.database).register(files)
    assert (counts.registered, counts.rejected.total()) == (2, 1)


def test_a_job_keeps_room_for_its_updates(postgresql: Database) -> None:
    def options() -> set[str]:
        with postgresql.read() as connection:
            return set(connection.scalar(text("SELECT reloptions FROM pg_class WHERE relname = 'job'")) or ())

    wanted = {"fillfactor=80", "autovacuum_vacuum_scale_factor=0.02", "autovacuum_vacuum_cost_delay=0"}
    assert options() == wanted
    postgresql.downgrade("0001")
    assert options() == set()
    postgresql.upgrade()
    assert options() == wanted
    with postgresql.read() as connection:
        columns = "SELECT attname, attstorage FROM pg_attribute WHERE attname IN ('mask', 'raw_mask', 'maps')"
        assert {row.attname: row.attstorage for row in connection.execute(text(columns))} == {
            "mask": "e", "raw_mask": "e", "maps": "e",
        }  # fmt: skip
