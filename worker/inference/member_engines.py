"""One backend's engines for a bundle's members: from the cache, or built, gated and kept.

Precisions are tried fastest first. One that the bundle carries no network for, that does not build, or that
the gate refuses, falls to the next, and it is said; nothing is ever used that the gate did not pass.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from schema.bundle import BundleError, Manifest, Member
from worker.errors import CarinaError
from worker.inference.cache import (
    EngineKey,
    EngineRecord,
    UnusableEngineError,
    building,
    has_sidecar,
    read_engine,
    stored_engines,
    write_engine,
)
from worker.inference.engines.base import Backend, Engine, EngineBuildError, EngineError, Precision, reason_of
from worker.inference.parity import ParityReport, ParityThresholds, check_parity
from worker.inference.site_gate import check_site
from worker.inference.site_set import SiteFilms, site_films

log = logging.getLogger(__name__)

#: The outputs of a task and their number of dimensions; the second one counts the classes.
_OUTPUTS: dict[str, tuple[tuple[str, int], ...]] = {
    "segmentation": (("probabilities", 4),),
    "classification": (("probabilities", 2), ("cam", 4)),
}


class NoEngineError(Exception):
    """A backend has no engine for a member in any precision; the message is a phrase that names it and says why."""


class Notes(list[str]):
    """What a person should know about how a bundle was loaded, logged as it is noted."""

    def __init__(self, bundle: str) -> None:
        super().__init__()
        self._bundle = bundle

    def tell(self, note: str) -> None:
        """Note something that is as it should be."""
        self.append(note)
        log.info("bundle %s: %s", self._bundle, note)

    def warn(self, note: str) -> None:
        """Note something that costs speed, or that somebody should look at."""
        self.append(note)
        log.warning("bundle %s: %s", self._bundle, note)


@dataclass
class EngineMaker:
    """Makes the engines of one bundle on one backend.

    Attributes
    ----------
    may_build
        Whether an engine that is not in the cache is built, or counts as refused.
    parity
        Member name → parity report of the engine that was chosen, filled while engines are made.
    """

    manifest: Manifest
    directory: Path
    bundle_sha256: str
    home: Path
    backend: Backend
    threads: int | None
    thresholds: ParityThresholds
    may_build: bool
    notes: Notes
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)

    def precisions(self, wanted: Precision | None) -> tuple[Precision, ...]:
        """The precisions to try, in order: all, or ``wanted`` and the slower ones."""
        supported = self.backend.supported_precisions()
        if wanted is None:
            return supported
        if wanted in supported:
            return supported[supported.index(wanted) :]
        self.notes.warn(f"{wanted} is not available with {self._name}, trying the others")
        return supported

    def engine_for(self, member: Member, precisions: Sequence[Precision]) -> Engine:
        """The engine of the first precision that is cached as good, or that builds and passes the gate.

        Raises
        ------
        NoEngineError
            There is none.
        BundleError
            The network or the parity films do not fit the manifest.
        """
        refusals = []
        for number, precision in enumerate(precisions):
            network = self._network(member, precision)
            if not network:
                refusals.append(f"{precision}: the bundle has no network for it")
                self.notes.tell(f"{member.name}: {refusals[-1]}")
                continue
            attempt = _Attempt(self, member, precision, network, precisions[number + 1 :])
            try:
                engine, self.parity[member.name] = attempt.engine()
            except _NotApprovedError as error:
                refusals.append(f"{precision} refused: {error}")
                self.notes.tell(f"{member.name}: {refusals[-1]}")
            except EngineBuildError as error:
                refusals.append(f"{precision} refused: {str(error).rstrip('.')}")
                self.notes.warn(f"{member.name}: {refusals[-1]}")
            else:
                return engine
        raise NoEngineError(f"no engine for {member.name} with {self._name}: {'; '.join(refusals)}")

    def is_known(self, member: Member, precisions: Sequence[Precision]) -> bool:
        """Whether the cache says something about the member in any of the precisions, good or bad."""
        networks = [(precision, self._network(member, precision)) for precision in precisions]
        return any(
            has_sidecar(self.home, _Attempt(self, member, precision, network, ()).key)
            for precision, network in networks
            if network
        )

    def _network(self, member: Member, precision: Precision) -> str:
        variant = self.backend.variant(precision)
        return member.variants.get(variant, "") if variant else member.onnx

    @property
    def _name(self) -> str:
        return f"{self.backend.name} on {self.backend.device}"


class _NotApprovedError(Exception):
    """8 bits were not even tried: there are too few of the site's own films."""


