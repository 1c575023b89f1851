"""Compiled engines on disk, so that a start does not compile and test again.

``<home>/engines/<bundle>/<backend>-<version>-<device>-<precision>/<member>/`` holds
``engine.json`` (what was compiled, for what, and how it passed the parity gate) and the
compiled network under a name taken from its own SHA-256. A refused precision has an
``engine.json`` too, without a compiled network.

Files appear by rename, the compiled network before the sidecar that names it, so a reader sees a whole
engine or none, and a folder that cannot be written serves readers as well. Builders take
turns (:func:`building`): a second one finds what the first one made. A sidecar that does not match in
every particular, or a compiled network that is not the one it names, is refused before any
library reads a byte of it: loading an engine runs native code.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FOLDER = "engines"
SIDECAR_NAME = "engine.json"
FORMAT = 2
_LOCK_NAME = ".building"


class UnusableEngineError(Exception):
    """What lies in the cache for an engine must not be used; the message is a phrase that says why."""


@dataclass(frozen=True)
class EngineKey:
    """What an engine was made from and for; any difference makes it another engine.

    ``network_sha256`` is that of the bundle's file it was compiled from, ``capabilities`` what the device
    lists (two processors may share a name), ``gate`` the parity thresholds.
    """

    bundle_sha256: str
    member: str
    network_sha256: str
    backend: str
    backend_version: str
    device: str
    capabilities: tuple[str, ...]
    precision: str
    gate: dict[str, Any]

    def directory(self, home: Path) -> Path:
        """Where this engine lies below ``home``."""
        build = "-".join((self.backend, _slug(self.backend_version), _slug(self.device), self.precision))
        return home / FOLDER / self.bundle_sha256[:12] / build / self.member

    def to_json(self) -> dict[str, Any]:
        """The key as written to ``engine.json``."""
        return {**asdict(self), "capabilities": list(self.capabilities)}


@dataclass(frozen=True)
class EngineRecord:
    """A sidecar that matches: the gate's verdict and report and, if it passed, the compiled network."""

    passed: bool
    parity: dict[str, Any]
    built_at: str
    compiled: bytes | None


@dataclass(frozen=True)
class StoredEngine:
    """An engine in the cache, as people ask for it.

    ``damage`` says why no worker will use it, empty for a whole one; ``size`` is in bytes, 0 where it was not read.
    """

    folder: Path
    bundle: str
    key: dict[str, Any]
    parity: dict[str, Any]
    built_at: str
    size: int
    damage: str

    @property
    def passed(self) -> bool:
        """The parity gate's verdict."""
        return self.parity.get("passed") is True

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "folder": str(self.folder),
            "bundle": self.bundle,
            **{name: value for name, value in self.key.items() if name != "gate"},
            "passed": self.passed,
            "sentences": self.parity.get("sentences", []),
            "built_at": self.built_at,
            "bytes": self.size,
            "damage": self.damage,
        }


def has_sidecar(home: Path, key: EngineKey) -> bool:
    """Whether there is anything to read about ``key``, sound or not."""
    return (key.directory(home) / SIDECAR_NAME).is_file()


def read_engine(home: Path, key: EngineKey) -> EngineRecord | None:
    """What is known about ``key``, or None when nothing is.

    Raises
    ------
    UnusableEngineError
        What is there was made from or for something else, is damaged or was tampered with.
    """
    directory = key.directory(home)
    try:
        sidecar = _read_sidecar(directory)
        if sidecar is None:
            return None
        differing = [name for name, value in key.to_json().items() if sidecar["key"].get(name) != value]
        if differing:
            raise UnusableEngineError(f"its {SIDECAR_NAME} has another {' and '.join(differing)}")
        parity = {"sentences": [], **sidecar["parity"]}
        passed = parity["passed"] is True
        compiled = _read_compiled(directory, sidecar["compiled_sha256"]) if passed else None
        return EngineRecord(passed, parity, str(sidecar["built_at"]), compiled)
    except (KeyError, TypeError, AttributeError):
        raise UnusableEngineError(f"its {SIDECAR_NAME} is not one of this version") from None
    except OSError as error:
        raise UnusableEngineError(f"it cannot be read ({error.strerror})") from None


