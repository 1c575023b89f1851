"""From a bundle directory to engines that are ready to run.

Every member is compiled for this machine in the fastest precision that passes the parity
gate, or loaded from the engine cache where that was done before.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from schema.bundle import MANIFEST_NAME, BundleError, Manifest, Member, read_manifest, sha256_of
from worker.inference.cache import EngineKey, read_engine, write_engine
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import Backend, Engine, EngineBuildError, EngineError, Precision
from worker.inference.parity import ParityThresholds, check_parity

log = logging.getLogger(__name__)

#: The bundle that comes with Carina: trained on synthetic films, for demonstration only.
PACKAGED_BUNDLE = Path(str(files("worker"))) / "bundles" / "phantom-1"

_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: The outputs of a task and their number of dimensions; the second one counts the classes.
_OUTPUTS: dict[str, tuple[tuple[str, int], ...]] = {
    "segmentation": (("probabilities", 4),),
    "classification": (("probabilities", 2), ("cam", 4)),
}


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle with an engine per member.

    Attributes
    ----------
    sha256
        SHA-256 of ``bundle.json``: the bundle's identity.
    engines
        Member name → engine, warmed up.
    notes
        What a person should know about how it was loaded: refused precisions, what came from
        the cache, a cache that cannot be written.
    parity
        Member name → parity report of its engine, as in ``engine.json``.
    """

    manifest: Manifest
    directory: Path
    sha256: str
    engines: dict[str, Engine]
    notes: tuple[str, ...]
    parity: dict[str, dict[str, Any]]

    @property
    def engine_description(self) -> dict[str, Any]:
        """What computed a result, for its row.

        ``backend``, ``backend_version``, ``device``, ``precision`` (``"bf16+fp32"`` where members
        differ) and ``members``: member name → precision.
        """
        first = next(iter(self.engines.values()))
        return {
            "backend": first.backend,
            "backend_version": first.backend_version,
            "device": first.device,
            "precision": "+".join(sorted({engine.precision for engine in self.engines.values()})),
            "members": {name: str(engine.precision) for name, engine in self.engines.items()},
        }

    @property
    def plan(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """Member name → its ordered preprocessing steps, for the decoder."""
        return {member.name: member.preprocess for member in self.manifest.members}

    def close(self) -> None:
        """Release the engines; waits for running batches, may be called again."""
        for engine in self.engines.values():
            engine.close()


def load_bundle(
    directory: Path,
    *,
    home: Path,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    thresholds: ParityThresholds | None = None,
) -> LoadedBundle:
    """Verify a bundle and make an engine for each of its members.

    Parameters
    ----------
    directory
        The bundle; every file is compared with the manifest's SHA-256.
    home
        ``CARINA_HOME``; compiled engines are kept in ``home/engines``.
    backend
        A name of :data:`worker.inference.engines.backends.BACKENDS`, or ``auto``.
    precision
        ``auto`` takes the fastest the device has and the parity gate allows; a name starts
        there and goes on to the slower ones.
    threads
        Threads of one inference; None leaves it to the backend.

    Raises
    ------
    BundleError
        The bundle is damaged, its networks do not fit its manifest, this machine has no
        backend, or no precision passes the parity gate.
    """
    manifest = read_manifest(directory)
    _check_member_names(manifest)
    try:
        opened = open_backend(backend)
    except EngineBuildError as error:
        raise BundleError(f"Bundle {manifest.key} cannot be loaded. {error}") from error
    loader = _Loader(
        manifest=manifest,
        directory=directory,
        bundle_sha256=sha256_of(directory / MANIFEST_NAME),
        home=home,
        backend=opened,
        threads=threads,
        thresholds=thresholds or ParityThresholds(),
    )
    candidates = loader.candidates(precision)
    engines: dict[str, Engine] = {}
    try:
        for member in manifest.members:
            engines[member.name] = loader.engine_for(member, candidates)
        _check_grids(manifest, engines)
    except BaseException:
        for engine in engines.values():
            engine.close()
        raise
    return LoadedBundle(manifest, directory, loader.bundle_sha256, engines, tuple(loader.notes), loader.parity)


@dataclass
class _Loader:
    """Makes one bundle's engines and collects what to tell about it."""

    manifest: Manifest
    directory: Path
    bundle_sha256: str
    home: Path
    backend: Backend
    threads: int | None
    thresholds: ParityThresholds
    notes: list[str] = field(default_factory=list)
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)

    def candidates(self, wanted: str) -> tuple[Precision, ...]:
        """The precisions to try, in order."""
        supported = self.backend.supported_precisions()
        if wanted == "auto":
            return supported
        try:
            precision = Precision(wanted)
        except ValueError:
            raise BundleError(f"There is no precision {wanted!r}: choose auto, {', '.join(Precision)}.") from None
        if precision in supported:
            return supported[supported.index(precision) :]
        self._warn(f"{precision} is not available with {self.backend.name} on {self.backend.device}, trying the others")
        return supported

    def engine_for(self, member: Member, candidates: tuple[Precision, ...]) -> Engine:
        """The first candidate that is cached as good, or that builds and passes the gate."""
        refusals = []
        for precision in candidates:
            try:
                return self._cached(member, precision) or self._built(member, precision)
            except EngineBuildError as error:
                refusals.append(f"{precision} refused: {str(error).rstrip('.')}")
                self._warn(f"{member.name}: {refusals[-1]}")
        raise BundleError(
            f"Bundle {self.manifest.key}: no engine for {member.name} on this machine. {'. '.join(refusals)}. "
            "Run: carina doctor"
        )

    def _cached(self, member: Member, precision: Precision) -> Engine | None:
        record = read_engine(self.home, self._key(member, precision))
        if record is None:
            return None
        if not record.passed or record.compiled is None:
            raise EngineBuildError(f"{'; '.join(record.parity['sentences'])} (tested {record.built_at})")
        try:
            engine = self.backend.load(record.compiled, precision, threads=self.threads)
            engine.warm_up()
        except (EngineBuildError, EngineError) as error:
            self._warn(f"{member.name}: the cached {precision} engine does not load, building again: {error}")
            return None
        self.parity[member.name] = record.parity
        self._tell(f"{member.name}: {precision} from the cache, parity passed {record.built_at}")
        return engine

    def _built(self, member: Member, precision: Precision) -> Engine:
        engine = self.backend.compile(self.directory / member.onnx, precision, threads=self.threads)
        try:
            _check_outputs(self.manifest, member, engine)
            report = check_parity(engine, member, self.manifest, self.directory, self.thresholds)
            if not report.engine_failure:
                self._keep(member, precision, engine, report.passed, report.to_json())
            if not report.passed:
                raise EngineBuildError("; ".join(report.sentences))
        except BaseException:
            engine.close()
            raise
        self.parity[member.name] = report.to_json()
        self._tell(f"{member.name}: {precision} built, parity passed on {report.films} films")
        return engine

    def _keep(self, member: Member, precision: Precision, engine: Engine, passed: bool, parity: dict[str, Any]) -> None:
        try:
            write_engine(
                self.home, self._key(member, precision), spec=engine.spec.to_json(), parity=parity,
                compiled=engine.export() if passed else None,
            )  # fmt: skip
        except OSError as error:
            self._warn(
                f"{member.name}: the engine cache cannot be written ({error.strerror}), the next start builds again"
            )

    def _key(self, member: Member, precision: Precision) -> EngineKey:
        return EngineKey(
            bundle_sha256=self.bundle_sha256,
            member=member.name,
            onnx_sha256=self.manifest.files[member.onnx],
            backend=self.backend.name,
            backend_version=self.backend.version,
            device=self.backend.device,
            capabilities=self.backend.capabilities,
            precision=precision,
            gate=self.thresholds.to_json(),
        )

    def _tell(self, note: str) -> None:
        self.notes.append(note)
        log.info("bundle %s: %s", self.manifest.key, note)

    def _warn(self, note: str) -> None:
        self.notes.append(note)
        log.warning("bundle %s: %s", self.manifest.key, note)


