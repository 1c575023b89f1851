"""One batch, from files to outcomes.

Two lists say what happens to a film. ``PREPARE`` runs in a decoder child, one film at a
time (:mod:`worker.film.decoder`); ``CONCLUDE`` runs here after the networks.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from schema.bundle import Manifest
from schema.tables import JobKind
from worker.errors import FilmError, MachineError
from worker.film.pool import DecoderDied, DecoderPool
from worker.film.prepared import PreparedFilm
from worker.film.source import FilmSource
from worker.findings import eligibility, flags, measurements, scores
from worker.findings.postprocess import PostprocessSettings, postprocess
from worker.inference.networks import Bundle, NetworkOutput, infer
from worker.queue.outcomes import ClaimedJob, Content, Outcome, SourceReference
from worker.results.result import FilmResult, FindingScore, Flag, Heatmap, Measurement, Segmentation

log = logging.getLogger(__name__)

#: What the decoder child does with one film, in this order.
PREPARE = ("read", "guard", "decode", "normalise", "content hash", "preprocess per member")


@dataclass
class FilmInWork:
    """A film between the networks and the database; each step of CONCLUDE adds to it."""

    prepared: PreparedFilm
    output: NetworkOutput
    segmentation: Segmentation | None = None
    measurements: list[Measurement] = field(default_factory=list)
    scores: list[FindingScore] = field(default_factory=list)
    heatmap: Heatmap | None = None
    verdict: eligibility.Verdict | None = None
    flags: list[Flag] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Conclusion:
    """What CONCLUDE needs of the bundle."""

    manifest: Manifest
    settings: PostprocessSettings


def clean_masks(film: FilmInWork, bundle: Conclusion) -> None:
    """Label map from probabilities, carina ladder and clean-up (Holste et al., section 2.3)."""
    film.segmentation = postprocess(film.output.probabilities, bundle.manifest.region_definitions, bundle.settings)


def measure_regions(film: FilmInWork, bundle: Conclusion) -> None:
    """Area, components and place of each region."""
    assert film.segmentation is not None
    film.measurements = measurements.measure(
        film.segmentation, film.output.probabilities, bundle.manifest.region_definitions, film.prepared.geometry
    )


def score_findings(film: FilmInWork, bundle: Conclusion) -> None:
    """Probabilities against the bundle's thresholds, and heat maps."""
    film.scores = scores.score(film.output, bundle.manifest)
    film.heatmap = scores.heatmap(film.output, bundle.manifest)


def judge_picture(film: FilmInWork, bundle: Conclusion) -> None:
    """Whether this is a frontal chest film: the picture decides, the header is a witness."""
    assert film.segmentation is not None
    film.verdict = eligibility.judge(
        film.segmentation, film.measurements, film.prepared.facts, bundle.manifest.region_definitions
    )


def raise_flags(film: FilmInWork, bundle: Conclusion) -> None:
    """Failure flags on the raw and the cleaned map, and what was odd about the input."""
    assert film.segmentation is not None and film.verdict is not None
    film.flags = flags.evaluate(
        flags.FlagContext(
            segmentation=film.segmentation,
            measurements=film.measurements,
            probabilities=film.output.probabilities,
            regions=bundle.manifest.region_definitions,
            scores=film.scores,
            facts=film.prepared.facts,
            observations=film.prepared.observations,
            settings=bundle.settings,
            further=film.verdict.flags,
        )
    )


Step = Callable[[FilmInWork, Conclusion], None]

#: What happens to one film after the networks, in this order.
CONCLUDE: tuple[tuple[str, Step], ...] = (
    ("postprocess", clean_masks),
    ("measure", measure_regions),
    ("score", score_findings),
    ("eligibility", judge_picture),
    ("flags", raise_flags),
)


