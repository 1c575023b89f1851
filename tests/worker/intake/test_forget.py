from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from intake_rows import arrival_at, film, one, register, rows, source, states, work, write_film
from ledger_rows import Ledger
from sqlalchemy import insert, select, update

from schema import keys, tables
from schema.database import Database
from schema.types import database_now
from worker.errors import CarinaError
from worker.intake import forget as module
from worker.intake.conflicts import accept
from worker.intake.forget import Forgotten, InWorkError, forget, patient_keys
from worker.intake.register import Examined, Registrar
from worker.intake.scan import open_submission
from worker.queue.invariants import check_invariants
from worker.queue.outcomes import SourceReference
from worker.settings import Settings, site_key


def add(ledger: Ledger, *files: Examined) -> None:
    """Register films under the site's own key."""
    submission = open_submission(ledger.database, "archive")
    Registrar(ledger.database, site_key(ledger.settings), submission, "archive").register(files)


def forget_patient(ledger: Ledger, patient: str, **options: Any) -> Forgotten:
    found = patient_keys(ledger.database, ledger.settings, patient)
    return forget(ledger.database, ledger.settings, found, actor="an operator", **options)


def counts(database: Database) -> dict[str, int]:
    return {table.name: len(rows(database, table)) for table in tables.metadata.sorted_tables}


def everything(database: Database) -> str:
    return "".join(str(tuple(row)) for table in tables.metadata.sorted_tables for row in rows(database, table))


def add_label(database: Database, instance_id: int) -> None:
    with database.write() as connection:
        connection.execute(
            insert(tables.label).values(
                instance_id=instance_id, finding="pneumonia", value="present", reader="r1", source="random",
                labelled_at=database_now(),
            )
        )  # fmt: skip


def add_delivery(database: Database, job_id: int, **changes: Any) -> None:
    with database.write() as connection:
        destination = connection.scalar(select(tables.delivery_destination.c.id)) or connection.execute(
            insert(tables.delivery_destination).values(name="pacs", kind="dicom", configuration={})
        ).inserted_primary_key[0]  # fmt: skip
        connection.execute(
            insert(tables.delivery).values(
                destination_id=destination, job_id=job_id, output="report", revision=1, priority=0, **changes
            )
        )


def job_of(database: Database, path: str) -> Any:
    return one(database, tables.job, tables.job.c.arrival_id == arrival_at(database, path).id)


@pytest.fixture
def night(ledger: Ledger) -> Ledger:
    """Two films of P1, one of them twice, and one film of P2; all done, labelled and to be delivered."""
    add(
        ledger,
        film("2.25.1001", "one/a"), film("2.25.1002", "one/b"), film("2.25.1001", "one/c"),
        film("2.25.2001", "two/d", patient_id="P2", study_instance_uid="2.25.20"),
    )  # fmt: skip
    work(ledger, {"one/a": "A", "one/b": "B", "one/c": "A", "two/d": "D"})
    for path in ("one/a", "two/d"):
        add_label(ledger.database, arrival_at(ledger.database, path).instance_id)
        add_delivery(ledger.database, job_of(ledger.database, path).id)
    return ledger


def test_all_of_a_patient_goes_and_nothing_of_others(night: Ledger) -> None:
    database = night.database
    alone = counts(database)
    report = forget_patient(night, "P1")
    left = counts(database)
    assert (report.rows["instance"], report.rows["arrival"], report.rows["label"], report.rows["delivery"]) == (
        2,
        3,
        1,
        1,
    )
    for name in ("instance", "arrival", "identity", "instance_identity", "segmentation", "label", "delivery"):
        assert left[name] == 1, name
    for name, number in report.rows.items():
        assert left[name] == alone[name] - number, name
    assert left["job"] == 1 and left["audit_event"] == 1 and check_invariants(database) == []
    assert one(database, tables.instance_identity).patient_id == "P2"


def test_every_table_that_refers_to_a_film_is_reached(night: Ledger) -> None:
    report = forget_patient(night, "P1", dry_run=True)
    reached, referring = set(report.rows), {"instance"}
    for table in tables.metadata.sorted_tables:
        if any(key.column.table.name in referring for key in table.foreign_keys):
            referring.add(table.name)
    assert {"attempt", "heatmap", "label", "delivery", "submission_arrival"} <= reached == referring


