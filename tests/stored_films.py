"""Databases with films in them, for the tests that read.

``empty_url`` and ``fresh_database`` give each test a database of its own: on SQLite always, on a
real PostgreSQL for tests marked ``services``.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from server_process import ServersUnavailableError
from sqlalchemy import insert, select, update

from schema import tables
from schema.database import Database
from schema.regions import HOLSTE_REGIONS
from worker.film.prepared import FilmFacts, Geometry
from worker.results.result import FilmResult, FindingScore, Flag, Heatmap, Measurement, Segmentation

DIALECTS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.services)]


@functools.cache
def _sqlite_template() -> Path:
    folder = tempfile.mkdtemp(prefix="carina-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "template.sqlite"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    database.close()
    return path


def _postgresql() -> servers.Databases:
    try:
        return servers.postgresql()
    except ServersUnavailableError as error:
        pytest.skip(str(error))


def empty_url(dialect: str, folder: Path) -> str:
    """URL of a database without tables."""
    if dialect == "sqlite":
        return f"sqlite:///{folder / 'carina.sqlite'}"
    return _postgresql().empty_database()


@contextmanager
def fresh_database(dialect: str, folder: Path) -> Iterator[Database]:
    """An empty database of the newest version."""
    if dialect == "sqlite":
        shutil.copy(_sqlite_template(), folder / "carina.sqlite")
        database = Database(f"sqlite:///{folder / 'carina.sqlite'}")
    else:
        database = Database(_postgresql().fresh_database())
    yield database
    database.close()
    if dialect == "postgresql":
        _postgresql().drop(database.url)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


MANIFEST: dict[str, Any] = {
    "name": "phantom",
    "version": "1",
    "description": "Trained on synthetic films.",
    "regions": [
        {"value": r.value, "name": r.name, "title": r.title, "colour": list(r.colour), "origin": "exact"}
        for r in HOLSTE_REGIONS
    ],
    "findings": [{"finding": "pneumonia", "threshold": 0.4}, {"finding": "no_finding", "threshold": 0.5}],
}


def labels(size: int = 64) -> np.ndarray:
    """A label map with every region in a place of its own, asymmetric."""
    grid = np.zeros((size, size), np.uint8)
    step = size // 8
    for value in range(1, 8):
        grid[step : step * 4, step * (value - 1) : step * value] = value
    grid[step * 4 : step * 5, : step * 2] = 1
    return grid


def result(
    *,
    flags: tuple[str, ...] = (),
    pneumonia: float = 0.25,
    size: int = 64,
    film: tuple[int, int] = (300, 200),
    ineligible: str | None = None,
    flip_columns: bool = False,
) -> FilmResult:
    """A full result with numbers as NumPy hands them over."""
    cleaned = labels(size)
    raw = cleaned.copy()
    raw[0, 0] = 7
    measurements = [
        Measurement(
            region.name,
            int(np.count_nonzero(cleaned == region.value)),
            float(np.mean(cleaned == region.value)),
            None,
            1,
            np.float64(0.25),
            np.float64(0.5),
            (np.int64(0), np.int64(1), np.int64(2), np.int64(3)),
            np.float32(0.9),
            np.int64(1),
        )
        for region in HOLSTE_REGIONS[1:]
    ]
    return FilmResult(
        file_hash=digest("file"),
        content_hash=digest("content"),
        geometry=Geometry(film[0], film[1], flip_columns=flip_columns),
        facts=FilmFacts("1.2", "1.2.840.10008.1.2.1", "MONOCHROME2", "DX", "CHEST", "PA", 12, 800, "percentile"),
        segmentation=Segmentation(raw, cleaned, 0.1, 1),
        measurements=measurements,
        scores=[
            FindingScore(
                "pneumonia", np.float32(pneumonia), 0.1, 0.4, np.bool_(pneumonia >= 0.4), {"a": 0.2, "b": 0.3}
            ),
            FindingScore("no_finding", 0.75, 0.05, 0.5, True, {"a": 0.7, "b": 0.8}),
        ],
        heatmap=Heatmap(("pneumonia", "no_finding"), np.arange(2 * 16 * 16, dtype=np.uint8).reshape(2, 16, 16)),
        flags=[Flag(rule, 1, "cleaned", "carina", np.float64(3.0), 5.0) for rule in flags],
        ineligible_code=ineligible,
        engine={"backend": "openvino", "backend_version": "1", "device": "a processor", "precision": "fp32"},
        seconds={"decode": 0.01},
    )


class Films:
    """Puts films into a database, each in the state a test wants."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.count = 0
        self.submission = self.insert(tables.submission, lane="icu")
        self.bundle = self.add_bundle("1")
        self.insert_plain(tables.bundle_alias, alias="champion", bundle_id=self.bundle)
        self.worker = self.insert(
            tables.worker, name="host-1", host="host", process_id=1, boot_id="boot", device="cpu", version="0",
            bundle_id=self.bundle,
        )  # fmt: skip

    def insert(self, table: Any, **values: Any) -> int:
        with self.database.write() as connection:
            return connection.execute(insert(table).values(**values).returning(table.c.id)).scalar_one()

    def insert_plain(self, table: Any, **values: Any) -> None:
        with self.database.write() as connection:
            connection.execute(insert(table).values(**values))

    def update(self, table: Any, key: int, **values: Any) -> None:
        with self.database.write() as connection:
            connection.execute(update(table).where(table.c.id == key).values(**values))

    def value(self, statement: Any) -> Any:
        with self.database.read() as connection:
            return connection.scalar(statement)

    def add_bundle(self, version: str, **manifest: Any) -> int:
        return self.insert(
            tables.bundle, name="phantom", version=version, sha256=digest(f"bundle {version}"),
            manifest={**MANIFEST, "version": version, **manifest},
        )  # fmt: skip

    def instance(self, uid: str | None = None, **values: Any) -> int:
        self.count += 1
        uid = uid or f"1.2.3.{self.count}"
        key = self.insert(
            tables.instance,
            **{
                "key": digest(uid),
                "patient_key": digest("patient"),
                "study_key": digest("study"),
                "series_key": digest("series"),
                "held_out": False,
                "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
                **values,
            },
        )
        self.insert_plain(tables.instance_identity, instance_id=key, sop_instance_uid=uid)
        return key

    def update_identity(self, instance: int, **values: Any) -> None:
        key = tables.instance_identity.c.instance_id
        with self.database.write() as connection:
            connection.execute(update(tables.instance_identity).where(key == instance).values(**values))

    def arrival(
        self,
        state: str,
        instance: int | None = None,
        *,
        path: str | None = None,
        member: str = "",
        submission: int | None = None,
        **values: Any,
    ) -> int:
        submission = submission or self.submission
        key = self.insert(tables.arrival, submission_id=submission, instance_id=instance, state=state, **values)
        self.insert_plain(
            tables.identity, arrival_id=key, root="local", path=path or f"films/{key}.dcm", member=member, size=1,
            modified_ns=1,
        )  # fmt: skip
        self.insert_plain(tables.submission_arrival, submission_id=submission, arrival_id=key)
        return key

    def job(self, instance: int, state: str = "ready", **values: Any) -> int:
        now = datetime.now(UTC)
        extra: dict[str, Any] = {}
        if state == "done" and values.get("kind") != "verify":
            extra = {"bundle_id": self.bundle, "revision": 1}
        if state in ("done", "ineligible", "failed"):
            extra |= {"finished_at": now, "wait_seconds": 2.0, "run_seconds": 1.0}
        if state in ("ineligible", "failed", "delayed"):
            extra |= {"code": "LATERAL" if state == "ineligible" else "DECODE_FAILED", "stage": "decode"}
        if state == "delayed":
            extra |= {"available_at": now}
        if state == "leased":
            extra |= {"lease_id": self.lease(), "bundle_id": self.bundle, "revision": 1}
        return self.insert(tables.job, **{"instance_id": instance, "state": state, "priority": 0, **extra, **values})

    def lease(self) -> str:
        self.count += 1
        self.insert_plain(
            tables.lease, id=f"lease-{self.count}", worker_id=self.worker, boot_id="boot", expires_at=datetime.now(UTC)
        )
        return f"lease-{self.count}"

    def film(self, state: str = "done", *, uid: str | None = None, stored: FilmResult | None = None, **job: Any) -> int:
        """A film that is read from its own file; returns its job. ``stored`` is written if done."""
        from worker.results.write import write_results

        instance = self.instance(uid)
        arrival = self.arrival("instance", instance, current=True)
        key = self.job(instance, state, **{"arrival_id": arrival, **job})
        if stored is not None:
            with self.database.write() as connection:
                write_results(connection, [(key, stored)])
        return key

    def arrival_of(self, job: int) -> int:
        return self.value(select(tables.job.c.arrival_id).where(tables.job.c.id == job))
