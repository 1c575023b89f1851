from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import date, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from dicom_files import chest_pixels, make_dataset
from ledger_rows import Ledger
from server_process import free_port
from sqlalchemy import func, select
from web_archive import Answer, WebArchive, is_retrieval, multipart

from schema import tables
from worker.errors import CarinaError
from worker.intake import pull as pull_module
from worker.intake.pull import Pull, PullReport
from worker.intake.pull_selection import Selection, parse_hours
from worker.peers.configuration import WebPeer
from worker.peers.trouble import PeerError

DAY = Selection(first=date(2026, 3, 1), last=date(2026, 3, 1))


def film(number: int, **attributes: Any) -> bytes:
    """A film in a study of its own."""
    values = {"StudyDate": "20260301", "AccessionNumber": f"A{number}", "PatientID": "SECRET-1", **attributes}
    stream = BytesIO()
    make_dataset(chest_pixels(40, 30, seed=number), **values).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_module, "_FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def pull(ledger: Ledger) -> Callable[..., PullReport]:
    def run(archive: WebArchive | str, selection: Selection = DAY, **options: Any) -> PullReport:
        url = archive if isinstance(archive, str) else archive.url
        return Pull(ledger.database, ledger.settings, WebPeer(url, timeout_seconds=2.0), **options).run(selection)

    return run


def spooled(ledger: Ledger) -> list[Path]:
    return sorted((ledger.settings.spool / "films").rglob("*.dcm"))


def count(ledger: Ledger, table: str) -> int:
    with ledger.database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(tables.metadata.tables[table])) or 0)


def test_films_of_a_day_come_as_the_archive_has_them_and_wait_for_the_workers(
    ledger: Ledger, pull: Callable[..., PullReport]
) -> None:
    wanted = [film(number) for number in range(3)]
    others = [film(8, Modality="CT"), film(9, StudyDate="20260302")]
    announced: list[int] = []
    with WebArchive([*wanted, *others]) as archive:
        report = pull(archive, announce=announced.append)
    assert {file.read_bytes() for file in spooled(ledger)} == set(wanted)
    assert (report.studies, report.pulled, report.known, report.complete) == (4, 3, 0, True)
    assert report.bytes == sum(map(len, wanted))
    assert report.counts.registered == sum(announced) == 3
    with ledger.database.read() as connection:
        lanes = set(connection.execute(select(tables.job.c.state, tables.job.c.priority)))
        roots = set(connection.scalars(select(tables.identity.c.root)))
        scanned = connection.scalars(select(tables.submission.c.scan_complete)).all()
    assert (lanes, roots, scanned) == ({("ready", 10)}, {"spool"}, [True])
    claimed = ledger.must_claim()
    assert len(claimed.jobs) == 3


def test_what_is_registered_is_not_fetched_again(ledger: Ledger, pull: Callable[..., PullReport]) -> None:
    films = [film(number) for number in range(3)]
    with WebArchive(films[:2]) as archive:
        pull(archive)
        archive.films = films
        report = pull(archive)
        assert (report.known, report.pulled) == (2, 1)
        assert archive.asked["GET 6"] == 3
        assert pull(archive).submission_id is None
    assert count(ledger, "arrival") == 3


def test_by_accession_number_even_where_the_archive_heeds_no_keys(
    ledger: Ledger, pull: Callable[..., PullReport]
) -> None:
    with WebArchive([film(number) for number in range(4)], heeds_matching=False) as archive:
        report = pull(archive, Selection(("A1", "A3", "A7")))
    assert (report.pulled, report.empty, report.searches) == (2, 1, 3)
    with ledger.database.read() as connection:
        found = connection.scalars(select(tables.instance_identity.c.accession_number)).all()
    assert sorted(found) == ["A1", "A3"]


def test_other_modalities_if_asked_for(pull: Callable[..., PullReport]) -> None:
    with WebArchive([film(1, Modality="RG"), film(2)]) as archive:
        assert pull(archive, modalities=["RG"], lane="icu").pulled == 1


def test_a_pull_that_was_cut_off_goes_on(ledger: Ledger, pull: Callable[..., PullReport]) -> None:
    stop = threading.Event()

    def stops_at_the_third(report: PullReport) -> None:
        if report.pulled == 3:
            stop.set()

    with WebArchive([film(number) for number in range(6)]) as archive:
        cut = pull(archive, stop=stop, progress=stops_at_the_third)
        assert (cut.pulled, cut.complete) == (3, False)
        # What was on the disk is registered.
        assert count(ledger, "arrival") == 3
        rest = pull(archive)
    assert (rest.known, rest.pulled, rest.complete) == (3, 3, True)
    assert archive.asked["GET 6"] == 6


