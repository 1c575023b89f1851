from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intake_rows import arrival_at, content, copy_of, film, make_champion, one, outcome, register, rows, states, work
from ledger_rows import Ledger, add_bundle, digest, full_result, settings_for

from schema import tables
from schema.database import Database
from worker.intake import arrivals
from worker.intake.arrivals import Settlement, settle
from worker.queue.finish import finish
from worker.queue.ledger import register_worker
from worker.queue.outcomes import ClaimedJob, Content

MULTI = {"number_of_frames": 9}


def process_jobs(ledger: Ledger, instance_id: int) -> list[str]:
    jobs = rows(ledger.database, tables.job, tables.job.c.instance_id == instance_id, tables.job.c.kind == "process")
    return [job.state for job in jobs]


def state_of(ledger: Ledger, path: str) -> tuple[str, str | None, bool]:
    row = arrival_at(ledger.database, path)
    return row.state, row.code, row.current


def test_a_film_proceeds_and_is_described(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.1", "a", body_part=""))
    work(ledger, {"a": "A"})
    instance, arrival = one(ledger.database, tables.instance), one(ledger.database, tables.arrival)
    assert (instance.content_hash, instance.file_hash) == (digest("content", "A"), digest("file", "A"))
    assert (arrival.content_hash, arrival.file_hash) == (instance.content_hash, instance.file_hash)
    assert (instance.film_rows, instance.row_spacing, instance.spacing_source) == (2500, 0.14, "none")
    assert (instance.body_part, instance.age_days) == ("CHEST", 3000)


@pytest.mark.parametrize("limit", [1, 16])
def test_the_same_picture_under_another_uid_is_an_alias(ledger: Ledger, limit: int) -> None:
    register(ledger.database, film("2.25.1", "a"), film("2.25.2", "b"))
    work(ledger, {"a": "A", "b": "A"}, limit=limit)
    first, second = rows(ledger.database, tables.instance)
    assert (first.alias_of, second.alias_of, second.content_hash) == (None, first.id, first.content_hash)
    assert state_of(ledger, "b") == ("alias", None, True)
    assert len(rows(ledger.database, tables.segmentation)) == 1


def test_a_second_file_of_the_same_picture_is_a_duplicate(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.1", "a"), film("2.25.1", "b"))
    work(ledger, {"a": "A", "b": "A"})
    assert state_of(ledger, "b") == ("duplicate", None, False)
    assert states(ledger.database, tables.job) == Counter(done=2)


def test_a_re_encoded_file_is_a_duplicate(ledger: Ledger) -> None:
    """Other bytes, the same canonical pixels."""
    register(ledger.database, film("2.25.1", "a"), film("2.25.1", "b"))
    work(ledger, {"a": "A", "b": "A"}, limit=1)
    with ledger.database.write() as connection:
        job = ClaimedJob(
            id=2, kind="verify", instance_id=1, arrival_id=2, source=None, generation=1, attempts=1, crashes=0
        )
        job = replace(job, kind=tables.JobKind.VERIFY)
        other = Content("f" * 64, digest("content", "A"))
        assert settle(connection, job, other, geometry=None, facts=None) is Settlement.DUPLICATE


def test_another_picture_under_the_same_uid_is_a_conflict(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.1", "a"), film("2.25.1", "b"))
    work(ledger, {"a": "A", "b": "B"})
    assert state_of(ledger, "b") == ("conflict", None, False)
    assert state_of(ledger, "a") == ("instance", None, True)
    assert one(ledger.database, tables.instance).content_hash == digest("content", "A")


def test_a_second_file_waits_for_the_film(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.1", "a"), film("2.25.1", "b"))
    process, verify = (ledger.must_claim(1) for _ in range(2))
    report = finish(ledger.database, verify, [outcome(verify.jobs[0], {"b": "B"})], settings=ledger.settings)
    assert report.states == {verify.jobs[0].id: "delayed"}
    assert state_of(ledger, "b") == ("unverified", None, False)
    finish(ledger.database, process, [outcome(process.jobs[0], {"a": "A"})], settings=ledger.settings)
    work(ledger, {"b": "B"})
    assert state_of(ledger, "b")[0] == "conflict"


@pytest.mark.parametrize("first", ["!TRUNCATED_PIXELS", "?side"])
def test_a_film_without_use_adopts_the_next_file(ledger: Ledger, first: str) -> None:
    make_champion(ledger.database)
    register(ledger.database, film("2.25.1", "a"), film("2.25.1", "b"))
    work(ledger, {"a": first, "b": "B"})
    code = "LATERAL" if first == "?side" else first[1:]
    assert state_of(ledger, "a") == ("rejected", code, False)
    assert state_of(ledger, "b") == ("instance", None, True)
    instance = one(ledger.database, tables.instance)
    assert (instance.generation, instance.content_hash) == (2, digest("content", "B"))
    jobs = [job for job in rows(ledger.database, tables.job) if job.kind == "process"]
    assert [(job.state, job.generation, job.published) for job in jobs][-1] == ("done", 2, True)
    assert not jobs[0].published and jobs[0].state in {"cancelled", "ineligible"}
    assert jobs[1].priority == jobs[0].priority and jobs[1].arrival_id == 2


def test_a_film_with_an_ineligible_header_adopts_the_next_file(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.1", "a", **MULTI))
    register(ledger.database, film("2.25.1", "b"))
    work(ledger, {"b": "B"})
    assert state_of(ledger, "a") == ("rejected", "MULTI_FRAME", False)
    assert state_of(ledger, "b") == ("instance", None, True)
    assert process_jobs(ledger, 1) == ["ineligible", "done"]


@pytest.mark.parametrize("limit", [1, 16])
def test_after_an_adoption_an_equal_file_is_a_duplicate_and_another_a_conflict(ledger: Ledger, limit: int) -> None:
    register(ledger.database, *(film("2.25.1", path) for path in "abcd"))
    work(ledger, {"a": "!DECODE_FAILED", "b": "B", "c": "B", "d": "D"}, limit=limit)
    found = {path: state_of(ledger, path)[0] for path in "abcd"}
    assert found == {"a": "rejected", "b": "instance", "c": "duplicate", "d": "conflict"}
    assert one(ledger.database, tables.instance).generation == 2


def test_an_adopted_file_may_turn_out_an_alias(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.9", "z"), film("2.25.1", "a"), film("2.25.1", "b"))
    work(ledger, {"z": "B", "a": "!DECODE_FAILED", "b": "B"})
    assert state_of(ledger, "b") == ("alias", None, True)
    assert one(ledger.database, tables.instance, tables.instance.c.id == 2).alias_of == 1


def test_an_unreadable_second_file_is_rejected(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.1", "a"), film("2.25.1", "b"))
    work(ledger, {"a": "A", "b": "!TRUNCATED_PIXELS"})
    assert state_of(ledger, "b") == ("rejected", "TRUNCATED_PIXELS", False)
    assert arrival_at(ledger.database, "b").detail == "seen"


def test_a_later_failure_does_not_cost_a_film_its_place(ledger: Ledger) -> None:
    """Done with one bundle, failed with the next: the file was usable, so another picture is a conflict."""
    make_champion(ledger.database)
    register(ledger.database, film("2.25.1", "a"))
    work(ledger, {"a": "A"})
    second = add_bundle(ledger.database, version="2")
    make_champion(ledger.database, second)
    register(ledger.database, film("2.25.1", "a"), film("2.25.1", "b"))
    work(replace(ledger, bundle_id=second), {"a": "!SOURCE_MISSING", "b": "B"})
    assert "failed" in process_jobs(ledger, 1)
    assert state_of(ledger, "b")[0] == "conflict" and state_of(ledger, "a") == ("instance", None, True)


def test_a_second_file_of_an_alias(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.1", "a"), film("2.25.2", "b"))
    work(ledger, {"a": "A", "b": "A"})
    register(ledger.database, film("2.25.2", "c"), film("2.25.2", "d"))
    work(ledger, {"c": "A", "d": "D"})
    assert (state_of(ledger, "c")[0], state_of(ledger, "d")[0]) == ("duplicate", "conflict")


def test_an_alias_of_a_film_without_use_adopts_the_next_file(ledger: Ledger) -> None:
    register(ledger.database, film("2.25.9", "z"), film("2.25.1", "a"), film("2.25.1", "b"))
    work(ledger, {"z": "?A", "a": "?A", "b": "B"})
    assert state_of(ledger, "a") == ("rejected", "LATERAL", False)
    assert state_of(ledger, "b") == ("instance", None, True)
    assert one(ledger.database, tables.instance, tables.instance.c.id == 2).alias_of is None


def test_duplicates_share_the_fate_of_the_file_they_repeat(ledger: Ledger) -> None:
    register(ledger.database, *(film("2.25.1", path) for path in "ab"))
    work(ledger, {"a": "?A", "b": "?A"})
    register(ledger.database, film("2.25.1", "c"))
    work(ledger, {"c": "C"})
    assert state_of(ledger, "a") == state_of(ledger, "b") == ("rejected", "LATERAL", False)


def test_when_a_film_gets_another_picture_its_aliases_speak_for_the_old_one(ledger: Ledger) -> None:
    register(ledger.database, *(film(f"2.25.{number}", path) for number, path in enumerate("abc", start=1)))
    work(ledger, {"a": "?A", "b": "?A", "c": "?A"})
    register(ledger.database, film("2.25.1", "d"))
    work(ledger, {"d": "D", "b": "?A", "c": "?A"})
    first, second, third = rows(ledger.database, tables.instance)
    assert (first.content_hash, first.alias_of) == (digest("content", "D"), None)
    assert (second.alias_of, third.alias_of) == (None, second.id)
    assert state_of(ledger, "b") == ("instance", None, True)
    assert process_jobs(ledger, second.id) == ["cancelled", "ineligible"]


def test_adoption_waits_while_an_alias_is_in_work(ledger: Ledger) -> None:
    """In one batch: the alias's own job must end before its film may change."""
    register(ledger.database, film("2.25.1", "a"))
    work(ledger, {"a": "?A"})
    register(ledger.database, film("2.25.2", "b"), film("2.25.1", "c"))
    work(ledger, {"b": "?A", "c": "C"})
    assert state_of(ledger, "c") == ("instance", None, True)
    assert rows(ledger.database, tables.instance)[1].alias_of is None
    assert process_jobs(ledger, 2) == ["cancelled", "ineligible"]


def test_two_workers_settle_the_same_picture_in_the_same_moment(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker commits between our look and our write: the index refuses, we look again."""
    register(ledger.database, film("2.25.1", "a"), film("2.25.2", "b"))
    claim = ledger.must_claim()
    first, second = claim.jobs
    looks: list[int | None] = []
    real = arrivals._twin

    def blind_once(*arguments: object) -> int | None:
        looks.append(None if not looks else real(*arguments))
        return looks[-1]

    result = full_result("A")
    with ledger.database.write() as connection:
        settled = settle(connection, first, content("A"), geometry=result.geometry, facts=result.facts)
        monkeypatch.setattr(arrivals, "_twin", blind_once)
        late = settle(connection, second, content("A"), geometry=result.geometry, facts=result.facts)
    assert (settled, late) == (Settlement.PROCEED, Settlement.ALIAS)
    assert looks == [None, first.instance_id]


def invariants(database: Database) -> None:
    """What holds at every moment, whatever came in whatever order."""
    jobs, files = rows(database, tables.job), rows(database, tables.arrival)
    films = {row.id: row for row in rows(database, tables.instance)}
    current = Counter(file.instance_id for file in files if file.current)
    assert current == dict.fromkeys(films, 1)
    for number, film_row in films.items():
        now = [job for job in jobs if job.instance_id == number and job.generation == film_row.generation]
        assert sum(job.kind == "process" and job.state == "done" for job in now) <= 1
        if film_row.alias_of is not None:
            target = films[film_row.alias_of]
            assert target.alias_of is None and target.content_hash == film_row.content_hash
    contents = [row.content_hash for row in films.values() if row.alias_of is None and row.content_hash]
    assert len(contents) == len(set(contents))


PICTURES = st.sampled_from(["A", "B", "C", "?D", "?E", "!DECODE_FAILED", "!NO_PIXEL_DATA"])


@given(
    st.lists(st.tuples(st.integers(1, 4), PICTURES), min_size=1, max_size=12),
    st.lists(st.integers(1, 5), max_size=4),
    st.integers(1, 16),
)
@settings(max_examples=40, deadline=None)
def test_any_files_settle_and_every_usable_picture_counts(
    template: Path, files: list[tuple[int, str]], sizes: list[int], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = copy_of(template, Path(folder))
        options = settings_for(Path(folder))
        worker = register_worker(database, options, "one")
        ledger = Ledger(database, options, worker)
        pictures = {f"f{number}": picture for number, (_, picture) in enumerate(files)}
        waiting = [film(f"2.25.{uid}", f"f{number}") for number, (uid, _) in enumerate(files)]
        for size in [*sizes, len(waiting)]:
            batch, waiting = waiting[:size], waiting[size:]
            if batch:
                register(database, *batch)
            work(ledger, pictures, limit=limit)
            invariants(database)
        _check_outcome(database, files)
        worker.release_name()
        database.close()


def _check_outcome(database: Database, files: list[tuple[int, str]]) -> None:
    found = states(database, tables.arrival)
    assert found.total() == len(files) and found["unverified"] == 0
    done = [job for job in rows(database, tables.job) if job.kind == "process" and job.published]
    for uid in {uid for uid, _ in files}:
        usable = [picture for number, picture in files if number == uid and picture[0] not in "?!"]
        number = _instance(database, uid)
        row = one(database, tables.instance, tables.instance.c.id == number)
        own = [job.state for job in done if job.instance_id == number and job.generation == row.generation]
        if usable:
            # A usable picture holds the place and was read, here or as the film it repeats.
            assert row.content_hash in {digest("content", picture) for picture in usable}
            assert row.alias_of is not None or own[-1] == "done"
        else:
            assert "done" not in own
        for arrival in rows(database, tables.arrival, tables.arrival.c.instance_id == number):
            if arrival.content_hash is not None and arrival.state != "rejected":
                same = arrival.content_hash == row.content_hash
                assert same == (arrival.state != "conflict")


def _instance(database: Database, uid: int) -> int:
    table = tables.instance_identity
    return one(database, table, table.c.sop_instance_uid == f"2.25.{uid}").instance_id
