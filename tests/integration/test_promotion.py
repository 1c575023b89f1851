"""Another bundle is put into service while the night runs: no film is lost, none is read twice."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chest_bundle import make_chest_bundle, segmentation_network
from exchanged_bundles import Night, decoders, shown
from ledger_rows import age_leases, job_row, register_films
from sqlalchemy import func, select, text

from schema import tables
from schema.database import Database
from schema.view_tables import film_state
from worker import service
from worker.inference import registry
from worker.inference.bundles import LoadedBundle, load_bundle
from worker.inference.engines.base import Engine
from worker.inference.promotion import promote
from worker.inference.swap import FIRST_REST_SECONDS, SwappingEngines
from worker.intake.scan import submit
from worker.queue.leases import sweep
from worker.queue.ledger import claim, register_worker
from worker.queue.shadow import open_shadow_jobs
from worker.service import open_by_id, open_first
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FILMS = 300
KILLS = 12


@pytest.fixture
def settings(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    # For the child that reads a suspect.
    monkeypatch.setenv("CARINA_HOME", str(home))
    monkeypatch.setenv("CARINA_DATABASE_URL", database_url)
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


@pytest.fixture
def night(settings: Settings, database: Database, tmp_path: Path) -> Night:
    return Night(settings, database, tmp_path)


@pytest.mark.timeout(600)
def test_promotion_and_rollback_during_a_night_lose_no_film_and_read_none_twice(night: Night) -> None:
    night.films(FILMS)
    second = night.add(2)
    with night.worker():
        night.until(lambda: night.count("done") >= 40, "the first films")
        promote(night.database, night.settings, second, actor="tester")
        night.until(lambda: night.serving() == night.bundle_id(second), "the worker to change over")
        night.until(lambda: night.count("done", bundle=second) >= 40, "films of the new bundle")
        assert registry.roll_back(night.database, night.settings, actor="tester").key == "chest:1"
        night.until(lambda: night.serving() == night.bundle_id("chest:1"), "the worker to change back")
        night.until(lambda: night.count("done") == FILMS, "all films")
        # Of what was exchanged nothing is left: each bundle brought decoders of its own.
        night.until(lambda: 0 < len(decoders()) <= night.settings.decoders, "the former decoders to end")
    assert decoders() == []
    found = night.check_every_result()
    assert found.total() == FILMS and found[second] >= 40 and found["chest:1"] >= 80
    assert night.refusals() == []
    with night.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.job)) == FILMS
        assert connection.scalar(select(func.count()).select_from(tables.attempt)) == FILMS
        assert connection.scalar(select(func.count()).select_from(tables.lease)) == 0
        engines = set(connection.scalars(select(tables.engine.c.bundle_id)))
    assert engines == {night.bundle_id("chest:1"), night.bundle_id(second)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 4])
def test_kill_9_while_bundles_come_and_go(night: Night, seed: int) -> None:
    """Two workers as people start them, killed again and again, while another bundle is promoted every other second."""
    night.films(FILMS)
    keys = {night.bundle_id(key): key for key in ("chest:1", night.add(2))}
    dice = random.Random(seed)
    workers: dict[str, subprocess.Popen[bytes]] = {}
    kills = promotions = 0
    try:
        while night.count("ready", "leased", "delayed"):
            for name in ("w1", "w2"):
                if name not in workers or workers[name].poll() is not None:
                    workers[name] = night.start_worker(name)
            time.sleep(dice.uniform(0.2, 1.5))
            if kills < KILLS and dice.random() < 0.5:
                workers[dice.choice(sorted(workers))].kill()
                kills += 1
            if promotions < 2 * KILLS and dice.random() < 0.5:
                before = night.champion()
                (other,) = keys.keys() - {before}
                promote(night.database, night.settings, keys[other], actor="tester")
                open_shadow_jobs(night.database, before, share=0.2)
                promotions += 1
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    found = night.check_every_result()
    assert kills == KILLS and min(found[key] for key in keys.values()) > 20
    # Each film is shown once, with the bundle in service wherever that has read it; none failed.
    assert shown(night).total() == FILMS
    assert night.count("failed") == 0


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
        night.until(lambda: night.count("done") >= 4, "the first films")
        key = spoil(night, monkeypatch)
        # Around the gates, as another machine would do it where the bundle is well.
        registry.promote_bundle(night.database, night.settings, key, actor="tester")
        night.until(night.refusals, "the worker to refuse it")
        night.until(lambda: night.count("done") == 24, "all films")
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
        night.until(night.refusals, "the worker to miss them")
        registry.add_bundle(night.database, night.settings, night.folder / "chest-2", actor="tester")
        night.skipped += FIRST_REST_SECONDS
        night.until(lambda: engines.serving == key, "the worker to find them")
        night.until(lambda: night.serving() == night.bundle_id(key), "its row to say so")


def no_memory_for_it(night: Night, monkeypatch: pytest.MonkeyPatch) -> str:
    key = night.add(2)
    promoted = registry.bundle_folder(night.settings, registry.find_bundle(night.database, night.settings, key).sha256)

    def load(directory: Path, **options: Any) -> LoadedBundle:
        if directory == promoted:
            raise MemoryError
        return load_bundle(directory, **options)

    monkeypatch.setattr(service, "load_bundle", load)
    return key


@pytest.mark.parametrize("spoil", [damaged, no_memory_for_it])
def test_a_worker_that_starts_with_a_broken_champion_goes_on_with_the_bundle_before(
    night: Night,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Night, pytest.MonkeyPatch], str],
) -> None:
    night.films(4)
    key = spoil(night, monkeypatch)
    registry.promote_bundle(night.database, night.settings, key, actor="tester")
    with night.worker() as engines:
        night.until(lambda: night.count("done") == 4, "all films")
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
        night.until(lambda: night.count("done") == 30, "the night")
        assert open_shadow_jobs(night.database, night.bundle_id(second), last=20).opened == 20
        night.until(lambda: night.count("done", bundle=second) == 20, "the shadow jobs")
        assert night.check_every_result() == {"chest:1": 30, second: 20}
        assert shown(night) == {"chest:1": 30}
        promote(night.database, night.settings, second, actor="tester")
        assert shown(night) == {"chest:1": 10, second: 20}
        # Submitted again: what it read in the shadow is not read again.
        submit(night.database, night.settings, (night.folder / "films-30",), lane="icu")
        night.until(lambda: shown(night) == {second: 30}, "the other films")
    assert night.check_every_result() == {"chest:1": 30, second: 30}
    with night.database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.attempt)) == 60
        assert set(connection.scalars(select(film_state.c.state))) == {"done"}


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
