from __future__ import annotations

import os
import secrets
import threading
import zipfile
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from intake_rows import film_bytes, make_champion, one, rows, states, work, write_film
from ledger_rows import Ledger, add_bundle, full_result
from sqlalchemy import func, select, update

from schema import queries, tables
from schema.database import Database
from schema.tables import PRIORITY, Lane
from worker.errors import CarinaError
from worker.intake import scan as scan_module
from worker.intake.scan import LeftOut, SubmissionReport, open_submission, submit
from worker.intake.sources import resolve
from worker.queue.finish import finish
from worker.queue.outcomes import Outcome, SourceReference
from worker.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as it comes: films, rubbish, an index, an archive, a loop."""
    place = tmp_path / "in"
    (place / "sub").mkdir(parents=True)
    write_film(place / "good1", "2.25.1")
    write_film(place / "sub" / "good2.dcm", "2.25.2")
    write_film(place / "sub" / "other picture", "2.25.1", level=7)
    write_film(place / "frames", "2.25.3", NumberOfFrames=4)
    write_film(place / "ct", "2.25.4", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    write_film(place / "no class", "2.25.5", SOPClassUID=None)
    write_film(place / "coming.part", "2.25.6")
    (place / "truncated").write_bytes(film_bytes("2.25.7")[:401])
    (place / "empty").write_bytes(b"")
    (place / "README").write_text("What this is")
    (place / "notes.txt").write_text("x" * 1000)
    write_film(place / "DICOMDIR", "2.25.8", SOPClassUID="1.2.840.10008.1.3.10")
    (place / "gone").symlink_to(place / "nowhere")
    (place / "sub" / "loop").symlink_to(place)
    os.mkfifo(place / "fifo")
    with zipfile.ZipFile(place / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/good3", film_bytes("2.25.9"))
        archive.writestr("x/copy", film_bytes("2.25.2"))
        archive.writestr("README", "text")
    (place / "bad.zip").write_bytes(b"PK\x03\x04 nonsense")
    return place


EXPECTED: dict[str, Any] = {
    "registered": 3,
    "unverified": 2,
    "ineligible": {"MULTI_FRAME": 1, "NOT_A_RADIOGRAPH": 1},
    "rejected": {
        "MISSING_TAG": 1, "TRUNCATED_HEADER": 1, "EMPTY_FILE": 1, "SOURCE_MISSING": 1, "DIRECTORY_LOOP": 1,
        "BAD_ARCHIVE": 1,
    },
    "not_dicom": 4,
    "left_out": {"partial": 1, "special": 1},
    "seen_before": 0,
    "complete": True,
}  # fmt: skip


def picked(report: SubmissionReport) -> dict[str, Any]:
    return {name: value for name, value in report.to_json().items() if name in EXPECTED}


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_everything_in_a_folder_ends_somewhere(
    database: Database, settings: Settings, folder: Path, chunk: int
) -> None:
    report = submit(database, replace(settings, scan_chunk=chunk), [folder])
    assert picked(report) == EXPECTED
    assert states(database, tables.arrival) == Counter(instance=5, unverified=2, rejected=6)
    submission = one(database, tables.submission)
    assert submission.scan_complete and submission.scanned_at is not None
    assert (submission.files_seen, submission.not_dicom) == (report.files_seen, 4)
    assert report.submission_id == submission.id
    with database.read() as connection:
        counts = queries.submission_counts(connection, submission.id)
    assert counts.files == report.files_seen


@pytest.mark.parametrize("chunk", [1, 1000])
def test_a_dry_run_says_the_same_and_writes_nothing(
    database: Database, settings: Settings, folder: Path, chunk: int
) -> None:
    report = submit(database, replace(settings, scan_chunk=chunk), [folder], dry_run=True)
    assert picked(report) == EXPECTED and report.submission_id is None
    for table in tables.metadata.sorted_tables:
        assert not rows(database, table) or table is tables.bundle
    submit(database, settings, [folder])
    again = submit(database, settings, [folder], dry_run=True)
    real = submit(database, settings, [folder])
    assert picked(again) == picked(real)
    assert again.counts.seen_before == 5 + 2 + 5


def test_submitting_again_adds_nothing(database: Database, settings: Settings, folder: Path) -> None:
    submit(database, settings, [folder])
    before = {table.name: len(rows(database, table)) for table in (tables.arrival, tables.instance, tables.job)}
    report = submit(database, settings, [folder], lane=Lane.ICU)
    # What was not there is looked for again; all else is skipped unread.
    assert (report.counts.registered, report.counts.rejected) == (0, Counter(SOURCE_MISSING=1))
    assert before == {table.name: len(rows(database, table)) for table in (tables.arrival, tables.instance, tables.job)}
    ready = [job for job in rows(database, tables.job) if job.state == "ready"]
    assert {job.priority for job in ready} == {PRIORITY["icu"]}


def test_what_is_known_is_not_opened(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_film(tmp_path / "a", "2.25.1")
    submit(database, settings, [tmp_path])
    monkeypatch.setattr("worker.intake.headers.read_header", lambda *_: pytest.fail("a known file was opened"))
    assert submit(database, settings, [tmp_path]).counts.seen_before == 1


def test_the_worker_finds_every_film(database: Database, settings: Settings, tmp_path: Path) -> None:
    names = [b"plain", b"\xff\xfe\x80", b"100%.dcm", "Röntgen".encode()]
    for number, name in enumerate(names, start=1):
        write_film(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)), f"2.25.{number}")
    submit(database, settings, [tmp_path])
    found = {
        os.fsencode(resolve(settings, SourceReference(row.root, row.path, row.member, row.size, row.modified_ns)).name)
        for row in rows(database, tables.identity)
    }
    assert found == set(names)


def test_the_longest_path_is_registered_and_worked_through(ledger: Ledger, settings: Settings, tmp_path: Path) -> None:
    """4,000 bytes of digits that no index compresses, and a member of an archive with as long a name."""
    database, place = ledger.database, tmp_path
    while len(str(place)) < 3800:
        place /= secrets.token_hex(60)
    place.mkdir(parents=True)
    place /= secrets.token_hex(100)[: 4000 - len(str(place)) - 1]
    write_film(place, "2.25.1")
    member = "/".join(secrets.token_hex(60) for _ in range(60))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, film_bytes("2.25.2"))
    assert len(os.fsencode(place)) == 4000
    assert submit(database, settings, [tmp_path]).counts.registered == 2
    assert submit(database, settings, [tmp_path]).counts.seen_before == 2
    claimed = ledger.must_claim()
    for job in claimed.jobs:
        assert resolve(settings, job.source) in (place, tmp_path / "a.zip")
    work_of = [Outcome(job, result=full_result(job.source.member)) for job in claimed.jobs]
    assert set(finish(database, claimed, work_of, settings=settings).states.values()) == {"done"}


def test_an_interrupted_submission_goes_on_where_it_was(database: Database, settings: Settings, tmp_path: Path) -> None:
    for number in range(1, 31):
        write_film(tmp_path / str(number), f"2.25.{number}")
    small = replace(settings, scan_chunk=4)
    stop = threading.Event()

    def interrupt(report: SubmissionReport) -> None:
        if report.files_seen >= 12:
            stop.set()

    first = submit(database, small, [tmp_path], stop=stop, progress=interrupt)
    assert not first.complete and first.counts.registered == 12
    assert not one(database, tables.submission).scan_complete
    assert any(name == "interrupted" for name, _, _ in first.lines())
    second = submit(database, small, [tmp_path])
    assert (second.counts.seen_before, second.counts.registered, second.complete) == (12, 18, True)


def test_a_crash_in_the_middle_keeps_whole_chunks(database: Database, settings: Settings, tmp_path: Path) -> None:
    for number in range(1, 21):
        write_film(tmp_path / str(number), f"2.25.{number}")

    def crash(report: SubmissionReport) -> None:
        if report.files_seen >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(database, replace(settings, scan_chunk=4), [tmp_path], progress=crash)
    assert one(database, tables.submission).files_seen == len(rows(database, tables.arrival)) == 8
    assert submit(database, settings, [tmp_path]).counts.registered == 12


def test_registration_pauses_while_too_many_wait(database: Database, settings: Settings, tmp_path: Path) -> None:
    for number in range(1, 13):
        write_film(tmp_path / str(number), f"2.25.{number}")
    tight = replace(settings, scan_chunk=2, backlog_high=4, backlog_low=1, poll_seconds=0.01)
    pauses: list[str] = []

    def watch(report: SubmissionReport) -> None:
        if report.paused:
            pauses.append(report.paused)
            with database.write() as connection:
                connection.execute(update(tables.job).values(state="cancelled"))

    report = submit(database, tight, [tmp_path], progress=watch)
    assert report.counts.registered == 12 and not report.paused
    assert len(pauses) == 2 and "4 films wait" in pauses[0]


def test_a_pause_can_be_ended(database: Database, settings: Settings, tmp_path: Path) -> None:
    for number in range(1, 5):
        write_film(tmp_path / str(number), f"2.25.{number}")
    stop = threading.Event()
    tight = replace(settings, scan_chunk=1, backlog_high=1, backlog_low=0, poll_seconds=0.01)

    def end(report: SubmissionReport) -> None:
        if report.paused:
            stop.set()

    report = submit(database, tight, [tmp_path], stop=stop, progress=end)
    assert not report.complete and report.counts.registered == 1


def test_a_submission_may_be_begun_by_the_caller(database: Database, settings: Settings, tmp_path: Path) -> None:
    number = open_submission(database, Lane.ICU)
    write_film(tmp_path / "a", "2.25.1")
    report = submit(database, settings, [tmp_path], lane=Lane.ICU, submission_id=number)
    assert report.submission_id == number and len(rows(database, tables.submission)) == 1
    with database.read() as connection:
        assert queries.open_films(connection, number) == 1


def test_wrong_paths_are_refused_before_anything_is_written(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(CarinaError, match="Path 2 of 2") as caught:
        submit(database, settings, [tmp_path, tmp_path / "Doe^John"])
    assert "Doe" not in str(caught.value)
    with pytest.raises(CarinaError, match="CARINA_ROOTS"):
        submit(database, replace(settings, roots="data=/nowhere"), [tmp_path])
    assert not rows(database, tables.submission)


def test_the_estimate_comes_from_recent_films(ledger: Ledger, tmp_path: Path) -> None:
    database = ledger.database
    for number in range(1, 41):
        write_film(tmp_path / str(number), f"2.25.{number}")
    before = submit(database, ledger.settings, [tmp_path])
    assert before.seconds_each == 1.5 and "assumed" in before.estimate_basis
    assert before.estimated_hours == pytest.approx(40 * 1.5 / 3600)
    work(ledger, {row.path: row.path for row in rows(database, tables.identity)})
    with database.write() as connection:
        for number in range(1, 40):
            second = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=3 * number)
            connection.execute(update(tables.job).where(tables.job.c.id == number).values(finished_at=second))
        # Nothing was to be done for a day: that is no slowness.
        late = datetime(2026, 1, 2, tzinfo=UTC)
        connection.execute(update(tables.job).where(tables.job.c.id == 40).values(finished_at=late))
    later = submit(database, ledger.settings, [tmp_path], dry_run=True)
    assert later.seconds_each == pytest.approx((38 * 3 + 60) / 39)
    assert "last 40 films" in later.estimate_basis


def test_a_dry_run_foresees_a_new_bundle(ledger: Ledger, tmp_path: Path) -> None:
    write_film(tmp_path / "a", "2.25.1")
    make_champion(ledger.database)
    submit(ledger.database, ledger.settings, [tmp_path])
    work(ledger, {row.path: "A" for row in rows(ledger.database, tables.identity)})
    make_champion(ledger.database, add_bundle(ledger.database, version="2"))
    report = submit(ledger.database, ledger.settings, [tmp_path], dry_run=True)
    assert (report.counts.seen_before, report.counts.reopened, report.counts.work) == (1, 1, 1)
    assert any("new bundle" in remark for _, _, remark in report.lines())


def test_the_report_names_every_way_a_file_can_end(database: Database, settings: Settings, folder: Path) -> None:
    lines = {
        (name, remark.partition(":")[0]): number
        for name, number, remark in submit(database, settings, [folder]).lines()
    }
    assert lines["ineligible", "MULTI_FRAME"] == lines["rejected", "EMPTY_FILE"] == 1
    assert lines["not DICOM", "ignored"] == 4 and lines["left out", LeftOut.PARTIAL.value] == 1


def test_headers_are_read_ahead_by_one_chunk_only(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory stays flat: no more than two chunks are ever in hand."""
    for number in range(1, 41):
        write_film(tmp_path / str(number), f"2.25.{number}")
    taken = 0
    real = scan_module.scan

    def counting(*arguments: Any) -> Any:
        nonlocal taken
        for item in real(*arguments):
            taken += 1
            yield item

    monkeypatch.setattr(scan_module, "scan", counting)
    ahead: list[int] = []
    submit(
        database,
        replace(settings, scan_chunk=5),
        [tmp_path],
        progress=lambda report: ahead.append(taken - report.files_seen),
    )
    assert max(ahead) <= 5 and taken == 40
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.instance)) == 40
