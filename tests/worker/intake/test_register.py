from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intake_rows import (
    SITE_KEY,
    arrival_at,
    copy_of,
    film,
    header,
    make_champion,
    one,
    register,
    registrar,
    rows,
    source,
    states,
)
from ledger_rows import Ledger, add_bundle, full_result
from sqlalchemy import event, text, update

from schema import keys, queries, tables
from schema.database import Database, DatabaseVersionError
from schema.tables import PRIORITY, Lane
from worker.errors import FilmError
from worker.intake.register import Counts, Examined
from worker.queue.finish import finish
from worker.queue.outcomes import Claim, Outcome

MULTI = {"number_of_frames": 9}


def test_a_new_film(database: Database) -> None:
    counts = register(database, film("2.25.1", "a/b.dcm"), lane=Lane.ICU)
    assert (counts.registered, counts.files, counts.work, counts.bytes) == (1, 1, 1, 1000)
    arrival, instance, job = (one(database, table) for table in (tables.arrival, tables.instance, tables.job))
    assert (arrival.state, arrival.current, arrival.instance_id) == ("instance", True, instance.id)
    assert instance.key == keys.uid_key(SITE_KEY, "2.25.1") and instance.age_days == 1500
    assert instance.held_out == keys.is_held_out(instance.patient_key)
    assert (instance.station, instance.film_rows, instance.content_hash) == ("ROOM1", 2000, None)
    assert (job.state, job.kind, job.priority, job.arrival_id) == ("ready", "process", PRIORITY["icu"], arrival.id)
    identity, known_as = one(database, tables.identity), one(database, tables.instance_identity)
    assert (identity.root, identity.path, identity.size) == ("local", "a/b.dcm", 1000)
    assert (known_as.sop_instance_uid, known_as.patient_id, known_as.study_date) == ("2.25.1", "P1", "2026-03-01")


def test_identity_stands_in_two_tables_only(database: Database) -> None:
    register(database, film("2.25.777", "SECRET/b.dcm", patient_id="SECRET", accession_number="SECRET"))
    for table in tables.metadata.sorted_tables:
        if table.name not in {"identity", "instance_identity"}:
            assert not [row for row in rows(database, table) if "SECRET" in str(row) or "2.25.777" in str(row)]


def test_films_of_one_patient_share_a_key_and_films_without_patient_share_the_study(database: Database) -> None:
    register(
        database,
        film("2.25.1", "a", study_instance_uid="2.25.10"),
        film("2.25.2", "b", study_instance_uid="2.25.11"),
        film("2.25.3", "c", patient_id="", study_instance_uid="2.25.12"),
        film("2.25.4", "d", patient_id="", study_instance_uid="2.25.12"),
        film("2.25.5", "e", patient_id="", study_instance_uid=""),
        film("2.25.6", "f", patient_id="", study_instance_uid=""),
        film("2.25.7", "g", issuer_of_patient_id="elsewhere"),
    )
    found = [row.patient_key for row in rows(database, tables.instance)]
    assert found[0] == found[1] and found[2] == found[3]
    assert len(set(found)) == 5


def test_a_second_file_of_a_uid_is_to_be_verified(database: Database) -> None:
    first = register(database, film("2.25.1", "a"), film("2.25.1", "b"))
    later = register(database, film("2.25.1", "c"))
    assert (first.registered, first.unverified, later.unverified) == (1, 1, 1)
    assert len(rows(database, tables.instance)) == 1
    assert states(database, tables.arrival) == Counter(instance=1, unverified=2)
    assert Counter(job.kind for job in rows(database, tables.job)) == Counter(process=1, verify=2)


def test_an_ineligible_header_ends_at_once(database: Database) -> None:
    counts = register(database, film("2.25.1", "a", **MULTI))
    assert counts.ineligible == Counter({"MULTI_FRAME": 1}) and counts.work == 0
    job = one(database, tables.job)
    assert (job.state, job.code, job.stage, job.detail) == ("ineligible", "MULTI_FRAME", "register", "9 frames")
    assert job.finished_at is not None and job.bundle_id is None
    assert one(database, tables.arrival).state == "instance"


def test_an_ineligible_second_file_costs_no_worker_anything(database: Database) -> None:
    counts = register(database, film("2.25.1", "a"), film("2.25.1", "b", **MULTI))
    assert counts.rejected == Counter({"MULTI_FRAME": 1})
    assert arrival_at(database, "b").code == "MULTI_FRAME"
    assert len(rows(database, tables.job)) == 1


