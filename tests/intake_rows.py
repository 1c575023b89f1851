"""Headers and files for tests of the intake."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from dicom_files import make_dataset, to_bytes
from ledger_rows import Ledger, digest, full_result
from sqlalchemy import Table, insert, select, update

from schema import tables
from schema.database import Database
from schema.tables import JobState, Lane
from worker.errors import FilmError
from worker.film.reader import FilmHeader
from worker.intake.register import Counts, Examined, Registrar
from worker.intake.scan import open_submission
from worker.queue.finish import finish
from worker.queue.outcomes import ClaimedJob, Content, Outcome, SourceReference

SITE_KEY = bytes(range(32))
DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"

_HEADER = FilmHeader(
    sop_instance_uid="2.25.1",
    sop_class_uid=DIGITAL_X_RAY,
    study_instance_uid="2.25.10",
    series_instance_uid="2.25.100",
    patient_id="P1",
    issuer_of_patient_id="",
    accession_number="A1",
    study_date=date(2026, 3, 1),
    modality="DX",
    body_part="CHEST",
    view_position="PA",
    station_name="ROOM1",
    manufacturer="Maker",
    sex="F",
    age_days=1500,
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    rows=2000,
    columns=1800,
    samples_per_pixel=1,
    number_of_frames=1,
    photometric_interpretation="MONOCHROME2",
    bits_allocated=16,
    bits_stored=12,
    presentation_intent="FOR PRESENTATION",
)


def header(uid: str = "2.25.1", **changes: Any) -> FilmHeader:
    return replace(_HEADER, sop_instance_uid=uid, **changes)


def source(path: str, *, member: str = "", size: int = 1000, modified_ns: int = 10**18) -> SourceReference:
    return SourceReference("local", path, member, size, modified_ns)


def film(uid: str, path: str, **changes: Any) -> Examined:
    return Examined(source(path), header(uid, **changes))


def registrar(database: Database, lane: str = Lane.ARCHIVE) -> Registrar:
    return Registrar(database, SITE_KEY, open_submission(database, lane), lane)


def register(database: Database, *files: Examined, lane: str = Lane.ARCHIVE) -> Counts:
    return registrar(database, lane).register(files)


def rows(database: Database, table: Table, *conditions: Any) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(table).where(*conditions).order_by(*table.primary_key.columns)).all())


def one(database: Database, table: Table, *conditions: Any) -> Any:
    (row,) = rows(database, table, *conditions)
    return row


def arrival_at(database: Database, path: str, member: str = "") -> Any:
    """The arrival of a path."""
    with database.read() as connection:
        return connection.execute(
            select(tables.arrival)
            .join(tables.identity, tables.identity.c.arrival_id == tables.arrival.c.id)
            .where(tables.identity.c.path == path.removeprefix("/"), tables.identity.c.member == member)
        ).one()


def states(database: Database, table: Table) -> Counter[str]:
    return Counter(row.state for row in rows(database, table))


def make_champion(database: Database, bundle_id: int = 1) -> None:
    with database.write() as connection:
        if not connection.execute(update(tables.bundle_alias).values(bundle_id=bundle_id)).rowcount:
            connection.execute(insert(tables.bundle_alias).values(alias="champion", bundle_id=bundle_id))


def film_bytes(uid: str, *, level: int = 0, **attributes: Any) -> bytes:
    """A tiny digital radiograph as a file; ``level`` is the value of its first pixel."""
    pixels = np.zeros((8, 8), np.uint16)
    pixels[0, 0] = level
    dataset = make_dataset(pixels, SOPInstanceUID=uid, **attributes)
    dataset.file_meta.MediaStorageSOPClassUID = attributes.get("SOPClassUID") or DIGITAL_X_RAY
    return to_bytes(dataset)


def write_film(path: Path, uid: str, **options: Any) -> Path:
    path.write_bytes(film_bytes(uid, **options))
    return path


def copy_of(template: Path, folder: Path) -> Database:
    """A fresh ledger in ``folder``."""
    file = folder / "carina.sqlite"
    shutil.copy(template, file)
    return Database(f"sqlite:///{file}")


Pictures = dict[str, str]


def content(picture: str) -> Content:
    """What a file with ``picture`` holds, as ``full_result`` has it."""
    return Content(digest("file", picture), digest("content", picture))


def outcome(job: ClaimedJob, pictures: Pictures) -> Outcome:
    """What reading the job's file gives: ``pictures`` maps a path to its picture.

    ``"!CODE"`` is a file that ends with that code, ``"?name"`` a picture that is no chest.
    """
    picture = pictures[job.source.path]
    if picture.startswith("!"):
        return Outcome(job, error=FilmError(picture[1:], "seen"))
    if job.kind == "verify":
        return Outcome(job, content=content(picture))
    return Outcome(job, result=full_result(picture, ineligible="LATERAL" if picture.startswith("?") else None))


def work(ledger: Ledger, pictures: Pictures, *, limit: int = 16) -> None:
    """Process everything that is ready; what waits is due once nothing else is to be done."""
    for _ in range(200):
        claim = ledger.claim(limit)
        if claim is None:
            if not _make_ready(ledger.database):
                return
            continue
        outcomes = [outcome(job, pictures) for job in claim.jobs]
        report = finish(ledger.database, claim, outcomes, settings=ledger.settings)
        assert len(report.states) == len(claim.jobs)
    raise AssertionError("the work does not end")


def _make_ready(database: Database) -> int:
    with database.write() as connection:
        delayed = update(tables.job).where(tables.job.c.state == JobState.DELAYED.value)
        return connection.execute(delayed.values(state=JobState.READY.value)).rowcount
