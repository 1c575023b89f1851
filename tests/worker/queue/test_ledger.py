from __future__ import annotations

from collections import Counter

import pytest
from ledger_rows import Ledger, add_bundle, age_leases, full_result, job_row, job_states, register_films
from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError

from schema import tables
from schema.tables import Lane
from worker import REVISION
from worker.errors import FilmError
from worker.queue.claim_statements import EVERYWHERE
from worker.queue.finish import finish
from worker.queue.invariants import check_invariants
from worker.queue.leases import sweep
from worker.queue.ledger import cancel, release, retry
from worker.queue.outcomes import Outcome


def make_suspects(ledger: Ledger, count: int = 16) -> None:
    ledger.must_claim(count)
    age_leases(ledger.database)
    sweep(ledger.database)


class TestClaim:
    def test_binds_the_bundle_and_knows_where_the_films_lie(self, ledger: Ledger) -> None:
        ids = register_films(ledger.database, ["a.dcm", "b.dcm"])
        claimed = ledger.must_claim()
        assert [item.id for item in claimed.jobs] == ids
        assert [item.source.path for item in claimed.jobs] == ["a.dcm", "b.dcm"]
        assert claimed.bundle_id == ledger.bundle_id
        row = job_row(ledger.database, ids[0])
        assert (row.state, row.bundle_id, row.revision, row.attempts) == ("leased", ledger.bundle_id, REVISION, 1)
        assert row.started_at is not None and row.wait_seconds is not None

    def test_takes_no_more_than_asked_and_nobody_twice(self, ledger: Ledger) -> None:
        ids = register_films(ledger.database, [f"{n}" for n in range(10)])
        batches = [ledger.must_claim(4) for _ in range(3)]
        assert [len(batch.jobs) for batch in batches] == [4, 4, 2]
        assert sorted(item.id for batch in batches for item in batch.jobs) == ids
        assert ledger.claim(4) is None

    def test_finding_nothing_leaves_no_lease(self, ledger: Ledger) -> None:
        assert ledger.claim() is None
        assert check_invariants(ledger.database) == []

    def test_the_urgent_lane_comes_first(self, ledger: Ledger) -> None:
        archive = register_films(ledger.database, ["a", "b"], lane=Lane.ARCHIVE)
        urgent = register_films(ledger.database, ["c", "d"], lane=Lane.ICU)
        assert [item.id for item in ledger.must_claim(3).jobs] == [*urgent, archive[0]]

    def test_the_archive_has_its_share(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["urgent"], lane=Lane.ICU)
        archive = register_films(ledger.database, ["archive"], lane=Lane.ARCHIVE)
        assert [item.id for item in ledger.must_claim(1, draw=lambda: 0.049).jobs] == archive

    def test_the_archive_share_goes_back_when_the_archive_is_empty(self, ledger: Ledger) -> None:
        urgent = register_films(ledger.database, ["urgent"], lane=Lane.ICU)
        assert [item.id for item in ledger.must_claim(1, draw=lambda: 0.0).jobs] == urgent

    def test_a_suspect_is_always_alone(self, ledger: Ledger) -> None:
        suspects = register_films(ledger.database, ["a", "b"])
        make_suspects(ledger)
        fresh = register_films(ledger.database, ["c", "d"])
        first, second, third = ledger.must_claim(), ledger.must_claim(), ledger.must_claim()
        assert [item.id for item in first.jobs] == fresh and not first.suspect
        assert [[item.id for item in batch.jobs] for batch in (second, third)] == [[suspects[0]], [suspects[1]]]
        assert second.suspect and third.suspect

    def test_suspects_have_their_share_and_no_more(self, ledger: Ledger) -> None:
        suspects = register_films(ledger.database, ["a"])
        make_suspects(ledger)
        fresh = register_films(ledger.database, ["b"])
        assert [item.id for item in ledger.must_claim(draw=lambda: 0.29).jobs] == suspects
        release(ledger.database, job_row(ledger.database, suspects[0]).lease_id)
        assert [item.id for item in ledger.must_claim(draw=lambda: 0.31).jobs] == fresh

    def test_a_worker_busy_with_a_suspect_takes_no_other(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])
        make_suspects(ledger)
        assert ledger.claim(suspects=False) is None
        assert ledger.claim(suspects=False, draw=lambda: 0.0) is None
        assert ledger.claim() is not None
        assert check_invariants(ledger.database) == []

    def test_a_film_already_read_with_this_bundle_is_cancelled_on_the_way(self, ledger: Ledger) -> None:
        (done,) = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        finish(ledger.database, claimed, [Outcome(claimed.jobs[0], result=full_result("a"))], settings=ledger.settings)
        with ledger.database.write() as connection:
            again = connection.execute(
                insert(tables.job).values(
                    instance_id=claimed.jobs[0].instance_id, arrival_id=claimed.jobs[0].arrival_id, priority=0
                )
            ).inserted_primary_key[0]
        (fresh,) = register_films(ledger.database, ["b"])
        assert [item.id for item in ledger.must_claim(1).jobs] == [fresh]
        row = job_row(ledger.database, again)
        assert (row.state, row.bundle_id, row.lease_id) == ("cancelled", None, None)
        assert job_row(ledger.database, done).state == "done"
        assert check_invariants(ledger.database) == []

    def test_what_another_bundle_shall_read_anew_is_left_to_it(self, ledger: Ledger) -> None:
        """It was promoted, and this worker has not changed over yet."""
        films = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        finish(ledger.database, claimed, [Outcome(claimed.jobs[0], result=full_result("a"))], settings=ledger.settings)
        promoted = add_bundle(ledger.database, "promoted")
        with ledger.database.write() as connection:
            connection.execute(insert(tables.bundle_alias).values(alias="champion", bundle_id=promoted))
            again = connection.execute(
                insert(tables.job).values(instance_id=claimed.jobs[0].instance_id, priority=0)
            ).inserted_primary_key[0]
        fresh = register_films(ledger.database, ["b"])
        assert [item.id for item in ledger.must_claim().jobs] == fresh
        assert ledger.claim() is None
        assert job_states(ledger.database) == {films[0]: "done", again: "ready", fresh[0]: "leased"}
        assert [item.id for item in ledger.must_claim(bundle_id=promoted).jobs] == [again]
        assert check_invariants(ledger.database) == []

    def test_another_bundle_or_generation_is_new_work(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        finish(ledger.database, claimed, [Outcome(claimed.jobs[0], result=full_result("a"))], settings=ledger.settings)
        values = {"instance_id": claimed.jobs[0].instance_id, "arrival_id": claimed.jobs[0].arrival_id, "priority": 0}
        with ledger.database.write() as connection:
            connection.execute(insert(tables.job).values(**values))
        other = add_bundle(ledger.database, "other")
        second = ledger.must_claim(bundle_id=other)
        finish(ledger.database, second, [Outcome(second.jobs[0], result=full_result("a"))], settings=ledger.settings)
        with ledger.database.write() as connection:
            connection.execute(insert(tables.job).values(generation=2, **values))
        assert ledger.claim(bundle_id=other) is not None

    def test_a_film_whose_file_is_forgotten_is_cancelled(self, ledger: Ledger) -> None:
        (gone, kept) = register_films(ledger.database, ["a", "b"])
        with ledger.database.write() as connection:
            connection.execute(tables.identity.delete().where(tables.identity.c.path == "a"))
        assert [item.id for item in ledger.must_claim().jobs] == [kept]
        assert job_row(ledger.database, gone).state == "cancelled"

    def test_uses_the_partial_index(self, ledger: Ledger) -> None:
        if ledger.database.dialect != "sqlite":
            pytest.skip("asks SQLite for its plan")
        statement = EVERYWHERE.claims["fresh"].compile(ledger.database._writer)
        with ledger.database.read() as connection:
            plan = connection.exec_driver_sql(
                "EXPLAIN QUERY PLAN " + str(statement), tuple(None for _ in statement.positiontup or ())
            ).all()
        assert any("ix_job_ready" in row.detail for row in plan)
        assert not any(row.detail.startswith("SCAN job") and "ix_job_ready" not in row.detail for row in plan)

    @pytest.mark.parametrize("candidates", ["fresh", "archive", "suspect", "shadow", "shadow suspect"])
    def test_on_postgresql_rows_are_locked_and_chosen_once(self, candidates: str) -> None:
        sql = str(EVERYWHERE.claims[candidates].compile(dialect=postgresql.dialect()))
        assert "AS MATERIALIZED" in sql
        assert "FOR UPDATE OF job SKIP LOCKED" in sql
        assert "state = 'ready'" in sql
        assert sql.index("LIMIT") < sql.index("UPDATE job SET")


class TestFinality:
    @pytest.mark.parametrize("state", ["done", "ineligible"])
    def test_the_database_itself_keeps_a_finished_film(self, ledger: Ledger, state: str) -> None:
        (film,) = register_films(ledger.database, ["a"])
        claimed = ledger.must_claim()
        outcome = (
            Outcome(claimed.jobs[0], result=full_result("a"))
            if state == "done"
            else Outcome(claimed.jobs[0], error=FilmError("LATERAL"))
        )
        finish(ledger.database, claimed, [outcome], settings=ledger.settings)
        with pytest.raises(IntegrityError, match="final"), ledger.database.write() as connection:
            connection.execute(update(tables.job).where(tables.job.c.id == film).values(state="failed", code="X"))
        assert job_row(ledger.database, film).state == state


class TestRelease:
    def test_gives_all_back_as_if_never_claimed(self, ledger: Ledger) -> None:
        ids = register_films(ledger.database, ["a", "b"])
        claimed = ledger.must_claim()
        assert release(ledger.database, claimed.lease_id) == 2
        row = job_row(ledger.database, ids[0])
        assert (row.state, row.attempts, row.crashes, row.bundle_id) == ("ready", 0, 0, None)
        assert check_invariants(ledger.database) == []

    def test_gives_some_back(self, ledger: Ledger) -> None:
        ids = register_films(ledger.database, ["a", "b"])
        claimed = ledger.must_claim()
        assert release(ledger.database, claimed.lease_id, claimed.jobs[1:]) == 1
        assert job_states(ledger.database) == {ids[0]: "leased", ids[1]: "ready"}

    def test_of_somebody_elses_lease_changes_nothing(self, ledger: Ledger) -> None:
        register_films(ledger.database, ["a"])
        ledger.must_claim()
        assert release(ledger.database, "not-a-lease") == 0
        assert Counter(job_states(ledger.database).values()) == {"leased": 1}


class TestRetry:
    def fail(self, ledger: Ledger, *codes: str) -> list[int]:
        ids = register_films(ledger.database, [f"{code}-{n}" for n, code in enumerate(codes)])
        claimed = ledger.must_claim(len(codes))
        outcomes = [Outcome(job, error=FilmError(code)) for job, code in zip(claimed.jobs, codes, strict=True)]
        finish(ledger.database, claimed, outcomes, settings=ledger.settings)
        return ids

    def test_by_code_is_audited_and_forgets_attempts_and_crashes(self, ledger: Ledger) -> None:
        ids = self.fail(ledger, "DECODE_FAILED", "BAD_HEADER")
        assert retry(ledger.database, codes=["DECODE_FAILED"], actor="someone") == 1
        row = job_row(ledger.database, ids[0])
        assert (row.state, row.attempts, row.crashes, row.code, row.bundle_id) == ("ready", 0, 0, None, None)
        assert job_row(ledger.database, ids[1]).state == "failed"
        with ledger.database.read() as connection:
            event = connection.execute(select(tables.audit_event)).one()
        assert (event.actor, event.action, event.detail["jobs"]) == ("someone", "retry", 1)

    def test_by_id_and_all(self, ledger: Ledger) -> None:
        ids = self.fail(ledger, "DECODE_FAILED", "BAD_HEADER", "BAD_HEADER")
        assert retry(ledger.database, ids=[ids[2]], actor="a") == 1
        assert retry(ledger.database, actor="a") == 2
        assert retry(ledger.database, actor="a") == 0
        assert set(job_states(ledger.database).values()) == {"ready"}

    def test_leaves_films_alone_that_are_open_anyway_or_have_changed(self, ledger: Ledger) -> None:
        opened, changed = self.fail(ledger, "DECODE_FAILED", "DECODE_FAILED")
        with ledger.database.write() as connection:
            instances = dict(connection.execute(select(tables.job.c.id, tables.job.c.instance_id)).all())
            connection.execute(insert(tables.job).values(instance_id=instances[opened], priority=0))
            connection.execute(
                update(tables.instance).where(tables.instance.c.id == instances[changed]).values(generation=2)
            )
        assert retry(ledger.database, actor="a") == 0

    def test_of_two_failures_of_a_film_only_the_newer_is_tried(self, ledger: Ledger) -> None:
        (first,) = self.fail(ledger, "DECODE_FAILED")
        with ledger.database.write() as connection:
            instance_id = connection.scalar(select(tables.job.c.instance_id))
            second = connection.execute(
                insert(tables.job).values(instance_id=instance_id, priority=0, state="failed", code="DECODE_FAILED")
            ).inserted_primary_key[0]
        assert retry(ledger.database, actor="a") == 1
        assert job_states(ledger.database) == {first: "failed", second: "ready"}


def test_cancel_takes_only_what_waits(ledger: Ledger) -> None:
    ids = register_films(ledger.database, ["a", "b"])
    ledger.must_claim(1)
    assert cancel(ledger.database, ids=ids, actor="someone") == 1
    assert job_states(ledger.database) == {ids[0]: "leased", ids[1]: "cancelled"}
    with ledger.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.audit_event)) == 1