def _check_member_names(manifest: Manifest) -> None:
    counts = Counter(member.name for member in manifest.members)
    bad = sorted(name for name, count in counts.items() if count > 1 or not _MEMBER_NAME.fullmatch(name))
    if bad:
        raise BundleError(
            f"Bundle {manifest.key}: member names must be distinct and made of letters, digits, '.', '_' and '-': "
            f"{', '.join(map(repr, bad))}."
        )


def _check_outputs(manifest: Manifest, member: Member, engine: Engine) -> None:
    classes = len(manifest.regions) if member.task == "segmentation" else len(manifest.findings)
    problems = []
    if engine.spec.inputs[0].shape != (None, member.channels, member.height, member.width):
        problems.append(f"takes {engine.spec.inputs[0]}")
    for name, dimensions in _OUTPUTS[member.task]:
        output = engine.spec.output(name)
        if output is None or len(output.shape) != dimensions or output.shape[:2] != (None, classes):
            problems.append(f"has {output}" if output else f"has no output {name}")
    if problems:
        raise BundleError(
            f"Bundle {manifest.key}: {member.onnx} does not fit the manifest, which says {classes} classes from "
            f"(batch, {member.channels}, {member.height}, {member.width}): it {', '.join(problems)}."
        )


def _check_grids(manifest: Manifest, engines: dict[str, Engine]) -> None:
    grids = {
        output.shape[2:]
        for member in manifest.members_of("segmentation")
        if (output := engines[member.name].spec.output("probabilities"))
    }
    if len(grids) > 1:
        raise BundleError(
            f"Bundle {manifest.key}: its segmentation members have different grids: {sorted(map(str, grids))}."
        )
