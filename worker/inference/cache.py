"""Compiled engines on disk, so that a start does not compile and test again.

``<home>/engines/<bundle>/<backend>-<version>-<device>-<precision>/<member>/`` holds
``engine.json`` (what was compiled, for what, and how it passed the parity gate) and the
compiled network under a name taken from its own SHA-256. A refused precision has an
``engine.json`` too, without a compiled network.

Nothing locks: files appear by rename, the compiled network before the sidecar that names it,
so two processes that build at once both succeed. A sidecar that does not match in every
particular, or a compiled network that is not the one it names, counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SIDECAR_NAME = "engine.json"
FORMAT = 1


@dataclass(frozen=True)
class EngineKey:
    """What an engine was made from and for; any difference makes it another engine.

    ``capabilities`` is what the device lists (two processors may share a name), ``gate`` the
    parity thresholds.
    """

    bundle_sha256: str
    member: str
    onnx_sha256: str
    backend: str
    backend_version: str
    device: str
    capabilities: tuple[str, ...]
    precision: str
    gate: dict[str, Any]

    def directory(self, home: Path) -> Path:
        """Where this engine lies below ``home``."""
        build = "-".join((self.backend, _slug(self.backend_version), _slug(self.device), self.precision))
        return home / "engines" / self.bundle_sha256[:12] / build / self.member

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


def read_engine(home: Path, key: EngineKey) -> EngineRecord | None:
    """What is known about ``key``, or None when nothing (or nothing that can be trusted) is."""
    directory = key.directory(home)
    try:
        sidecar = json.loads((directory / SIDECAR_NAME).read_text("utf-8"))
        if sidecar["format"] != FORMAT or sidecar["key"] != key.to_json():
            return None
        parity = {"sentences": [], **sidecar["parity"]}
        passed = parity["passed"] is True
        compiled = _read_compiled(directory, sidecar["compiled_sha256"]) if passed else None
        return EngineRecord(passed, parity, str(sidecar["built_at"]), compiled)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_engine(
    home: Path, key: EngineKey, *, spec: dict[str, Any], parity: dict[str, Any], compiled: bytes | None
) -> None:
    """Keep an engine and its parity report.

    ``compiled`` is None for an engine that the gate refused.

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
        "key": key.to_json(),
        "compiled_sha256": digest,
        "spec": spec,
        "parity": parity,
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write_atomically(directory / SIDECAR_NAME, (json.dumps(sidecar, indent=2) + "\n").encode())


def _read_compiled(directory: Path, digest: str) -> bytes:
    compiled = (directory / _compiled_name(digest)).read_bytes()
    if hashlib.sha256(compiled).hexdigest() != digest:
        raise ValueError("the compiled network is not the one its sidecar names")
    return compiled


def _compiled_name(digest: str) -> str:
    return f"{digest[:16]}.engine"


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:48] or "unknown"