def write_engine(
    home: Path, key: EngineKey, *, bundle: str, spec: dict[str, Any], parity: dict[str, Any], compiled: bytes | None
) -> None:
    """Keep an engine and its parity report; call it inside :func:`building`.

    ``bundle`` is its ``name:version``, for people; ``compiled`` is None for an engine that the gate refused.

    Raises
    ------
    OSError
        The directory cannot be written: read-only, full, no permission.
    """
    directory = key.directory(home)
    directory.mkdir(parents=True, exist_ok=True)
    digest = None
    if compiled is not None:
        digest = hashlib.sha256(compiled).hexdigest()
        _write_atomically(directory / _compiled_name(digest), compiled)
    sidecar = {
        "format": FORMAT,
        "bundle": bundle,
        "key": key.to_json(),
        "compiled_sha256": digest,
        "spec": spec,
        "parity": parity,
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write_atomically(directory / SIDECAR_NAME, (json.dumps(sidecar, indent=2) + "\n").encode())


@contextmanager
def building(home: Path, key: EngineKey) -> Iterator[None]:
    """Be the only builder of ``key`` on this file system; waits for another one to finish or die.

    Where the cache cannot be written there is nothing to take turns about.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory = key.directory(home)
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            _lock(descriptor, key)
        except OSError as error:
            log.debug("no lock for the engine %s: %s", key.member, error)
        yield


def stored_engines(home: Path, *, compare: bool = True) -> Iterator[StoredEngine]:
    """Every engine in the cache, in the order of the folders; ``compare`` reads them and checks their SHA-256."""
    for path in sorted((home / FOLDER).glob(f"*/*/*/{SIDECAR_NAME}")):
        yield _stored(path.parent, compare)


def _stored(directory: Path, compare: bool) -> StoredEngine:
    sidecar: dict[str, Any] = {}
    damage, size = "", 0
    try:
        sidecar = _read_sidecar(directory) or {}
        if sidecar["parity"]["passed"] is True and compare:
            size = len(_read_compiled(directory, sidecar["compiled_sha256"]))
    except UnusableEngineError as error:
        damage = str(error)
    except (KeyError, TypeError):
        damage = f"its {SIDECAR_NAME} is not one of this version"
    except OSError as error:
        damage = f"it cannot be read ({error.strerror})"
    key, parity = ({**value} if isinstance(value := sidecar.get(name), dict) else {} for name in ("key", "parity"))
    bundle, built_at = (str(sidecar.get(name, "")) for name in ("bundle", "built_at"))
    return StoredEngine(directory, bundle, key, parity, built_at, size, damage)


def _read_sidecar(directory: Path) -> dict[str, Any] | None:
    """The sidecar, None where there is none; raises UnusableEngineError for one of another version."""
    try:
        sidecar = json.loads((directory / SIDECAR_NAME).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise UnusableEngineError(f"its {SIDECAR_NAME} is damaged") from None
    if not isinstance(sidecar, dict) or sidecar.get("format") != FORMAT:
        raise UnusableEngineError(f"its {SIDECAR_NAME} is not one of this version")
    return sidecar


def _read_compiled(directory: Path, digest: str) -> bytes:
    try:
        compiled = (directory / _compiled_name(digest)).read_bytes()
    except FileNotFoundError:
        raise UnusableEngineError("its compiled network is missing") from None
    if hashlib.sha256(compiled).hexdigest() != digest:
        raise UnusableEngineError(f"its compiled network is not the one its {SIDECAR_NAME} names (SHA-256 differs)")
    return compiled


def _compiled_name(digest: str) -> str:
    return f"{digest[:16]}.engine"


def _lock(descriptor: int, key: EngineKey) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another builder of %s %s", key.member, key.precision)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:48] or "unknown"