@dataclass(frozen=True)
class _Attempt:
    """One member in one precision; ``slower`` are the precisions that are left if it fails."""

    maker: EngineMaker
    member: Member
    precision: Precision
    network: str
    slower: Sequence[Precision]

    def engine(self) -> tuple[Engine, dict[str, Any]]:
        """The engine, warm, and its parity report; raises EngineBuildError or _NotApprovedError."""
        site = site_films(self.maker.home, self.member) if self.precision.eight_bit else SiteFilms((), "")
        found = self._cached(site)
        if found:
            return found
        if not self.maker.may_build:
            raise EngineBuildError(f"it is not in the engine cache{self._others()}, and CARINA_ENGINE_BUILD is never")
        needed = self.maker.thresholds.site.films
        if self.precision.eight_bit and len(site) < needed:
            raise _NotApprovedError(
                f"the site set has {len(site)} films for it, {needed} are needed, and phantoms alone approve "
                "no 8 bits (carina bundle parity-set add)"
            )
        with building(self.maker.home, self.key):
            # Another builder may have been quicker.
            return self._cached(site, again=True) or self._built(site)

    def _cached(self, site: SiteFilms, *, again: bool = False) -> tuple[Engine, dict[str, Any]] | None:
        name, notes, backend = self.member.name, self.maker.notes, self.maker.backend
        try:
            record = self._record(site)
            if record is None:
                return None
            if not record.passed or record.compiled is None:
                raise EngineBuildError(f"{'; '.join(record.parity['sentences'])} (tested {record.built_at})")
            try:
                with _library_errors(backend):
                    engine = backend.load(record.compiled, self.precision, threads=self.maker.threads)
                _warm(engine)
            except EngineBuildError as error:
                raise UnusableEngineError(f"it does not load: {str(error).rstrip('.')}") from None
        except UnusableEngineError as error:
            if not self.maker.may_build:
                raise EngineBuildError(f"the cached engine is refused: {error}") from None
            if not again:
                notes.warn(f"{name}: the cached {self.precision} engine is refused, building again: {error}")
            return None
        notes.tell(f"{name}: {self.precision} from the cache, parity passed {record.built_at}")
        return engine, record.parity

    def _record(self, site: SiteFilms) -> EngineRecord | None:
        record = read_engine(self.maker.home, self.key)
        if record and self.precision.eight_bit:
            judged_on = record.parity.get("site_set", {}).get("digest")
            # A worker without a site set of its own believes the machine that built the engine.
            if (site and judged_on != site.digest) or (record.passed and not judged_on):
                raise UnusableEngineError("it was judged on other films than those of the site set")
        return record

    def _built(self, site: SiteFilms) -> tuple[Engine, dict[str, Any]]:
        maker, member = self.maker, self.member
        with _library_errors(maker.backend):
            engine = maker.backend.compile(maker.directory / self.network, self.precision, threads=maker.threads)
        try:
            _check_outputs(maker.manifest, member, self.network, engine)
            report = check_parity(engine, member, maker.manifest, maker.directory, maker.thresholds)
            if site:
                report = replace(report, site_set={"films": len(site), "digest": site.digest})
                report = self._judged(engine, report, site) if report.passed else report
            if report.passed:
                _warm(engine)
            if not report.engine_failure:
                self._keep(engine, report)
            if not report.passed:
                raise EngineBuildError("; ".join(report.sentences))
        except BaseException:
            engine.close()
            raise
        films = f"{report.films} films" + (f" and {len(site)} of the site" if site else "")
        maker.notes.tell(f"{member.name}: {self.precision} built, parity passed on {films}")
        return engine, report.to_json()

    def _judged(self, engine: Engine, report: ParityReport, site: SiteFilms) -> ParityReport:
        """The report with the figures of the site's films, against float32 and against what would be used instead."""
        maker, member = self.maker, self.member
        others = [precision for precision in self.slower if not precision.eight_bit]
        rival = maker.engine_for(member, others)
        reference = rival
        try:
            if rival.precision is not Precision.FP32:
                reference = maker.engine_for(member, (Precision.FP32,))
            figures = check_site(
                engine,
                reference,
                rival,
                member=member,
                manifest=maker.manifest,
                films=site,
                limits=maker.thresholds.site,
            )
        except (EngineError, CarinaError) as error:
            return replace(report, engine_failure=str(error))
        finally:
            rival.close()
            reference.close()
        return replace(report, figures=(*report.figures, *figures))

    def _keep(self, engine: Engine, report: ParityReport) -> None:
        try:
            write_engine(
                self.maker.home,
                self.key,
                bundle=self.maker.manifest.key,
                spec=engine.spec.to_json(),
                parity=report.to_json(),
                compiled=engine.export() if report.passed else None,
            )
        except OSError as error:
            self.maker.notes.warn(
                f"{self.member.name}: the engine cache cannot be written ({error.strerror}), "
                "the next start builds again"
            )

    def _others(self) -> str:
        """For which other versions and devices the cache has this engine."""
        found = sorted(
            f"{stored.key['backend']} {stored.key['backend_version']} on {stored.key['device']}"
            for stored in stored_engines(self.maker.home, compare=False)
            if not stored.damage
            and stored.key.get("bundle_sha256") == self.maker.bundle_sha256
            and (stored.key.get("member"), stored.key.get("precision")) == (self.member.name, self.precision)
        )
        ours = f"{self.key.backend} {self.key.backend_version} on {self.key.device}"
        return f" for {ours} (only for {', '.join(found)})" if found else ""

    @property
    def key(self) -> EngineKey:
        """What the engine is kept under."""
        maker, backend = self.maker, self.maker.backend
        return EngineKey(
            bundle_sha256=maker.bundle_sha256,
            member=self.member.name,
            network_sha256=maker.manifest.files[self.network],
            backend=backend.name,
            backend_version=backend.version,
            device=backend.device,
            capabilities=backend.capabilities,
            precision=self.precision,
            gate=maker.thresholds.to_json(),
        )


@contextmanager
def _library_errors(backend: Backend) -> Iterator[None]:
    """Whatever else a library raises counts as a failed build: the next precision or backend may work."""
    try:
        yield
    except EngineBuildError:
        raise
    except Exception as error:
        log.debug("%s failed", backend.name, exc_info=True)
        raise EngineBuildError(f"{backend.name} failed: {type(error).__name__}: {reason_of(error)}") from error


def _warm(engine: Engine) -> None:
    """Run the engine once; an engine that cannot, for want of memory say, is closed and was not built."""
    try:
        engine.warm_up()
    except EngineError as error:
        engine.close()
        raise EngineBuildError(f"it fails when it is warmed up: {error}") from None


def _check_outputs(manifest: Manifest, member: Member, network: str, engine: Engine) -> None:
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
            f"Bundle {manifest.key}: {network} does not fit the manifest, which says {classes} classes from "
            f"(batch, {member.channels}, {member.height}, {member.width}): it {', '.join(problems)}."
        )
