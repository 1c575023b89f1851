"""A night whose every result tells which bundle made it, and a worker on it that bundles are exchanged under."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import psutil
from chest_bundle import labels_of, make_chest_bundle
from dicom_files import chest_pixels, make_dataset, save
from sqlalchemy import func, select
from waiting import wait_until

from schema import tables
from schema.database import Database
from schema.view_tables import published_result
from worker.inference import registry
from worker.inference.swap import SwappingEngines
from worker.intake.scan import submit
from worker.queue.invariants import check_invariants
from worker.queue.ledger import register_worker
from worker.queue.loop import WorkerLoop
from worker.results.masks import decode_mask
from worker.service import SOLO_COMMAND, open_by_id, open_first
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[1]


class Night:
    """A ledger, its films, and one worker on it in this process."""

    def __init__(self, settings: Settings, database: Database, folder: Path) -> None:
        self.settings, self.database, self.folder = settings, database, folder
        self.skipped = 0.0
        registry.champion(database, settings)

    def films(self, count: int) -> None:
        films = self.folder / f"films-{count}"
        films.mkdir()
        for number in range(count):
            save(make_dataset(chest_pixels(seed=number)), films / f"{number:04d}.dcm")
        submit(self.database, self.settings, (films,), lane="icu")

    def add(self, version: int, **options: onnx.ModelProto) -> str:
        folder = make_chest_bundle(self.folder / f"chest-{version}", version, **options)
        return registry.add_bundle(self.database, self.settings, folder, actor="tester").key

    @contextmanager
    def worker(self) -> Iterator[SwappingEngines]:
        """A worker until the end of the block; a fault of its loop comes out of it."""
        first = open_first(self.settings, self.database)
        worker = register_worker(self.database, self.settings, "w1", bundle_id=first.bundle_id)
        engines = SwappingEngines(
            self.database, first, partial(open_by_id, self.settings, self.database), worker=worker, clock=self.clock
        )
        loop = WorkerLoop(self.settings, self.database, worker, engines, solo_command=SOLO_COMMAND)
        stop, faults = threading.Event(), []

        def run() -> None:
            try:
                loop.run(stop)
            except BaseException as fault:
                faults.append(fault)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield engines
        finally:
            stop.set()
            thread.join(120)
            engines.close()
            assert not thread.is_alive() and not faults, faults

    def clock(self) -> float:
        return self.skipped

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something; a film that ends badly meanwhile is said at once, not waited for."""

        def look() -> object:
            assert not (bad := self.bad_ends()), f"instead of {what}: {bad}"
            return condition()

        wait_until(look, what)

    def bad_ends(self) -> list[str]:
        job = tables.job
        with self.database.read() as connection:
            rows = connection.execute(select(job).where(job.c.state.in_(["failed", "ineligible", "delayed"])))
            return [f"job {row.id} {row.state}: {row.code} {row.detail}" for row in rows]

    def count(self, *states: str, bundle: str | None = None) -> int:
        query = select(func.count()).select_from(tables.job).where(tables.job.c.state.in_(states))
        if bundle is not None:
            query = query.where(tables.job.c.bundle_id == self.bundle_id(bundle))
        with self.database.read() as connection:
            return connection.scalar(query) or 0

    def bundle_id(self, key: str) -> int:
        return registry.find_bundle(self.database, self.settings, key).id

    def serving(self) -> int:
        with self.database.read() as connection:
            return connection.scalar(select(tables.worker.c.bundle_id)) or 0

    def refusals(self) -> list[str]:
        event = tables.audit_event
        with self.database.read() as connection:
            rows = connection.execute(select(event).where(event.c.action == "bundle refused").order_by(event.c.id))
            return [f"{row.subject}: {row.detail['reason']}" for row in rows]

    def start_worker(self, name: str) -> subprocess.Popen[bytes]:
        """A worker as people start it."""
        settings = {
            "PRECISION": "fp32", "DECODERS": 1, "CLAIM_SIZE": 4, "POLL_SECONDS": 0.2, "LEASE_SECONDS": 3.0,
            "DISK_RESERVE": 0,
        }  # fmt: skip
        environment = {**os.environ, **{f"CARINA_{key}": str(value) for key, value in settings.items()}}
        command = [sys.executable, "-m", "worker.cli", "worker", "--name", name]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)

    def champion(self) -> int:
        alias = tables.bundle_alias
        with self.database.read() as connection:
            return connection.execute(select(alias.c.bundle_id).where(alias.c.alias == "champion")).scalar_one()

    def run_suspect(self, lease_id: str) -> None:
        """The child that a worker starts."""
        # Its standard input closes when its parent ends, and it with it.
        with subprocess.Popen([*SOLO_COMMAND, lease_id], cwd=ROOT, stdin=subprocess.PIPE) as child:
            assert child.wait(120) == 0

    def check_every_result(self) -> Counter[str]:
        """Each mask is that of the bundle under whose name it stands; returns how many there are of each."""
        stored = (
            select(tables.bundle.c.version, tables.segmentation)
            .join(tables.job, tables.job.c.id == tables.segmentation.c.job_id)
            .join(tables.bundle, tables.bundle.c.id == tables.job.c.bundle_id)
        )
        found: Counter[str] = Counter()
        with self.database.read() as connection:
            for row in connection.execute(stored):
                mask = decode_mask(row.raw_mask or row.mask, (row.height, row.width))
                assert np.array_equal(mask, labels_of(int(row.version)))
                found[f"chest:{row.version}"] += 1
        assert check_invariants(self.database) == []
        return found


def decoders() -> list[int]:
    """The decoder children of this process."""
    return [child.pid for child in psutil.Process().children() if "worker.film.decoder" in " ".join(_words(child))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def shown(night: Night) -> Counter[str]:
    with night.database.read() as connection:
        return Counter(connection.scalars(select(published_result.c.bundle)))
