"""Can this machine do the night's work, and if not, what is to be mended?

Each check looks at one thing, changes nothing, and says what it found and what to do.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil
from sqlalchemy import exists, select
from sqlalchemy.exc import SQLAlchemyError

from schema import queries
from schema.bundle import MANIFEST_NAME, BundleError, read_manifest, sha256_of
from schema.database import DatabaseVersionError, head_revision
from schema.tables import bundle, bundle_alias, instance
from worker.errors import CarinaError
from worker.film.codecs import SYNTAXES
from worker.film.pixels import PixelLayout
from worker.inference.bundles import PACKAGED_BUNDLE
from worker.inference.engines.base import EngineBuildError, Precision
from worker.inference.registry import bundle_folder
from worker.monitor.information import information
from worker.monitor.machine import Machine, opened
from worker.monitor.status import duration, films, free_bytes
from worker.queue.invariants import check_invariants
from worker.queue.roots import films_left, missing_roots
from worker.settings import Settings, site_key

__all__ = ["CHECKS", "Check", "Finding", "examine", "information"]

_GIB = 1 << 30
_LEAST_PYTHON = (3, 11)
#: SQLite versions with a rare corruption of a database in WAL mode (fixed in 3.51.3).
_SQLITE_DOUBTFUL = ((3, 7, 0), (3, 51, 2))
_NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.sshfs",
        "glusterfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    }
)
_CLOCK_TOLERANCE_SECONDS = 5.0
_LONG_WAIT_SECONDS = 3600.0

Ok = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """What one check found; ``advice`` is empty where nothing is to be done."""

    name: str
    ok: Ok
    finding: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """The check as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """A check's answer before it has its name."""

    ok: Ok
    finding: str
    advice: str = ""


def examine(settings: Settings) -> list[Check]:
    """Do all checks, the ones that others build on first; none of them raises."""
    with opened(settings) as machine:
        return [_checked(machine, name, check) for name, check in CHECKS]


def _checked(machine: Machine, name: str, check: Callable[[Machine], Finding]) -> Check:
    try:
        found = check(machine)
    except Exception as error:
        found = Finding(
            "fail", f"the check itself failed: {type(error).__name__}", "Report it with carina info --json."
        )
    return Check(name, found.ok, found.finding, found.advice)


def _python(_machine: Machine) -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] < _LEAST_PYTHON:
        return Finding("fail", version, "Install Python 3.11 or newer.")
    return Finding("ok", version)


def _processor(machine: Machine) -> Finding:
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total
    words = f"{cores} cores, {memory / _GIB:.1f} GiB of memory"
    needed = machine.settings.decoder_count * machine.settings.decode_memory
    if needed > memory:
        return Finding(
            "warn",
            f"{words}; {machine.settings.decoder_count} decoders may take {needed / _GIB:.1f} GiB",
            "Set CARINA_DECODERS or CARINA_DECODE_MEMORY lower if the machine runs out of memory.",
        )
    return Finding("ok", words)


def _engine(machine: Machine) -> Finding:
    try:
        backend = machine.backend
    except EngineBuildError as error:
        return Finding("fail", str(error), "Install Carina again: pip install --force-reinstall openvino")
    precisions = [str(precision) for precision in backend.supported_precisions()]
    words = f"{backend.name} {backend.version.split('-')[0]} on {backend.device}: {', '.join(precisions)}"
    if Precision.BF16 not in precisions:
        words += " (no bfloat16 on this processor: about half the speed)"
    wanted = machine.settings.precision
    if wanted not in ("auto", *precisions):
        return Finding("warn", words, f"CARINA_PRECISION={wanted} is not available here: set auto.")
    return Finding("ok", words)


def _decoders(_machine: Machine) -> Finding:
    missing = [syntax.title for syntax in SYNTAXES.values() if syntax.decode is not None and not _loads(syntax.decode)]
    if missing:
        return Finding(
            "fail", f"no decoder for {', '.join(missing)}", "Install again: pip install --force-reinstall imagecodecs"
        )
    return Finding("ok", f"all {len(SYNTAXES)} transfer syntaxes")