def test_an_unreadable_file_is_rejected_with_code_and_words(database: Database) -> None:
    counts = register(database, Examined(source("a"), None, "MISSING_TAG", "SOPInstanceUID"))
    arrival = one(database, tables.arrival)
    assert counts.rejected == Counter({"MISSING_TAG": 1})
    assert (arrival.state, arrival.code, arrival.detail) == ("rejected", "MISSING_TAG", "SOPInstanceUID")
    assert arrival.instance_id is None and not rows(database, tables.job)


def test_what_is_not_dicom_is_only_counted(database: Database) -> None:
    counts = register(database, Examined(source("README"), None, "NOT_DICOM"), film("2.25.1", "a"))
    assert counts.not_dicom == 1 and len(rows(database, tables.arrival)) == 1
    submission = one(database, tables.submission)
    assert (submission.not_dicom, submission.files_seen) == (1, 2)


def test_the_same_file_is_registered_once(database: Database) -> None:
    register(database, film("2.25.1", "a"))
    counts = register(database, film("2.25.1", "a"), Examined(source("a")))
    assert counts.seen_before == 2 and counts.files == 2
    assert len(rows(database, tables.arrival)) == len(rows(database, tables.job)) == 1
    assert [row.seen_before for row in rows(database, tables.submission_arrival)] == [False, True]


def test_a_file_named_twice_in_one_submission(database: Database) -> None:
    target = registrar(database)
    first = target.register([film("2.25.1", "a"), film("2.25.1", "a")])
    again = target.register([Examined(source("a"))])
    assert (first.registered, first.seen_before, again.seen_before) == (1, 1, 1)
    assert len(rows(database, tables.submission_arrival)) == 1


def test_a_file_that_changed_is_another_file(database: Database) -> None:
    register(database, film("2.25.1", "a"))
    counts = register(database, Examined(replace(source("a"), modified_ns=5), header("2.25.1")))
    assert counts.unverified == 1


def test_members_and_the_archive_itself_are_different_files(database: Database) -> None:
    files = [
        Examined(source("x.zip", member="a"), header("2.25.1")),
        Examined(source("x.zip", member="b"), header("2.25.2")),
        Examined(source("x.zip"), None, "BAD_ARCHIVE", "1 members are encrypted"),
    ]
    counts = register(database, *files)
    assert counts.registered == 2 and counts.rejected.total() == 1
    assert register(database, *files).seen_before == 3


@pytest.mark.parametrize("code", ["NO_PERMISSION", "SOURCE_MISSING", "READ_ERROR"])
def test_trouble_that_is_over_is_forgotten(database: Database, code: str) -> None:
    register(database, Examined(source("a"), None, code))
    counts = register(database, film("2.25.1", "a"))
    assert counts.registered == 1
    arrival, job = one(database, tables.arrival), one(database, tables.job)
    assert (arrival.state, arrival.code, arrival.current) == ("instance", None, True)
    assert job.arrival_id == arrival.id
    assert len(rows(database, tables.submission_arrival)) == 2


def test_trouble_that_stays_is_told_again_in_its_one_row(database: Database) -> None:
    file = Examined(source("a"), None, "NO_PERMISSION")
    register(database, file)
    assert register(database, file).rejected == Counter({"NO_PERMISSION": 1})
    assert len(rows(database, tables.arrival)) == 1


def test_unreadable_at_first_and_then_not_dicom(database: Database) -> None:
    register(database, Examined(source("a"), None, "NO_PERMISSION"))
    counts = register(database, Examined(source("a"), None, "NOT_DICOM"))
    assert counts.not_dicom == 1 and one(database, tables.arrival).state == "not_dicom"


def test_a_damaged_file_is_not_looked_at_again(database: Database) -> None:
    file = Examined(source("a"), None, "BAD_HEADER")
    register(database, file)
    assert register(database, file).seen_before == 1


def test_resubmission_raises_priority_and_never_lowers_it(database: Database) -> None:
    files = [film("2.25.1", "a"), film("2.25.1", "b")]
    register(database, *files, lane=Lane.ARCHIVE)
    register(database, *files, lane=Lane.ICU)
    register(database, *files, lane=Lane.ARCHIVE)
    assert [job.priority for job in rows(database, tables.job)] == [PRIORITY["icu"]] * 2


def test_another_file_of_the_film_hurries_the_film(database: Database) -> None:
    register(database, film("2.25.1", "a"), lane=Lane.ARCHIVE)
    register(database, film("2.25.1", "b"), lane=Lane.ICU)
    assert {job.priority for job in rows(database, tables.job)} == {PRIORITY["icu"]}


