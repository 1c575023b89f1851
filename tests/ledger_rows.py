"""Rows for tests of the ledger: films without files, results without networks."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, insert, select, update

from schema import tables
from schema.database import Database
from schema.findings import Finding
from schema.regions import HOLSTE_REGIONS
from schema.tables import PRIORITY, ArrivalState, JobKind, JobState, Lane
from worker import REVISION
from worker.film.prepared import FilmFacts, Geometry
from worker.intake.lookups import allocate_ids
from worker.queue.ledger import WorkerIdentity, claim
from worker.queue.outcomes import Claim
from worker.results.result import FilmResult, FindingScore, Flag, Heatmap, Measurement, Segmentation
from worker.settings import Settings

SIDE = 256
DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"


def fresh_database(folder: Path, name: str = "carina.sqlite") -> Database:
    """A new SQLite ledger in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    database = Database(f"sqlite:///{folder / name}")
    database.upgrade()
    return database


def settings_for(home: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {"home": home, "disk_reserve": 0, "poll_seconds": 0.05}
    return Settings(**{**values, **changes})


def digest(*parts: object) -> str:
    """64 hex digits that stand for some content."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def add_bundle(database: Database, name: str = "test", version: str = "1") -> int:
    with database.write() as connection:
        added = connection.execute(
            insert(tables.bundle).values(name=name, version=version, sha256=digest(name, version), manifest={})
        )
        return int(added.inserted_primary_key[0])


def add_submission(connection: Connection, lane: str = Lane.ARCHIVE) -> int:
    added = connection.execute(insert(tables.submission).values(lane=str(lane), scan_complete=True))
    return int(added.inserted_primary_key[0])


def register_films(
    database: Database, names: Sequence[str], *, lane: str = Lane.ARCHIVE, root: str = "local"
) -> list[int]:
    """One instance, arrival, identity and open job for each name (its path); returns the job ids."""
    with database.write() as connection:
        submission_id = add_submission(connection, lane)
        # Not the highest id plus one: a PostgreSQL sequence would not know of ids it did not give.
        instances, arrivals, jobs = (
            allocate_ids(connection, table, len(names)) for table in (tables.instance, tables.arrival, tables.job)
        )
        connection.execute(
            insert(tables.instance),
            [
                {
                    "id": instance_id,
                    "key": digest("uid", instance_id),
                    "patient_key": digest("patient", instance_id),
                    "study_key": digest("study", instance_id),
                    "series_key": digest("series", instance_id),
                    "held_out": False,
                    "sop_class_uid": DIGITAL_X_RAY,
                }
                for instance_id in instances
            ],
        )
        connection.execute(
            insert(tables.arrival),
            [
                {
                    "id": arrival_id,
                    "submission_id": submission_id,
                    "instance_id": instance_id,
                    "state": ArrivalState.INSTANCE.value,
                    "current": True,
                }
                for arrival_id, instance_id in zip(arrivals, instances, strict=True)
            ],
        )
        connection.execute(
            insert(tables.identity),
            [
                {"arrival_id": arrival_id, "root": root, "path": name, "size": 1, "modified_ns": 1}
                for arrival_id, name in zip(arrivals, names, strict=True)
            ],
        )
        connection.execute(
            insert(tables.instance_identity),
            [{"instance_id": number, "sop_instance_uid": f"2.25.{number}"} for number in instances],
        )
        connection.execute(
            insert(tables.submission_arrival),
            [{"submission_id": submission_id, "arrival_id": arrival_id} for arrival_id in arrivals],
        )
        connection.execute(
            insert(tables.job),
            [
                {
                    "id": job_id,
                    "instance_id": instance_id,
                    "arrival_id": arrival_id,
                    "priority": PRIORITY[lane],
                }
                for job_id, instance_id, arrival_id in zip(jobs, instances, arrivals, strict=True)
            ],
        )
    return list(jobs)


def add_unverified(database: Database, instance_id: int, name: str) -> tuple[int, int]:
    """A second file for an instance, and the job that verifies it; returns arrival id and job id."""
    with database.write() as connection:
        arrival_id = connection.execute(
            insert(tables.arrival).values(
                submission_id=add_submission(connection),
                instance_id=instance_id,
                state=ArrivalState.UNVERIFIED.value,
            )
        ).inserted_primary_key[0]
        connection.execute(
            insert(tables.identity).values(arrival_id=arrival_id, root="local", path=name, size=1, modified_ns=1)
        )
        job_id = connection.execute(
            insert(tables.job).values(
                instance_id=instance_id,
                arrival_id=arrival_id,
                kind=JobKind.VERIFY.value,
                priority=PRIORITY[Lane.ARCHIVE],
            )
        ).inserted_primary_key[0]
    return int(arrival_id), int(job_id)


_LABELS = np.zeros((SIDE, SIDE), np.uint8)
for _number in range(1, 8):
    _LABELS[_number * 30 : _number * 30 + 25, 40:200] = _number
_MAPS = np.add.outer(np.arange(10), np.add.outer(np.arange(32), np.arange(32))).astype(np.uint8)


def full_result(content: str, *, scores: int | None = None, ineligible: str | None = None) -> FilmResult:
    """A result of the size of a real one; ``content`` names the film's content."""
    shift = int(digest(content)[:2], 16) % 40
    labels = np.roll(_LABELS, shift, axis=1)
    cleaned = labels.copy()
    cleaned[:3, :3] = 7
    findings = list(Finding)[: scores if scores is not None else 10]
    return FilmResult(
        file_hash=digest("file", content),
        content_hash=digest("content", content),
        geometry=Geometry(film_rows=2500, film_columns=2048, row_spacing=0.14, column_spacing=0.14),
        facts=FilmFacts(
            sop_class_uid=DIGITAL_X_RAY,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            photometric_interpretation="MONOCHROME2",
            modality="DX",
            body_part="CHEST",
            view_position="PA",
            bits_stored=12,
            age_days=3000,
            voi_policy="window",
        ),
        segmentation=Segmentation(raw=labels, cleaned=cleaned, carina_threshold=0.25, repaired_pixels=9),
        measurements=[
            Measurement(str(region.name), 4000, 0.061, None, 1, 0.5, 0.5, (10, 40, 35, 200), 0.97, 0)
            for region in HOLSTE_REGIONS
        ],
        scores=[
            FindingScore(str(name), 0.25, 0.01, 0.5, False, {"a": 0.24, "b": 0.25, "c": 0.26}) for name in findings
        ],
        heatmap=Heatmap(tuple(str(name) for name in findings), _MAPS[: len(findings)]),
        flags=[
            Flag("interrupted_region", 1, "raw", "spine", 2.0, 1.0),
            Flag("carina_threshold_lowered", 1, "cleaned", "carina", 0.05, 0.25),
        ],
        ineligible_code=ineligible,
        engine={"backend": "none", "precision": "fp32"},
        seconds={"read": 0.01, "networks": 0.3},
    )


def job_states(database: Database) -> dict[int, str]:
    with database.read() as connection:
        return {row.id: row.state for row in connection.execute(select(tables.job.c.id, tables.job.c.state))}


def job_row(database: Database, job_id: int) -> Any:
    with database.read() as connection:
        return connection.execute(select(tables.job).where(tables.job.c.id == job_id)).one()


def age_leases(database: Database, lease_id: str | None = None) -> None:
    """Let leases run out now: the database's clock cannot be moved, their end can."""
    statement = update(tables.lease).values(expires_at=tables.lease.c.taken_at)
    if lease_id is not None:
        statement = statement.where(tables.lease.c.id == lease_id)
    with database.write() as connection:
        connection.execute(statement)


def make_due(database: Database) -> None:
    """Let the waiting time of delayed jobs be over now."""
    with database.write() as connection:
        connection.execute(
            update(tables.job)
            .where(tables.job.c.state == JobState.DELAYED.value)
            .values(available_at=tables.job.c.created_at)
        )


def template_database(folder: Path) -> Path:
    """An empty ledger as one file, to be copied: migrating takes longer than a whole small test."""
    database = fresh_database(folder, "template.sqlite")
    add_bundle(database)
    database.close()
    with sqlite3.connect(folder / "template.sqlite") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return folder / "template.sqlite"


@dataclass
class Ledger:
    """A database with one bundle and one worker."""

    database: Database
    settings: Settings
    worker: WorkerIdentity
    bundle_id: int = 1

    def claim(self, limit: int = 16, *, worker: WorkerIdentity | None = None, **changes: Any) -> Claim | None:
        options: dict[str, Any] = {
            "bundle_id": self.bundle_id,
            "revision": REVISION,
            "limit": limit,
            "lease_seconds": self.settings.lease_seconds,
            "draw": lambda: 0.99,
        }
        return claim(self.database, worker or self.worker, **{**options, **changes})

    def must_claim(self, limit: int = 16, **changes: Any) -> Claim:
        claimed = self.claim(limit, **changes)
        assert claimed is not None
        return claimed