class Pipeline:
    """Turns claimed jobs into outcomes with one loaded bundle.

    Parameters
    ----------
    bundle, bundle_id
        The loaded bundle and its row in the database.
    pool
        Decoder children; closed by whoever made it.
    resolve
        Source reference → path on this machine; raises FilmError.
    decoders
        Films prepared at the same time: the size of ``pool``.
    engine_batch
        Films given to the engine together.
    """

    def __init__(
        self,
        bundle: Bundle,
        bundle_id: int,
        pool: DecoderPool,
        resolve: Callable[[SourceReference], Path],
        *,
        decoders: int,
        engine_batch: int = 1,
    ) -> None:
        self.bundle = bundle
        self.bundle_id = bundle_id
        self._pool = pool
        self._resolve = resolve
        self._engine_batch = engine_batch
        self._conclusion = Conclusion(bundle.manifest, PostprocessSettings.from_manifest(bundle.manifest.postprocess))
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="prepare")

    def close(self) -> None:
        """Stop the preparing threads; films in preparation finish first."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        """Work through ``jobs``; one outcome each, whatever happens to the others."""
        outcomes: dict[int, Outcome] = {}
        for ready in self._prepared_batches(jobs, outcomes, progress):
            for job, outcome in self._conclude(ready):
                outcomes[job.id] = outcome
                progress()
        return [outcomes[job.id] for job in jobs]

    def _prepared_batches(
        self, jobs: Sequence[ClaimedJob], outcomes: dict[int, Outcome], progress: Callable[[], None]
    ) -> Iterator[list[tuple[ClaimedJob, PreparedFilm]]]:
        """Yield engine batches as films become ready; what needs no engine goes straight to ``outcomes``."""
        waiting: dict[Future[PreparedFilm], ClaimedJob] = {
            self._threads.submit(self._prepare, job.source): job for job in jobs
        }
        ready: list[tuple[ClaimedJob, PreparedFilm]] = []
        for future in as_completed(waiting):
            job = waiting[future]
            progress()
            try:
                film = future.result()
            except FilmError as error:
                outcomes[job.id] = Outcome(job, error=error)
                continue
            except DecoderDied as death:
                outcomes[job.id] = Outcome(job, crash=death.exit_code)
                continue
            except MachineError:
                raise
            except Exception as error:
                outcomes[job.id] = Outcome(job, error=_unexpected("PREPROCESS_FAILED", job, error))
                continue
            if job.kind is JobKind.VERIFY:
                outcomes[job.id] = Outcome(job, content=Content(film.file_hash, film.content_hash))
                continue
            ready.append((job, film))
            if len(ready) == self._engine_batch:
                yield ready
                ready = []
        if ready:
            yield ready

    def _prepare(self, source: SourceReference) -> PreparedFilm:
        return self._pool.prepare(FilmSource(self._resolve(source), source.member or None))

    def _conclude(self, batch: list[tuple[ClaimedJob, PreparedFilm]]) -> Iterator[tuple[ClaimedJob, Outcome]]:
        started = time.perf_counter()
        outputs = infer(self.bundle, [film for _, film in batch], engine_batch=self._engine_batch)
        networks = (time.perf_counter() - started) / len(batch)
        for (job, prepared), output in zip(batch, outputs, strict=True):
            if not isinstance(output, NetworkOutput):
                yield job, Outcome(job, error=FilmError("ENGINE_FAILED", str(output)))
                continue
            film = FilmInWork(prepared, output, seconds={**prepared.seconds, "networks": networks})
            try:
                yield job, Outcome(job, result=self._finish(film))
            except Exception as error:
                yield job, Outcome(job, error=_unexpected("FINDINGS_FAILED", job, error))

    def _finish(self, film: FilmInWork) -> FilmResult:
        for name, step in CONCLUDE:
            started = time.perf_counter()
            step(film, self._conclusion)
            film.seconds[name] = time.perf_counter() - started
        assert film.verdict is not None
        return FilmResult(
            file_hash=film.prepared.file_hash,
            content_hash=film.prepared.content_hash,
            geometry=film.prepared.geometry,
            facts=film.prepared.facts,
            segmentation=film.segmentation,
            measurements=film.measurements,
            scores=film.scores,
            heatmap=film.heatmap,
            flags=film.flags,
            ineligible_code=film.verdict.code,
            ineligible_detail=film.verdict.detail,
            engine=self.bundle.engine_description,
            seconds={name: round(value, 5) for name, value in film.seconds.items()},
        )


def _unexpected(code: str, job: ClaimedJob, error: Exception) -> FilmError:
    """A fault of ours on one film. The exception's own words may hold a path or a name: they stay here."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
    log.error("job %d: %s", job.id, place)
    return FilmError(code, place)
