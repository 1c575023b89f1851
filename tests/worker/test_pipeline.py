from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import chest_pixels, make_dataset, save, to_bytes
from passthrough import PassthroughBundle

from schema.tables import JobKind
from worker.errors import FilmError, MachineError
from worker.film.pool import DecoderPool
from worker.inference.engines.base import EngineError
from worker.pipeline import CONCLUDE, Pipeline
from worker.queue.outcomes import ClaimedJob, SourceReference

SIZE = 256
STEPS = (
    {"step": "min_max"},
    {"step": "resize", "height": SIZE, "width": SIZE, "mode": "area", "fit": "stretch"},
)


@pytest.fixture(scope="module")
def bundle() -> PassthroughBundle:
    return PassthroughBundle(size=SIZE, preprocess=STEPS)


@pytest.fixture(scope="module")
def pool(bundle: PassthroughBundle) -> Iterator[DecoderPool]:
    pool = DecoderPool(bundle.plan, size=2)
    yield pool
    pool.close()


@pytest.fixture(params=[1, 3], ids=["one by one", "batches of three"])
def pipeline(
    bundle: PassthroughBundle, pool: DecoderPool, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Pipeline]:
    def resolve(source: SourceReference) -> Path:
        if source.root == "elsewhere":
            raise FilmError("SOURCE_MISSING", "the root 'elsewhere' is not known on this machine")
        return tmp_path / source.path

    pipeline = Pipeline(bundle, 1, pool, resolve, decoders=2, engine_batch=request.param)
    yield pipeline
    pipeline.close()


def job(number: int, path: str, *, kind: JobKind = JobKind.PROCESS, root: str = "local") -> ClaimedJob:
    return ClaimedJob(number, kind, number, number, SourceReference(root, path, "", 0, 0), 1, 1, 0)


def nothing() -> None:
    """Progress that nobody watches."""


def test_each_job_gets_its_own_outcome_whatever_happens_to_the_others(pipeline: Pipeline, tmp_path: Path) -> None:
    for number in (1, 4, 5, 6):
        save(make_dataset(chest_pixels(seed=number)), tmp_path / f"{number}.dcm")
    content = to_bytes(make_dataset(chest_pixels()))
    (tmp_path / "2.dcm").write_bytes(content[:-9000])
    jobs = [
        job(1, "1.dcm"),
        job(2, "2.dcm"),
        job(3, "3.dcm"),
        job(4, "4.dcm", kind=JobKind.VERIFY),
        job(5, "5.dcm", root="elsewhere"),
        job(6, "6.dcm"),
    ]
    moved = []
    outcomes = pipeline.process(jobs, lambda: moved.append(1))

    assert [outcome.job.id for outcome in outcomes] == [1, 2, 3, 4, 5, 6]
    assert [outcome.error and outcome.error.code for outcome in outcomes] == [
        None, "TRUNCATED_PIXELS", "SOURCE_MISSING", None, "SOURCE_MISSING", None,
    ]  # fmt: skip
    assert outcomes[3].content is not None
    assert outcomes[3].result is None
    assert len(moved) >= len(jobs)
    for outcome in (outcomes[0], outcomes[5]):
        assert outcome.result is not None
        assert outcome.result.segmentation is not None
        assert outcome.result.segmentation.cleaned.shape == (SIZE, SIZE)
        assert len(outcome.result.measurements) == 8
        assert len(outcome.result.scores) == 10
        assert {name for name, _ in CONCLUDE} < set(outcome.result.seconds)
        assert outcome.result.engine["backend"]


def test_a_film_the_engine_refuses_is_alone_in_its_trouble(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_dataset(chest_pixels(seed=1)), tmp_path / "1.dcm")
    save(make_dataset(np.full((120, 100), 7, np.uint16) + chest_pixels(seed=2)), tmp_path / "2.dcm")
    for engine in pipeline.bundle.engines.values():
        run = engine.run
        bad = {}

        def refuse(batch: np.ndarray, run=run, bad=bad) -> dict[str, np.ndarray]:
            # The first film this engine meets is the bad one, also when it comes again alone.
            bad.setdefault("film", batch[0].tobytes())
            if any(film.tobytes() == bad["film"] for film in batch):
                raise EngineError("the engine returned values that are not numbers")
            return run(batch)

        monkeypatch.setattr(engine, "run", refuse)
        break
    outcomes = pipeline.process([job(1, "1.dcm"), job(2, "2.dcm")], nothing)
    codes = sorted(outcome.error.code if outcome.error else "" for outcome in outcomes)
    assert codes == ["", "ENGINE_FAILED"]


def test_a_fault_of_ours_is_one_films_error_and_leaks_nothing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(make_dataset(chest_pixels()), tmp_path / "1.dcm")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/Doe^Jane.dcm")

    monkeypatch.setattr("worker.findings.measurements.measure", broken)
    (outcome,) = pipeline.process([job(1, "1.dcm")], nothing)
    assert outcome.error is not None
    assert outcome.error.code == "FINDINGS_FAILED"
    assert "RuntimeError" in str(outcome.error)
    assert "Doe" not in str(outcome.error) + caplog.text


def test_a_dead_decoder_is_reported_as_a_crash(
    bundle: PassthroughBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.film.pool import DecoderDied

    save(make_dataset(chest_pixels()), tmp_path / "1.dcm")
    pool = DecoderPool(bundle.plan, size=1)

    def die(_source: object) -> None:
        raise DecoderDied(-11)

    monkeypatch.setattr(pool, "prepare", die)
    pipeline = Pipeline(bundle, 1, pool, lambda source: tmp_path / source.path, decoders=1)
    (outcome,) = pipeline.process([job(1, "1.dcm")], nothing)
    pipeline.close()
    pool.close()
    assert outcome.crash == -11
    assert outcome.error is None


def test_without_any_decoder_no_film_is_judged(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_dataset(chest_pixels()), tmp_path / "1.dcm")
    monkeypatch.setattr("worker.film.pool.PROTOCOL", 1)
    with pytest.raises(MachineError, match="start the worker again"):
        pipeline.process([job(1, "1.dcm")], nothing)


def test_jobs_are_not_changed_by_processing(pipeline: Pipeline, tmp_path: Path) -> None:
    save(make_dataset(chest_pixels()), tmp_path / "1.dcm")
    before = job(1, "1.dcm")
    (outcome,) = pipeline.process([before], nothing)
    assert outcome.job == replace(before)