def test_a_film_whose_row_was_lost_takes_its_place_in_the_spool_again(
    ledger: Ledger, pull: Callable[..., PullReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    with WebArchive([film(1)]) as archive:
        with monkeypatch.context() as dying:
            dying.setattr(Pull, "_register", lambda *_: None)
            pull(archive)
        (before,) = spooled(ledger)
        report = pull(archive)
    assert (report.pulled, spooled(ledger), count(ledger, "arrival")) == (1, [before], 1)


def test_one_film_that_cannot_be_had_is_left_for_the_next_time(
    ledger: Ledger, pull: Callable[..., PullReport], caplog: pytest.LogCaptureFixture
) -> None:
    films = [film(number) for number in range(3)]
    cut = multipart([films[0]])
    cut.body = cut.body[:500]
    tries: list[str] = []

    def fails_over_the_first(method: str, path: str) -> Answer | None:
        if is_retrieval(path) and (not tries or path == tries[0]):
            tries.append(path)
            return cut
        return None

    with WebArchive(films, fault=fails_over_the_first) as archive:
        report = pull(archive)
    assert (report.pulled, dict(report.failed), report.complete) == (2, {"NO_ANSWER": 1}, True)
    assert len(tries) == pull_module.ATTEMPTS
    assert not list(ledger.settings.spool.rglob("*.part"))
    with caplog.at_level(logging.DEBUG), WebArchive(films) as archive:
        assert pull(archive).pulled == 1
    assert "SECRET" not in caplog.text and str(ledger.settings.home) not in caplog.text


def test_an_archive_that_goes_away_is_waited_for(pull: Callable[..., PullReport]) -> None:
    away = 3

    def busy(method: str, path: str) -> Answer | None:
        nonlocal away
        if is_retrieval(path) and away:
            away -= 1
            return Answer(503)
        return None

    waits: list[str] = []
    with WebArchive([film(1), film(2)], fault=busy) as archive:
        report = pull(archive, progress=lambda report: waits.append(report.waiting))
    assert (report.pulled, away, report.waiting) == (2, 0, "")
    assert "for the archive (OUT_OF_RESOURCES)" in waits


def test_an_archive_that_never_answered_or_lets_nobody_in_is_told_at_once(pull: Callable[..., PullReport]) -> None:
    with pytest.raises(PeerError, match="cannot be reached"):
        pull(f"http://127.0.0.1:{free_port()}/dicom-web")

    def closes(method: str, path: str) -> Answer | None:
        return Answer(401) if is_retrieval(path) else None

    with WebArchive([film(1)], fault=closes) as archive, pytest.raises(PeerError, match="does not let us in"):
        pull(archive)


def test_outside_its_hours_the_archive_is_not_asked(
    pull: Callable[..., PullReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_module, "_LONGEST_SLEEP_SECONDS", 0.01)
    clock = [datetime(2026, 3, 1, 19, 58), datetime(2026, 3, 1, 19, 59)]
    told: list[tuple[str, int]] = []

    def now() -> datetime:
        return clock.pop(0) if clock else datetime(2026, 3, 1, 20, 0)

    with WebArchive([film(1)]) as archive:
        report = pull(
            archive,
            hours=parse_hours("20:00-06:00"),
            now=now,
            progress=lambda report: told.append((report.waiting, archive.asked.total())),
        )
    assert report.pulled == 1
    assert told[0] == ("for 20:00, when its hours begin", 0)


def test_films_come_no_faster_than_allowed(pull: Callable[..., PullReport], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def sleep(self: Pull, seconds: float) -> None:
        slept.append(round(max(0.0, seconds), -1))

    monkeypatch.setattr(Pull, "_sleep", sleep)
    with WebArchive([film(number) for number in range(3)]) as archive:
        pull(archive, per_minute=0.5)
    assert slept == [0, 120, 120]


def test_one_pull_at_a_time(pull: Callable[..., PullReport]) -> None:
    with WebArchive([film(1)]) as archive:
        refused: list[str] = []

        def another(report: PullReport) -> None:
            with pytest.raises(CarinaError, match="Another pull") as error:
                pull(archive)
            refused.append(str(error.value))

        assert pull(archive, progress=another).pulled == 1
    assert refused