def end(ledger: Ledger, error: FilmError | None = None) -> Claim:
    claim = ledger.must_claim()
    outcomes = [
        Outcome(job, error=error) if error else Outcome(job, result=full_result(f"film {job.instance_id}"))
        for job in claim.jobs
    ]
    finish(ledger.database, claim, outcomes, settings=ledger.settings)
    return claim


def test_replaying_an_archive_changes_nothing(ledger: Ledger) -> None:
    make_champion(ledger.database, ledger.bundle_id)
    register(ledger.database, film("2.25.1", "a"))
    end(ledger)
    counts = register(ledger.database, film("2.25.1", "a"))
    assert (counts.seen_before, counts.reopened) == (1, 0)
    assert states(ledger.database, tables.job) == Counter(done=1)


def test_a_new_bundle_is_a_new_job(ledger: Ledger) -> None:
    make_champion(ledger.database, ledger.bundle_id)
    register(ledger.database, film("2.25.1", "a"))
    end(ledger)
    make_champion(ledger.database, add_bundle(ledger.database, version="2"))
    counts = register(ledger.database, film("2.25.1", "a"), lane=Lane.ICU)
    again = register(ledger.database, film("2.25.1", "a"))
    assert (counts.reopened, counts.work, again.reopened) == (1, 1, 0)
    job = rows(ledger.database, tables.job)[-1]
    assert (job.state, job.priority, job.bundle_id) == ("ready", PRIORITY["icu"], None)
    assert job.arrival_id == one(ledger.database, tables.arrival).id


def test_a_new_revision_is_a_new_job(ledger: Ledger) -> None:
    make_champion(ledger.database, ledger.bundle_id)
    register(ledger.database, film("2.25.1", "a"))
    end(ledger)
    with ledger.database.write() as connection:
        connection.execute(update(tables.job).values(revision=0))
    assert register(ledger.database, film("2.25.1", "a")).reopened == 1


def test_a_shadow_result_is_not_a_result(ledger: Ledger) -> None:
    make_champion(ledger.database, ledger.bundle_id)
    register(ledger.database, film("2.25.1", "a"))
    end(ledger)
    candidate = add_bundle(ledger.database, version="2")
    with ledger.database.write() as connection:
        connection.execute(update(tables.job).values(bundle_id=candidate, published=False))
    assert register(ledger.database, film("2.25.1", "a")).reopened == 0


def test_a_failed_film_is_left_to_retry(ledger: Ledger) -> None:
    make_champion(ledger.database, ledger.bundle_id)
    register(ledger.database, film("2.25.1", "a"))
    end(ledger, FilmError("DECODE_FAILED"))
    counts = register(ledger.database, film("2.25.1", "a"))
    assert (counts.failed_before, counts.reopened) == (1, 0)
    make_champion(ledger.database, add_bundle(ledger.database, version="2"))
    assert register(ledger.database, film("2.25.1", "a")).reopened == 0
    assert states(ledger.database, tables.job) == Counter(failed=1)


def test_an_ineligible_header_stays_ineligible_for_every_bundle(ledger: Ledger) -> None:
    make_champion(ledger.database, ledger.bundle_id)
    register(ledger.database, film("2.25.1", "a", **MULTI))
    make_champion(ledger.database, add_bundle(ledger.database, version="2"))
    assert register(ledger.database, film("2.25.1", "a", **MULTI)).reopened == 0


def test_an_alias_stands_for_the_film_it_repeats(ledger: Ledger) -> None:
    make_champion(ledger.database, ledger.bundle_id)
    register(ledger.database, film("2.25.1", "a"), film("2.25.2", "b"))
    claim = ledger.must_claim()
    outcomes = [Outcome(job, result=full_result("the same")) for job in claim.jobs]
    finish(ledger.database, claim, outcomes, settings=ledger.settings)
    assert states(ledger.database, tables.arrival) == Counter(instance=1, alias=1)
    make_champion(ledger.database, add_bundle(ledger.database, version="2"))
    assert register(ledger.database, film("2.25.2", "b")).reopened == 1
    opened = [job for job in rows(ledger.database, tables.job) if job.state == "ready"]
    assert [job.instance_id for job in opened] == [claim.jobs[0].instance_id]
    register(ledger.database, film("2.25.2", "b"), lane=Lane.ICU)
    assert {job.priority for job in rows(ledger.database, tables.job) if job.state == "ready"} == {PRIORITY["icu"]}


def test_a_header_the_database_refuses_is_rejected_alone(database: Database) -> None:
    files = [film(f"2.25.{number}", f"f{number}") for number in range(9)]
    files[4] = film("2.25.4", "f4", age_days=10**6)
    counts = register(database, *files)
    assert (counts.registered, counts.rejected) == (8, Counter({"BAD_VALUE": 1}))
    assert arrival_at(database, "f4").state == "rejected"


