from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from dicom_files import LOSSY_SYNTAXES, RLE, SYNTAXES, chest_pixels, encode, make_dataset, to_bytes
from intake_rows import one, rows
from listener_peers import (
    DX,
    answer,
    associate,
    echo,
    encoded,
    open_door,
    send_raw,
    small_film,
    spooled,
    store,
    unfinished,
)
from pydicom import dcmread
from sqlalchemy import text, update
from waiting import wait_until

from schema import tables
from schema.database import Database
from schema.types import database_now
from worker.errors import CarinaError
from worker.film.codecs import SYNTAXES as READABLE
from worker.intake.listener import storage
from worker.intake.listener.server import SOP_CLASSES, contexts
from worker.intake.sources import resolve
from worker.queue.outcomes import SourceReference
from worker.settings import Settings

CR, SECONDARY = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("1", "7"))
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, listen_port=0)


def test_a_film_is_acknowledged_once_it_is_on_the_disk_and_in_the_ledger(
    database: Database, settings: Settings
) -> None:
    film = small_film(5)
    with open_door(database, settings) as door:
        assert echo(door.port) == 0
        assert store(door.port, film) == [0]
        identity = one(database, tables.identity)
        source = SourceReference(identity.root, identity.path, "", identity.size, identity.modified_ns)
        kept = resolve(settings, source)
        assert source.root == "spool"
        assert film.PixelData in kept.read_bytes()
        assert one(database, tables.instance_identity).sop_instance_uid == film.SOPInstanceUID
        assert one(database, tables.job).state == "ready"
        assert store(door.port, film) == [0]
        assert len(rows(database, tables.arrival)) == len(spooled(settings.home)) == 1
        assert "2 films received" in door.tally.line()
    assert unfinished(settings.home) == []
    assert one(database, tables.submission).scan_complete


def test_every_transfer_syntax_that_can_be_read_is_taken(database: Database, settings: Settings) -> None:
    negotiated = {str(context.abstract_syntax): context.transfer_syntax for context in contexts()}
    assert all(set(negotiated[uid]) == set(READABLE) for uid in SOP_CLASSES)
    native = make_dataset(chest_pixels(rows=24, columns=16))
    eight = make_dataset(chest_pixels(rows=24, columns=16, bits=8))
    with open_door(database, settings) as door:
        for syntax in SYNTAXES:
            film = encode(eight if syntax in LOSSY_SYNTAXES else native, syntax)
            film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = f"2.25.{SYNTAXES.index(syntax) + 1}"
            film = dcmread(BytesIO(to_bytes(film)))
            assert store(door.port, film, syntaxes=[syntax]) == [0], syntax
    found = {row.transfer_syntax_uid for row in rows(database, tables.instance)}
    assert found == set(SYNTAXES)
    assert RLE in found


@pytest.mark.parametrize("sop_class", [CR, DX, SECONDARY])
def test_the_classes_that_hold_films(database: Database, settings: Settings, sop_class: str) -> None:
    with open_door(database, settings) as door:
        assert store(door.port, small_film(SOPClassUID=sop_class)) == [0]
    assert one(database, tables.instance).sop_class_uid == sop_class


def test_for_processing_is_refused_with_the_reason(database: Database, settings: Settings) -> None:
    raw = small_film(SOPClassUID=FOR_PROCESSING, PresentationIntentType="FOR PROCESSING")
    disguised = small_film(PresentationIntentType="FOR PROCESSING")
    with open_door(database, settings) as door:
        assert answer(door.port, raw) == (0x0122, "For processing: send the image for presentation")
        assert answer(door.port, disguised) == (0xA900, "For processing: send the image for presentation")
        assert "FOR_PROCESSING: 2" in door.tally.line()
    assert (spooled(settings.home), unfinished(settings.home), rows(database, tables.arrival)) == ([], [], [])