def test_what_stays_is_counts(night: Ledger) -> None:
    (known,) = patient_keys(night.database, night.settings, "P1")
    forget_patient(night, "P1")
    audit = one(night.database, tables.audit_event)
    assert (audit.actor, audit.action, audit.subject) == ("an operator", "patient forgotten", "")
    assert audit.detail["rows"]["instance"] == 2 and audit.detail["files_elsewhere"] == 3
    text = everything(night.database)
    assert "2.25.2001" in text
    assert not any(trace in text for trace in (known, "2.25.1001", "2.25.1002", "one/", "'P1'"))


def test_on_sqlite_the_files_hold_nothing_either(night: Ledger) -> None:
    if night.database.dialect != "sqlite":
        pytest.skip("PostgreSQL's files are its own affair")
    (known,) = patient_keys(night.database, night.settings, "P1")
    forget_patient(night, "P1")
    file = Path(str(night.database.url.database))
    content = b"".join(part.read_bytes() for part in file.parent.glob(file.name + "*"))
    assert b"two/d" in content
    assert not any(trace.encode() in content for trace in (known, "2.25.1001", "one/b"))


def test_again_it_finds_nothing_and_says_nothing(night: Ledger) -> None:
    forget_patient(night, "P1")
    before = counts(night.database)
    assert forget_patient(night, "P1").rows["instance"] == 0
    assert counts(night.database) == before


def test_a_dry_run_says_the_same_and_changes_nothing(night: Ledger) -> None:
    before = everything(night.database)
    said = forget_patient(night, "P1", dry_run=True)
    assert everything(night.database) == before and said.elsewhere == ["/one/a", "/one/b", "/one/c"]
    assert said.counts() == forget_patient(night, "P1").counts()