def test_an_upgrade_meanwhile_is_not_blamed_on_the_headers(database: Database) -> None:
    files = [film(f"2.25.{number}", f"f{number}") for number in range(3)]
    with database.write() as connection:
        connection.execute(text("ALTER TABLE instance ADD COLUMN place TEXT CHECK (place IS NOT NULL)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseVersionError, match="newer Carina"):
        register(database, *files)
    assert rows(database, tables.arrival) == []


@pytest.mark.parametrize("written", ["a\0b", "x" * 500, "\ud800", "Ä" * 100])
def test_text_no_database_takes_is_made_to_fit(database: Database, written: str) -> None:
    register(database, film("2.25.1", "a", station_name=written, patient_id=written))
    station = one(database, tables.instance).station
    assert len(station) <= 64 and "\0" not in station
    station.encode("utf-8")


def test_a_chunk_is_one_transaction(database: Database) -> None:
    commits: list[int] = []
    target = registrar(database)
    event.listen(database._writer, "commit", lambda _: commits.append(1))
    target.register([film(f"2.25.{number % 40}", f"f{number}") for number in range(100)])
    assert len(commits) == 1


def test_a_chunk_costs_a_fixed_number_of_statements(database: Database) -> None:
    def cost(count: int, start: int) -> int:
        statements: list[str] = []

        def note(*arguments: object) -> None:
            statements.append(str(arguments[2]))

        target = registrar(database)
        event.listen(database._writer, "before_cursor_execute", note)
        target.register([film(f"2.25.{number}", f"f{number}") for number in range(start, start + count)])
        event.remove(database._writer, "before_cursor_execute", note)
        return len(statements)

    assert cost(2, 0) == cost(500, 1000)


FILES = st.lists(
    st.tuples(
        st.integers(1, 6),  # UID
        st.integers(1, 8),  # path
        st.sampled_from(["film", "film", "film", "frames", "bad", "closed", "text"]),
        st.integers(1, 2),  # modification time
    ),
    max_size=25,
)


def examined(uid: int, path: int, kind: str, modified: int) -> Examined:
    place = source(f"f{path}", modified_ns=modified)
    if kind == "film":
        return Examined(place, header(f"2.25.{uid}"))
    if kind == "frames":
        return Examined(place, header(f"2.25.{uid}", **MULTI))
    return Examined(place, None, {"bad": "BAD_HEADER", "closed": "NO_PERMISSION", "text": "NOT_DICOM"}[kind])


def chunks(files: Sequence[Examined], sizes: Sequence[int]) -> list[list[Examined]]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(list(files[start : start + size]))
        start += size
    return [*pieces, list(files[start:])]


@given(FILES, st.lists(st.integers(1, 8), max_size=4), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_any_files_in_any_chunks_any_number_of_times(
    template: Path, drawn: list[tuple[int, int, str, int]], sizes: list[int], times: int
) -> None:
    # One file is one content: what a place holds at a time does not change between looks.
    content = {(path, modified): (uid, kind) for uid, path, kind, modified in drawn}
    files = [
        examined(content[path, modified][0], path, content[path, modified][1], modified)
        for _, path, _, modified in drawn
    ]
    with tempfile.TemporaryDirectory() as folder:
        database = copy_of(template, Path(folder))
        for number in range(times):
            target, total = registrar(database, [Lane.ARCHIVE, Lane.ICU][number % 2]), Counts()
            for piece in chunks(files, sizes):
                total.add(target.register(piece))
            assert total.files == len(files)
            submission = rows(database, tables.submission)[-1]
            assert (submission.files_seen, submission.not_dicom) == (len(files), total.not_dicom)
            distinct = {file.source for file in files if file.code != "NOT_DICOM"}
            with database.read() as connection:
                counts = queries.submission_counts(connection, submission.id)
            assert counts.files - counts.not_dicom == len(distinct)
            assert len(rows(database, tables.arrival)) == len(rows(database, tables.identity)) == len(distinct)
        films = {file.header.sop_instance_uid for file in files if file.header is not None}
        assert len(rows(database, tables.instance)) == len(films)
        assert sum(row.current for row in rows(database, tables.arrival)) == len(films)
        jobs = rows(database, tables.job)
        assert Counter(job.instance_id for job in jobs if job.kind == "process") == dict.fromkeys(
            [row.id for row in rows(database, tables.instance)], 1
        )
        assert sum(job.kind == "verify" for job in jobs) == states(database, tables.arrival)["unverified"]
        database.close()