def _loads(decode: Callable[[bytes, PixelLayout], Any]) -> bool:
    """Whether a decoder's library is there: anything but an ImportError is its own refusal of no picture."""
    layout = PixelLayout(
        rows=1,
        columns=1,
        samples=1,
        photometric="MONOCHROME2",
        planar=False,
        bits_allocated=8,
        bits_stored=8,
        high_bit=7,
        signed=False,
    )
    try:
        decode(b"", layout)
    except ImportError:
        return False
    except Exception:
        return True
    return True


def _home(machine: Machine) -> Finding:
    home = machine.settings.home
    folder = home
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(
            "fail", f"{home} cannot be written: {error.strerror}", "Set CARINA_HOME to a folder of your own."
        )
    kind = _file_system(folder)
    if kind in _NETWORK_FILE_SYSTEMS:
        advice = "Move CARINA_HOME to a local disk"
        advice += ": SQLite on a share loses data." if machine.on_sqlite else ": locks on a share are not reliable."
        return Finding("warn", f"{home} is on a network share ({kind})", advice)
    return Finding(
        "ok", f"{home}, {kind or 'unknown file system'}" + ("" if home.exists() else " (made at the first start)")
    )


def _file_system(folder: Path) -> str:
    """Type of the file system ``folder`` is on: that of the longest mount point above it."""
    real = folder.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    above = [mount for mount in mounts if real.is_relative_to(mount)]
    return mounts[max(above, key=lambda mount: len(mount.parts))] if above else ""


def _disk(machine: Machine) -> Finding:
    free, reserve = free_bytes(machine.settings.home), machine.settings.disk_reserve
    words = f"{free / _GIB:.1f} GiB free, work pauses below {reserve / _GIB:.1f} GiB"
    if free < reserve:
        return Finding("fail", words, "Make room; work goes on by itself.")
    if free < 3 * reserve:
        return Finding("warn", words, "Make room before the next night.")
    return Finding("ok", words)


def _sqlite(machine: Machine) -> Finding:
    version = sqlite3.sqlite_version
    low, high = _SQLITE_DOUBTFUL
    if machine.on_sqlite and low <= sqlite3.sqlite_version_info <= high:
        return Finding(
            "warn",
            f"{version}: can, rarely, damage a database that several processes write",
            "Back the database up daily; use a Python with SQLite 3.51.3 or newer, or PostgreSQL.",
        )
    return Finding("ok", version if machine.on_sqlite else f"{version}, not used for the database")


def _database(machine: Machine) -> Finding:
    shown = machine.database_url.render_as_string(hide_password=True)
    if not machine.has_database:
        advice = "Run: carina db upgrade" if machine.settings.database_url else ""
        return Finding("warn" if advice else "ok", f"{shown} does not exist yet: made at the first start", advice)
    try:
        machine.database.require_current()
    except DatabaseVersionError as error:
        return Finding("fail", str(error), "Run: carina db upgrade")
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__).strip().splitlines()[0]
        return Finding("fail", f"{shown} does not answer: {reason}", "Start it, or mend CARINA_DATABASE_URL.")
    return Finding("ok", f"{shown}, version {head_revision()}")


def _clock(machine: Machine) -> Finding:
    if machine.on_sqlite or not machine.ready:
        return Finding("ok", "the database uses this machine's clock" if machine.on_sqlite else "not compared")
    with machine.database.read() as connection:
        ahead = queries.seconds_ahead(connection, datetime.now(UTC))
    words = f"this machine is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the database"
    if abs(ahead) > _CLOCK_TOLERANCE_SECONDS:
        return Finding("warn", words, "Let both set their clocks by the same time server.")
    return Finding("ok", words)


def _site_key(machine: Machine) -> Finding:
    path = machine.settings.home / "site.key"
    if not path.exists():
        if machine.ready and _has_films(machine):
            return Finding("fail", "missing, though films are registered", "Restore site.key from your backup.")
        return Finding("ok", "made at the first start")
    try:
        site_key(machine.settings)
    except CarinaError as error:
        return Finding("fail", str(error), "Restore site.key from your backup.")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding("warn", f"others may read it (mode {mode:04o})", f"Run: chmod 600 {path}")
    return Finding("ok", "present, only its owner may read it; keep a copy in your backup")


def _has_films(machine: Machine) -> bool:
    with machine.database.read() as connection:
        return bool(connection.scalar(select(exists().select_from(instance))))


