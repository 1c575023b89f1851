"""From a bundle directory to engines that are ready to run.

Every member is compiled for this machine in the fastest precision that passes the parity
gate, or loaded from the engine cache where that was done before.
"""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from schema.bundle import MANIFEST_NAME, BundleError, Manifest, Member, read_manifest, sha256_of
from worker.inference.cache import FOLDER as ENGINES
from worker.inference.engines.backends import AUTO, backends_to_try, open_backend
from worker.inference.engines.base import Engine, EngineBuildError, Precision
from worker.inference.member_engines import EngineMaker, NoEngineError, Notes
from worker.inference.parity import ParityThresholds

#: ``CARINA_ENGINE_BUILD`` where only a builder may write the cache.
NEVER = "never"

#: The bundle that comes with Carina: trained on synthetic films, for demonstration only.
PACKAGED_BUNDLE = Path(str(files("worker"))) / "bundles" / "carina-1"

_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


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
        differ), ``members``: member name → precision, and ``how`` where that leaves something open.
        """
        first = next(iter(self.engines.values()))
        how = "; ".join(sorted({engine.how for engine in self.engines.values()} - {""}))
        return {
            "backend": first.backend,
            "backend_version": first.backend_version,
            "device": first.device,
            "precision": "+".join(sorted({engine.precision for engine in self.engines.values()})),
            "members": {name: str(engine.precision) for name, engine in self.engines.items()},
            **({"how": how} if how else {}),
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
    backend: str = AUTO,
    precision: str = AUTO,
    build: str = AUTO,
    threads: int | None = None,
    thresholds: ParityThresholds | None = None,
) -> LoadedBundle:
    """Verify a bundle and make an engine for each of its members.

    Parameters
    ----------
    directory
        The bundle; every file is compared with the manifest's SHA-256.
    home
        ``CARINA_HOME``; compiled engines are kept in ``home/engines``, the site's own films
        in ``home/parity-set``.
    backend
        A name of :data:`worker.inference.engines.backends.BACKENDS`, or ``auto``: the best that
        gives every member an engine that passes the gate. All members get the same.
    precision
        ``auto`` takes the fastest the device has and the parity gate allows; a name starts
        there and goes on to the slower ones.
    build
        ``auto`` builds what the cache lacks, ``never`` refuses it.
    threads
        Threads of one inference; None leaves it to the backend.

    Raises
    ------
    BundleError
        The bundle is damaged, its networks do not fit its manifest, this machine has no
        backend, no precision passes the parity gate, or an engine is not built and must not be.
    """
    wanted, may_build = _wanted_precision(precision), _may_build(build)
    manifest = read_manifest(directory)
    _check_member_names(manifest)
    bundle_sha256 = sha256_of(directory / MANIFEST_NAME)
    notes = Notes(manifest.key)
    refusals = []
    try:
        names = backends_to_try(backend)
    except EngineBuildError as error:
        raise BundleError(f"Bundle {manifest.key} cannot be loaded. {error}") from error
    for name in names:
        try:
            opened = open_backend(name, folder=home / ENGINES)
            maker = EngineMaker(
                manifest=manifest,
                directory=directory,
                bundle_sha256=bundle_sha256,
                home=home,
                backend=opened,
                threads=threads,
                thresholds=thresholds or ParityThresholds(),
                may_build=may_build,
                notes=notes,
            )
            engines = _engines(maker, wanted)
        except (EngineBuildError, NoEngineError) as error:
            refusals.append(str(error).rstrip("."))
            if name != names[-1]:
                notes.warn(f"{name} is not used, trying {names[len(refusals)]}: {refusals[-1]}")
            continue
        notes.tell(f"uses {opened.name} {opened.version} on {opened.device}")
        return LoadedBundle(manifest, directory, bundle_sha256, engines, tuple(notes), maker.parity)
    advice = "carina doctor" if may_build else f"carina engine build --bundle {manifest.key}, on such a machine"
    raise BundleError(f"Bundle {manifest.key} cannot be loaded: {'; '.join(refusals)}. Run: {advice}")


def _engines(maker: EngineMaker, wanted: Precision | None) -> dict[str, Engine]:
    """Member name → engine; none is left open when one fails."""
    precisions = maker.precisions(wanted)
    members = maker.manifest.members
    engines: dict[str, Engine] = {}
    notes = {member.name: Notes(maker.manifest.key) for member in members}

    def make(member: Member) -> None:
        engines[member.name] = replace(maker, notes=notes[member.name]).engine_for(member, precisions)

    # Most of a start from the cache is one thread's work: libraries prepare weights and kernels at the first picture.
    # Engines that must be built wait for each other, as the gate times some of them.
    at_once = len(members) if all(maker.is_known(member, precisions) for member in members) else 1
    try:
        with ThreadPoolExecutor(at_once if maker.backend.loads_side_by_side else 1) as pool:
            list(pool.map(make, members))
        _check_grids(maker.manifest, engines)
    except BaseException:
        for engine in engines.values():
            engine.close()
        raise
    finally:
        maker.notes.extend(note for several in notes.values() for note in several)
    return {member.name: engines[member.name] for member in members}


def _wanted_precision(name: str) -> Precision | None:
    try:
        return None if name == AUTO else Precision(name)
    except ValueError:
        raise BundleError(f"There is no precision {name!r}: choose auto, {', '.join(Precision)}.") from None


def _may_build(build: str) -> bool:
    if build not in (AUTO, NEVER):
        raise BundleError(f"CARINA_ENGINE_BUILD is {build!r}: choose {AUTO} or {NEVER}.")
    return build == AUTO


def _check_member_names(manifest: Manifest) -> None:
    counts = Counter(member.name for member in manifest.members)
    bad = sorted(name for name, count in counts.items() if count > 1 or not _MEMBER_NAME.fullmatch(name))
    if bad:
        raise BundleError(
            f"Bundle {manifest.key}: member names must be distinct and made of letters, digits, '.', '_' and '-': "
            f"{', '.join(map(repr, bad))}."
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
