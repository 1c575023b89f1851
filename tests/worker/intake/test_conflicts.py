from __future__ import annotations

import json
from collections import Counter

import pytest
from intake_rows import arrival_at, film, one, register, rows, states, work
from ledger_rows import Ledger, digest, full_result
from sqlalchemy import update

from schema import tables
from worker.errors import CarinaError
from worker.intake.conflicts import accept, list_conflicts, show
from worker.queue.finish import finish
from worker.queue.outcomes import Outcome

PICTURES = {"in/a.dcm": "A", "in/b.dcm": "B", "in/c.dcm": "B"}


@pytest.fixture
def conflicting(ledger: Ledger) -> Ledger:
    register(ledger.database, *(film("2.25.1", path) for path in PICTURES))
    work(ledger, PICTURES)
    assert states(ledger.database, tables.arrival) == Counter(instance=1, conflict=2)
    return ledger


def test_conflicts_are_listed_with_both_files(conflicting: Ledger) -> None:
    first, _ = list_conflicts(conflicting.database)
    assert first.source == "/in/b.dcm" and first.sop_instance_uid == "2.25.1"
    assert first.current is not None and first.current.source == "/in/a.dcm"
    assert first.conflicting.content_hash == digest("content", "B")


def test_one_conflict_as_json(conflicting: Ledger) -> None:
    number = arrival_at(conflicting.database, "in/b.dcm").id
    shown = json.loads(json.dumps(show(conflicting.database, number).to_json()))
    assert shown["arrival_id"] == number and shown["current"]["source"] == "/in/a.dcm"
    assert shown["conflicting"]["file_hash"] == digest("file", "B")


def test_accepting_lets_the_other_file_take_the_place(conflicting: Ledger) -> None:
    database = conflicting.database
    number = arrival_at(database, "in/b.dcm").id
    accept(database, number, "an operator")
    now = {path: arrival_at(database, path) for path in PICTURES}
    assert [(row.state, row.current) for row in now.values()] == [
        ("conflict", False), ("instance", True), ("duplicate", False),
    ]  # fmt: skip
    instance = one(database, tables.instance)
    assert (instance.generation, instance.content_hash) == (2, None)
    jobs = [job for job in rows(database, tables.job) if job.kind == "process"]
    assert [(job.state, job.published, job.generation) for job in jobs] == [("done", False, 1), ("ready", True, 2)]
    audit = one(database, tables.audit_event)
    assert (audit.actor, audit.action) == ("an operator", "conflict accepted")
    assert audit.detail == {"accepted": number, "replaced": now["in/a.dcm"].id}
    work(conflicting, PICTURES)
    assert one(database, tables.instance).content_hash == digest("content", "B")


def test_a_decision_can_be_undone(conflicting: Ledger) -> None:
    database = conflicting.database
    accept(database, arrival_at(database, "in/b.dcm").id, "one")
    accept(database, arrival_at(database, "in/a.dcm").id, "two")
    assert arrival_at(database, "in/a.dcm").current
    work(conflicting, PICTURES)
    assert one(database, tables.instance).content_hash == digest("content", "A")
    assert one(database, tables.instance).generation == 3


def test_a_worker_that_reads_the_old_file_meanwhile_writes_nothing(conflicting: Ledger) -> None:
    database = conflicting.database
    accept(database, arrival_at(database, "in/b.dcm").id, "one")
    claim = conflicting.must_claim()
    accept(database, arrival_at(database, "in/a.dcm").id, "two")
    report = finish(database, claim, [Outcome(claim.jobs[0], result=full_result("B"))], settings=conflicting.settings)
    assert report.fenced == (claim.jobs[0].id,)
    assert one(database, tables.instance).content_hash is None


def test_aliases_of_the_old_picture_are_read_for_themselves(conflicting: Ledger) -> None:
    database = conflicting.database
    register(database, film("2.25.2", "in/alias.dcm"))
    pictures = {**PICTURES, "in/alias.dcm": "A"}
    work(conflicting, pictures)
    assert arrival_at(database, "in/alias.dcm").state == "alias"
    accept(database, arrival_at(database, "in/b.dcm").id, "one")
    work(conflicting, pictures)
    assert arrival_at(database, "in/alias.dcm").state == "instance"
    published = [job.state for job in rows(database, tables.job) if job.kind == "process" and job.published]
    assert Counter(published) == Counter(done=2, cancelled=1)


def test_only_conflicts_can_be_accepted(conflicting: Ledger) -> None:
    number = arrival_at(conflicting.database, "in/a.dcm").id
    for attempt in (number, 999):
        with pytest.raises(CarinaError, match="carina conflicts list"):
            accept(conflicting.database, attempt, "one")
        with pytest.raises(CarinaError, match="not in conflict"):
            show(conflicting.database, attempt)
    assert not rows(conflicting.database, tables.audit_event)


def test_an_accepted_conflict_waits_for_work_on_the_pictures_aliases(conflicting: Ledger) -> None:
    database = conflicting.database
    register(database, film("2.25.2", "in/alias.dcm"))
    with database.write() as connection:
        connection.execute(update(tables.instance).where(tables.instance.c.id == 2).values(alias_of=1))
    with pytest.raises(CarinaError, match="try again"):
        accept(database, arrival_at(database, "in/b.dcm").id, "one")
    assert arrival_at(database, "in/a.dcm").current