def test_other_classes_are_not_negotiated(database: Database, settings: Settings) -> None:
    with open_door(database, settings) as door:
        association = associate(door.port, classes=["1.2.840.10008.5.1.4.1.1.2"])
        assert [str(context.abstract_syntax) for context in association.rejected_contexts] == [
            "1.2.840.10008.5.1.4.1.1.2"
        ]
        association.release()


def test_what_only_the_header_rules_out_is_in_the_ledger(database: Database, settings: Settings) -> None:
    with open_door(database, settings) as door:
        assert store(door.port, small_film(NumberOfFrames=2)) == [0]
    assert (one(database, tables.job).state, one(database, tables.job).code) == ("ineligible", "MULTI_FRAME")


def test_a_data_set_that_is_not_what_the_request_says(database: Database, settings: Settings) -> None:
    with open_door(database, settings) as door:
        association = associate(door.port)
        assert send_raw(association, encoded(small_film(SOPInstanceUID="2.25.2")), uid="2.25.3") == 0xA900
        assert send_raw(association, encoded(small_film(SOPClassUID=CR)), uid="2.25.2") == 0xA900
        association.release()
    assert spooled(settings.home) == []


def test_who_is_admitted(database: Database, settings: Settings) -> None:
    strict = replace(settings, listen_senders="ROOM1", listen_networks="10.0.0.0/8,127.0.0.1")
    with open_door(database, strict) as door:
        assert echo(door.port, calling="ROOM1") == 0
        assert echo(door.port, calling="ROOM2") is None
        assert echo(door.port, calling="ROOM1", called="OTHER") is None
        wait_until(lambda: "AE title not admitted: 2" in door.tally.line(), seconds=20)
    with open_door(database, replace(settings, listen_networks="10.0.0.0/8")) as door:
        assert echo(door.port) is None
        assert "address not admitted: 1" in door.tally.line()


def test_lanes_by_ae_title(database: Database, settings: Settings) -> None:
    with open_door(database, replace(settings, listen_archive="PACS")) as door:
        assert store(door.port, small_film(1), calling="PACS") == [0]
        assert store(door.port, small_film(2), calling="ROOM1") == [0]
    assert [row.priority for row in rows(database, tables.job)] == [10, 0]


# --- watermarks ------------------------------------------------------------------------------


