"""Another bundle is put into service while the night runs: no film is lost, none is read twice."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from chest_bundle import labels_of, make_chest_bundle, segmentation_network
from dicom_files import chest_pixels, make_dataset, save
from ledger_rows import age_leases, job_row, register_films
from sqlalchemy import func, select, text
from waiting import wait_until

from schema import tables
from schema.database import Database
from schema.view_tables import film_state, published_result
from worker.inference import registry
from worker.inference.engines.base import Engine
from worker.inference.promotion import promote
from worker.inference.swap import FIRST_REST_SECONDS, SwappingEngines
from worker.intake.scan import submit
from worker.queue.invariants import check_invariants
from worker.queue.leases import sweep
from worker.queue.ledger import claim, register_worker
from worker.queue.loop import WorkerLoop
from worker.queue.shadow import open_shadow_jobs
from worker.results.masks import decode_mask
from worker.service import SOLO_COMMAND, open_by_id, open_first
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FILMS = 300


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    return Settings(
        home=home,
        database_url=database_url,
        bundle=str(make_chest_bundle(tmp_path / "chest-1", 1)),
        disk_reserve=0,
        poll_seconds=0.05,
        decoders=2,
        claim_size=4,
        precision="fp32",
    )


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

    def run_suspect(self, lease_id: str) -> None:
        """The child that a worker starts."""
        environment = {**os.environ, "CARINA_HOME": str(self.settings.home)}
        environment["CARINA_DATABASE_URL"] = self.settings.database_url
        # Its standard input closes when its parent ends, and it with it.
        with subprocess.Popen([*SOLO_COMMAND, lease_id], cwd=ROOT, env=environment, stdin=subprocess.PIPE) as child:
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


@pytest.fixture
def night(settings: Settings, database: Database, tmp_path: Path) -> Night:
    return Night(settings, database, tmp_path)


@pytest.mark.timeout(600)
def test_promotion_and_rollback_during_a_night_lose_no_film_and_read_none_twice(night: Night) -> None:
    night.films(FILMS)
    second = night.add(2)
    with night.worker():
        wait_until(lambda: night.count("done") >= 40, "the first films")
        promote(night.database, night.settings, second, actor="tester")
        wait_until(lambda: night.serving() == night.bundle_id(second), "the worker to change over")
        wait_until(lambda: night.count("done", bundle=second) >= 40, "films of the new bundle")
        assert registry.roll_back(night.database, night.settings, actor="tester").key == "chest:1"
        wait_until(lambda: night.serving() == night.bundle_id("chest:1"), "the worker to change back")
        wait_until(lambda: night.count("done") == FILMS, "all films")
    found = night.check_every_result()
    assert found.total() == FILMS and found[second] >= 40 and found["chest:1"] >= 80
    assert night.refusals() == []
    with night.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.job)) == FILMS
        assert connection.scalar(select(func.count()).select_from(tables.attempt)) == FILMS
        assert connection.scalar(select(func.count()).select_from(tables.lease)) == 0
        engines = set(connection.scalars(select(tables.engine.c.bundle_id)))
    assert engines == {night.bundle_id("chest:1"), night.bundle_id(second)}


def damaged(night: Night, monkeypatch: pytest.MonkeyPatch) -> str:
    key = night.add(2)
    promoted = registry.find_bundle(night.database, night.settings, key)
    (registry.bundle_folder(night.settings, promoted.sha256) / "regions.onnx").write_bytes(b"torn")
    return key


def not_numbers(night: Night, monkeypatch: pytest.MonkeyPatch) -> str:
    return night.add(2, segmenter=segmentation_network(2, broken=True))


def other_shapes(night: Night, monkeypatch: pytest.MonkeyPatch) -> str:
    return night.add(2, segmenter=segmentation_network(2, regions=3))


def no_memory(night: Night, monkeypatch: pytest.MonkeyPatch) -> str:
    # From now on every engine that is loaded finds no memory; the one that serves is loaded already.
    def exhausted(engine: Engine) -> None:
        raise MemoryError

    monkeypatch.setattr(Engine, "warm_up", exhausted)
    return night.add(2)


def not_here(night: Night, monkeypatch: pytest.MonkeyPatch) -> str:
    key = night.add(2)
    promoted = registry.find_bundle(night.database, night.settings, key)
    folder = registry.bundle_folder(night.settings, promoted.sha256)
    folder.rename(folder.with_name("elsewhere"))
    return key


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damaged, "regions.onnx is not the file"),
        (not_numbers, "not finite"),
        (other_shapes, "does not fit the manifest"),
        (no_memory, "MemoryError"),
        (not_here, "This machine lacks the files of the bundle"),
    ],
)
def test_a_broken_candidate_leaves_the_champion_serving(
    night: Night, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Night, pytest.MonkeyPatch], str], words: str
) -> None:
    night.films(24)
    with night.worker() as engines:
        wait_until(lambda: night.count("done") >= 4, "the first films")
        key = spoil(night, monkeypatch)
        # Around the gates, as another machine would do it where the bundle is well.
        registry.promote_bundle(night.database, night.settings, key, actor="tester")
        wait_until(night.refusals, "the worker to refuse it")
        wait_until(lambda: night.count("done") == 24, "all films")
        assert engines.serving == "chest:1"
        assert night.serving() == night.bundle_id("chest:1")
        (refusal,) = night.refusals()
        assert refusal.startswith(f"{key}: ") and words in refusal
    assert night.check_every_result() == {"chest:1": 24}


def test_files_that_come_late_are_found_by_a_worker_that_waited_for_them(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    with night.worker() as engines:
        key = not_here(night, monkeypatch)
        registry.promote_bundle(night.database, night.settings, key, actor="tester")
        wait_until(night.refusals, "the worker to miss them")
        registry.add_bundle(night.database, night.settings, night.folder / "chest-2", actor="tester")
        night.skipped += FIRST_REST_SECONDS
        wait_until(lambda: engines.serving == key, "the worker to find them")
        wait_until(lambda: night.serving() == night.bundle_id(key), "its row to say so")


def test_a_worker_that_starts_with_a_broken_champion_goes_on_with_the_bundle_before(
    night: Night, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    night.films(4)
    key = damaged(night, monkeypatch)
    registry.promote_bundle(night.database, night.settings, key, actor="tester")
    with night.worker() as engines:
        wait_until(lambda: night.count("done") == 4, "all films")
        assert engines.serving == "chest:1"
    assert "cannot be loaded here, chest:1 serves instead" in caplog.text
    assert night.check_every_result() == {"chest:1": 4}


def test_a_suspect_is_read_with_the_bundle_its_lease_is_bound_to(night: Night) -> None:
    night.films(2)
    worker = register_worker(night.database, night.settings, "w0")
    first, options = night.bundle_id("chest:1"), {"revision": 1, "limit": 1, "lease_seconds": 60.0}
    assert claim(night.database, worker, bundle_id=first, **options) is not None
    age_leases(night.database)
    sweep(night.database)
    held = claim(night.database, worker, bundle_id=first, draw=lambda: 0.1, **options)
    assert held is not None and held.suspect
    promote(night.database, night.settings, night.add(2), actor="tester")
    night.run_suspect(held.lease_id)
    worker.release_name()
    row = job_row(night.database, held.jobs[0].id)
    assert (row.state, row.bundle_id, row.finished_lease) == ("done", first, held.lease_id)
    assert night.check_every_result() == {"chest:1": 1}


def test_a_bundle_on_trial_reads_in_the_shadow_and_is_published_when_it_is_promoted(night: Night) -> None:
    night.films(30)
    second = night.add(2)
    with night.worker():
        wait_until(lambda: night.count("done") == 30, "the night")
        assert open_shadow_jobs(night.database, night.bundle_id(second), last=20).opened == 20
        wait_until(lambda: night.count("done", bundle=second) == 20, "the shadow jobs")
        assert night.check_every_result() == {"chest:1": 30, second: 20}
        assert shown(night) == {"chest:1": 30}
        promote(night.database, night.settings, second, actor="tester")
        assert shown(night) == {"chest:1": 10, second: 20}
        # Submitted again: what it read in the shadow is not read again.
        submit(night.database, night.settings, (night.folder / "films-30",), lane="icu")
        wait_until(lambda: shown(night) == {second: 30}, "the other films")
    assert night.check_every_result() == {"chest:1": 30, second: 30}
    with night.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.attempt)) == 60
        assert set(connection.scalars(select(film_state.c.state))) == {"done"}


def shown(night: Night) -> Counter[str]:
    with night.database.read() as connection:
        return Counter(connection.scalars(select(published_result.c.bundle)))


#: As few columns as a film that waits needs.
_WAITING_FILMS = """
INSERT INTO instance (key, patient_key, study_key, series_key, held_out, created_at, generation, sop_class_uid,
    transfer_syntax_uid, modality, body_part, view_position, station, manufacturer, photometric_interpretation, sex)
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 100000)
SELECT 'film ' || n, '', '', '', false, CURRENT_TIMESTAMP, 1, '', '', '', '', '', '', '', '', '' FROM number
"""
_WAITING_JOBS = """
INSERT INTO job (instance_id, kind, state, priority, generation, published, attempts, crashes, detail, created_at)
SELECT id, 'process', 'ready', 10, 1, true, 0, 0, '', CURRENT_TIMESTAMP FROM instance WHERE key LIKE 'film %'
"""


def test_it_takes_effect_at_the_next_batch_with_100_000_films_waiting(night: Night) -> None:
    register_films(night.database, [f"film-{number}" for number in range(64)])
    with night.database.write() as connection:
        connection.execute(text(_WAITING_FILMS))
        connection.execute(text(_WAITING_JOBS))
    job = tables.job
    alike = (job.c.state, job.c.bundle_id, job.c.revision, job.c.attempts, job.c.started_at, job.c.finished_at)

    def waiting() -> list[tuple[object, ...]]:
        with night.database.read() as connection:
            rows = connection.execute(
                select(*alike, func.count()).where(job.c.state != "leased").group_by(*alike)
            ).all()
            return [tuple(row) for row in rows]

    worker = register_worker(night.database, night.settings, "w1")
    options = {"revision": 1, "limit": 16, "lease_seconds": 60.0, "draw": lambda: 0.9}
    first = open_first(night.settings, night.database)
    opener = partial(open_by_id, night.settings, night.database)
    with closing(SwappingEngines(night.database, first, opener, worker=worker)) as engines:
        bound = []
        for promoted in (None, night.add(2), "chest:1"):
            if promoted is not None:
                before = waiting()
                promote(night.database, night.settings, promoted, actor="tester")
                assert waiting() == before
            engines.look()
            with engines.hold() as processor:
                claimed = claim(night.database, worker, bundle_id=processor.bundle_id, **options)
            assert claimed is not None
            rows = [job_row(night.database, item.id) for item in claimed.jobs]
            bound.append({row.bundle_id for row in rows})
    worker.release_name()
    assert bound == [{night.bundle_id("chest:1")}, {night.bundle_id("chest:2")}, {night.bundle_id("chest:1")}]
    assert waiting() == [("ready", None, None, 0, None, None, 100_064 - 48)]