def _bundle(machine: Machine) -> Finding:
    folder = _serving_folder(machine)
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        return Finding("fail", str(error), "Copy the bundle again, or set CARINA_BUNDLE to a good one.")
    words = f"{manifest.key}, every file as its manifest says"
    if machine.ready and not machine.settings.bundle and not _knows_packaged_bundle(machine):
        newer = read_manifest(PACKAGED_BUNDLE, verify_files=False).key
        return Finding(
            "ok",
            f"{words}; this version of Carina brings {newer}, which the database does not know",
            f"To compare them first: carina bundle add {PACKAGED_BUNDLE}, then carina bundle shadow {newer} --last 500",
        )
    return Finding("ok", words)


def _knows_packaged_bundle(machine: Machine) -> bool:
    """Whether the packaged bundle is registered, or will be at the first start."""
    with machine.database.read() as connection:
        known = set(connection.scalars(select(bundle.c.sha256)))
    return not known or sha256_of(PACKAGED_BUNDLE / MANIFEST_NAME) in known


def _serving_folder(machine: Machine) -> Path:
    """Folder of the bundle in service, or of the one that the first start will register."""
    if machine.ready:
        with machine.database.read() as connection:
            sha256 = connection.scalar(
                select(bundle.c.sha256)
                .join(bundle_alias, bundle_alias.c.bundle_id == bundle.c.id)
                .where(bundle_alias.c.alias == "champion")
            )
        if sha256 is not None:
            return bundle_folder(machine.settings, str(sha256))
    return Path(machine.settings.bundle).expanduser() if machine.settings.bundle else PACKAGED_BUNDLE


def _roots(machine: Machine) -> Finding:
    try:
        folders = machine.settings.root_folders
    except CarinaError as error:
        return Finding("fail", str(error), "Mend CARINA_ROOTS.")
    lacking = [f"{name}: {reason}" for name, reason in missing_roots(folders).items()]
    if machine.ready:
        with machine.database.read() as connection:
            left = films_left(connection, folders)
        lacking += [f"{name}: {reason}" for name, (_, reason) in left.items() if name not in folders]
        waiting = sum(count for count, _ in left.values())
        if waiting:
            lacking.append(f"{films(waiting)} waiting there")
    if lacking:
        advice = "Mount the folder, or mend CARINA_ROOTS. Until then workers here leave those films to other machines."
        return Finding("warn", "; ".join(lacking), advice)
    return Finding("ok", ", ".join(f"{name}={folder}" for name, folder in folders.items()))


def _ledger(machine: Machine) -> Finding:
    if not machine.ready:
        return Finding("ok", "nothing to check yet")
    broken = check_invariants(machine.database)
    if broken:
        return Finding("fail", "; ".join(broken), "Stop the workers, back the database up and report it.")
    return Finding("ok", "sound")


def _work(machine: Machine) -> Finding:
    if not machine.ready:
        return Finding("ok", "nothing waits")
    with machine.database.read() as connection:
        lanes = queries.backlog(connection)
        overdue = queries.overdue_duties(connection)
    waits = [lane.oldest_ready_seconds for lane in lanes.values() if lane.oldest_ready_seconds is not None]
    ready = sum(lane.ready for lane in lanes.values())
    words = f"{films(ready)} waiting, the oldest for {duration(max(waits))}" if waits else "nothing waits"
    if waits and max(waits) > _LONG_WAIT_SECONDS:
        return Finding("warn", words, "Look whether a worker runs: carina status")
    if waits and overdue:
        return Finding("warn", f"{words}; overdue: {', '.join(overdue)}", "Look whether a worker runs: carina status")
    return Finding("ok", words)


#: What is looked at, in this order.
CHECKS: tuple[tuple[str, Callable[[Machine], Finding]], ...] = (
    ("Python", _python),
    ("processor", _processor),
    ("engine", _engine),
    ("decoders", _decoders),
    ("home folder", _home),
    ("disk", _disk),
    ("SQLite", _sqlite),
    ("database", _database),
    ("clock", _clock),
    ("site key", _site_key),
    ("bundle", _bundle),
    ("film folders", _roots),
    ("ledger", _ledger),
    ("work", _work),
)