def test_a_film_in_work_is_waited_for_or_nothing_happens(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    add(ledger, film("2.25.1", "a"))
    claim = ledger.must_claim()
    before = everything(ledger.database)
    with pytest.raises(InWorkError, match="being worked on"):
        forget_patient(ledger, "P1")
    assert everything(ledger.database) == before

    def finish_meanwhile(_seconds: float) -> None:
        from worker.queue.ledger import release

        release(ledger.database, claim.lease_id)

    monkeypatch.setattr(module.time, "sleep", finish_meanwhile)
    assert forget_patient(ledger, "P1", wait_seconds=60).rows["instance"] == 1
    assert counts(ledger.database)["job"] == 0


def test_a_result_that_is_being_sent_is_in_work_too(night: Ledger) -> None:
    with night.database.write() as connection:
        connection.execute(
            update(tables.delivery).values(state="leased", lease_id="x", leased_until=database_now(60.0))
        )
    with pytest.raises(InWorkError):
        forget_patient(night, "P1")
    assert counts(night.database)["instance"] == 3


def test_films_of_others_that_were_aliases_speak_for_themselves(ledger: Ledger) -> None:
    database = ledger.database
    add(
        ledger,
        film("2.25.1", "a"), film("2.25.2", "b", patient_id="P2"), film("2.25.3", "c", patient_id="P3"),
        film("2.25.4", "d"),
    )  # fmt: skip
    pictures = dict.fromkeys("abcd", "same")
    work(ledger, pictures)
    assert states(database, tables.arrival) == {"instance": 1, "alias": 3}
    report = forget_patient(ledger, "P1")
    second, third = rows(database, tables.instance)
    assert report.released == 1 and (second.alias_of, third.alias_of) == (None, second.id)
    assert states(database, tables.job)["ready"] == 1
    work(ledger, pictures)
    assert check_invariants(database) == [] and len(rows(database, tables.segmentation)) == 1
    assert states(database, tables.arrival) == {"instance": 1, "alias": 1}
    assert [row.held_out for row in rows(database, tables.instance)] == [
        keys.is_held_out(row.patient_key) for row in rows(database, tables.instance)
    ]


def test_a_patient_who_is_only_an_alias_leaves_the_film_as_it_is(ledger: Ledger) -> None:
    add(ledger, film("2.25.1", "a", patient_id="P2"), film("2.25.2", "b"))
    work(ledger, {"a": "same", "b": "same"})
    assert forget_patient(ledger, "P1").released == 0
    (left,) = rows(ledger.database, tables.instance)
    assert left.content_hash is not None and states(ledger.database, tables.job) == {"done": 1}


def test_earlier_audit_events_point_at_nothing(ledger: Ledger) -> None:
    add(ledger, film("2.25.1", "a"), film("2.25.1", "b"), film("2.25.2", "c", patient_id="P2"))
    work(ledger, {"a": "A", "b": "B", "c": "C"})
    accept(ledger.database, arrival_at(ledger.database, "b").id, "somebody")
    forget_patient(ledger, "P1")
    accepted, forgotten = rows(ledger.database, tables.audit_event)
    assert (accepted.subject, accepted.detail, accepted.actor) == ("instance", {}, "somebody")
    assert forgotten.action == "patient forgotten"


def received(settings: Settings, uid: str, name: str) -> Examined:
    """A film in the spool."""
    from worker.intake.folders import FoundFile
    from worker.intake.headers import HeaderReader

    path = write_film(settings.spool / "films" / name, uid)
    status = path.stat()
    reference = SourceReference("spool", f"films/{name}", "", status.st_size, status.st_mtime_ns)
    with HeaderReader() as reader:
        (examined,) = reader.read([FoundFile(str(path), reference, status.st_ctime_ns)])
    return examined


def test_received_files_are_deleted_and_submitted_ones_are_not(ledger: Ledger, tmp_path: Path) -> None:
    for folder in ("incoming", "films"):
        (ledger.settings.spool / folder).mkdir(parents=True)
    submitted = write_film(tmp_path / "kept.dcm", "2.25.2")
    kept = submitted.stat()
    add(
        ledger,
        received(ledger.settings, "2.25.1", "a.dcm"),
        Examined(
            SourceReference("local", str(submitted).lstrip("/"), "", kept.st_size, kept.st_mtime_ns),
            film("2.25.2", "x", patient_id="").header,
        ),
    )
    keys_found = sorted({row.patient_key for row in rows(ledger.database, tables.instance)})
    report = forget(ledger.database, ledger.settings, keys_found, actor="x")
    assert (report.files, report.elsewhere) == (1, [str(submitted)])
    assert submitted.exists() and not (ledger.settings.spool / "films" / "a.dcm").exists()


def test_the_spool_of_another_machine_is_said(ledger: Ledger) -> None:
    add(ledger, Examined(SourceReference("spool", "films/a.dcm", "", 1, 1), film("2.25.1", "x").header))
    with pytest.raises(CarinaError, match="another machine's spool"):
        forget_patient(ledger, "P1")
    assert counts(ledger.database)["instance"] == 1


def test_several_issuers_must_be_told_apart(ledger: Ledger) -> None:
    add(
        ledger,
        film("2.25.1", "a", issuer_of_patient_id="north"),
        film("2.25.2", "b", issuer_of_patient_id="south"),
    )
    with pytest.raises(CarinaError, match=r"by 2 issuers\. Name one with --issuer"):
        patient_keys(ledger.database, ledger.settings, "P1")
    forget(ledger.database, ledger.settings, patient_keys(ledger.database, ledger.settings, "P1", "south"), actor="x")
    assert one(ledger.database, tables.instance_identity).issuer_of_patient_id == "north"


def test_a_patient_is_found_after_identity_was_dropped(ledger: Ledger) -> None:
    add(ledger, film("2.25.1", "a"))
    with ledger.database.write() as connection:
        connection.execute(tables.instance_identity.delete())
    assert forget_patient(ledger, "P1").rows["instance"] == 1


def test_no_id_is_nobody(ledger: Ledger) -> None:
    add(ledger, film("2.25.1", "a", patient_id=""))
    assert patient_keys(ledger.database, ledger.settings, "") == []


def test_a_table_nobody_thought_of_is_looked_through(night: Ledger) -> None:
    (known,) = patient_keys(night.database, night.settings, "P1")
    with night.database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE notes (words TEXT)")
        connection.exec_driver_sql(f"INSERT INTO notes VALUES ('about {known}')")
    with pytest.raises(CarinaError, match="left in the table notes"):
        forget_patient(night, "P1")


def test_registering_goes_on_afterwards(night: Ledger) -> None:
    forget_patient(night, "P1")
    register(night.database, Examined(source("one/a"), film("2.25.1001", "one/a").header))
    work(night, {"one/a": "A"})
    assert check_invariants(night.database) == []