def test_refused_above_the_watermark_and_taken_again_below(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.intake.listener.gate._LOOK_SECONDS", 0.0)
    with open_door(database, replace(settings, backlog_high=2, backlog_low=1)) as door:
        assert store(door.port, *(small_film(level) for level in range(3))) == [0, 0, 0xA700]
        status, said = answer(door.port, small_film(9))
        assert (status, said) == (0xA700, "No room: 2 films wait already")
        assert len(spooled(settings.home)) == len(rows(database, tables.arrival)) == 2
        assert unfinished(settings.home) == []
        assert echo(door.port) == 0
        with database.write() as connection:
            connection.execute(
                update(tables.job).values(state="ineligible", code="NOT_A_CHEST", finished_at=database_now())
            )
        assert answer(door.port, small_film(9)) == (0, "")


def test_a_full_disk_refuses_and_nothing_is_half_written(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.intake.listener.gate._LOOK_SECONDS", 0.0)
    with open_door(database, replace(settings, disk_reserve=1 << 60)) as door:
        status, said = answer(door.port, small_film())
        assert (status, said) == (0xA700, "No room: the disk of the home folder is nearly full")
    assert (spooled(settings.home), unfinished(settings.home), rows(database, tables.arrival)) == ([], [], [])


def test_a_database_that_is_away_refuses_and_films_come_again_later(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.intake.listener.gate._LOOK_SECONDS", 0.0)
    film = small_film()
    with open_door(database, settings) as door:
        with database.write() as connection:
            connection.execute(text("ALTER TABLE submission RENAME TO elsewhere"))
        assert answer(door.port, film) == (0xA700, "The database does not answer")
        with database.write() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO submission"))
        assert answer(door.port, film) == (0, "")
    assert len(spooled(settings.home)) == len(rows(database, tables.arrival)) == 1
    assert unfinished(settings.home) == []


# --- the end ---------------------------------------------------------------------------------


class _Slow:
    """Registers a film only when it is let."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Slow]:
    pace = _Slow()
    original = storage.Storage._header

    def header(self: storage.Storage, file: Path) -> object:
        pace.began.set()
        assert pace.go_on.wait(60)
        return original(self, file)

    monkeypatch.setattr(storage.Storage, "_header", header)
    yield pace
    pace.go_on.set()


def test_stopping_finishes_what_is_being_stored(database: Database, settings: Settings, slow: _Slow) -> None:
    statuses: list[int | None] = []
    with open_door(database, settings) as door:
        sender = threading.Thread(target=lambda: statuses.extend(store(door.port, small_film(1), small_film(2))))
        sender.start()
        assert slow.began.wait(20)
        threading.Timer(0.5, slow.go_on.set).start()
    sender.join(30)
    assert statuses[0] == 0
    assert len(spooled(settings.home)) == len(rows(database, tables.arrival)) == statuses.count(0)
    assert unfinished(settings.home) == []


def test_a_port_that_is_taken_is_said(database: Database, settings: Settings) -> None:
    with (
        open_door(database, settings) as door,
        pytest.raises(CarinaError, match="CARINA_LISTEN_PORT"),
        open_door(database, replace(settings, listen_port=door.port)),
    ):
        pass


# --- the log ---------------------------------------------------------------------------------


def test_no_identifier_and_no_path_in_the_log_at_any_level(
    database: Database, settings: Settings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "Sensitive"
    caplog.set_level(logging.DEBUG)
    names = {"PatientName": f"{secret}^Child", "PatientID": secret, "AccessionNumber": secret}
    good = small_film(1, **names)
    bad = small_film(2, **names, SOPClassUID=FOR_PROCESSING)
    odd = small_film(3, **names, SOPInstanceUID="2.25.123456789012345")
    with open_door(database, settings) as door:
        store(door.port, good, bad, odd)
        with database.write() as connection:
            connection.execute(text("ALTER TABLE submission RENAME TO elsewhere"))
        store(door.port, small_film(4, **names))
        echo(door.port, calling="A", called="OTHER")
        with suppress(ConnectionError):
            associate(door.port).abort()
        said = door.tally.line()
    out, err = capfd.readouterr()
    logged = "\n".join(record.getMessage() for record in caplog.records if "sqlalchemy" not in record.name)
    everything = "\n".join((logged, out, err, said))
    assert "could not be registered" in logged
    for word in (secret, "2.25.", "1.2.826", str(settings.home), ".dcm", str(good.StudyInstanceUID)):
        assert word not in everything, word


def test_rules_hear_who_sent_the_film(database: Database, settings: Settings, tmp_path: Path) -> None:
    from listener_peers import Gate, GroupCommit, Listener, Spool, Storage, Tally, read_policy, site_key

    from worker.intake.rules import load_rules

    (tmp_path / "rules.toml").write_text(
        '[[rule]]\nname = "elsewhere"\ndecision = "skip"\nreason = "read elsewhere"\ncalling_ae = "FAR*"\n'
    )
    settings = replace(settings, rules=str(tmp_path / "rules.toml"))
    policy, spool, tally, gate = read_policy(settings), Spool(settings), Tally(), Gate(database, settings)
    with (
        spool.scratch() as scratch,
        GroupCommit(database, site_key(settings), load_rules(settings)) as commit,
        Listener(policy, Storage(spool, commit, gate, tally), gate, tally, scratch) as listener,
    ):
        assert store(listener.port, small_film(1), calling="FARAWAY") == [0]
        assert store(listener.port, small_film(2), calling="NEAR") == [0]
    assert [(row.state, row.code) for row in rows(database, tables.job)] == [
        ("ineligible", "RULE_SKIPPED"),
        ("ready", None),
    ]
