"""Versions, places and abilities of an installation, for support and for scripts."""

from __future__ import annotations

import platform
import sqlite3
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from schema import queries
from schema.database import head_revision
from schema.findings import Finding
from schema.regions import REGIONS
from worker import REVISION, __version__
from worker.film.codecs import SYNTAXES
from worker.inference.bundles import PACKAGED_BUNDLE
from worker.inference.engines.base import EngineBuildError
from worker.monitor.machine import Machine, opened
from worker.settings import Settings

_PACKAGES = (
    "alembic",
    "imagecodecs",
    "numpy",
    "opencv-python-headless",
    "openvino",
    "pydicom",
    "sqlalchemy",
    "zstandard",
)


def information(settings: Settings) -> dict[str, Any]:
    """Everything about this installation as plain values; what cannot be found out is None."""
    with opened(settings) as machine:
        return _collect(machine)


def _collect(machine: Machine) -> dict[str, Any]:
    settings = machine.settings
    return {
        "carina": __version__,
        "revision": REVISION,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "schema_version": {"program": head_revision(), "database": _database_version(machine)},
        "paths": {
            "home": str(settings.home),
            "database": machine.database_url.render_as_string(hide_password=True),
            "site_key": str(settings.home / "site.key"),
            "bundles": str(settings.home / "bundles"),
            "engines": str(settings.home / "engines"),
            "first_bundle": settings.bundle or str(PACKAGED_BUNDLE),
        },
        "bundles": _bundles(machine),
        "engine": _engine(machine),
        "transfer_syntaxes": {uid: syntax.title for uid, syntax in SYNTAXES.items()},
        "regions": {str(region.value): region.name for region in REGIONS},
        "findings": [str(finding) for finding in Finding],
        "packages": {**{name: _package(name) for name in _PACKAGES}, "sqlite": sqlite3.sqlite_version},
        "intended_use": "Research use, not a medical device.",
    }


def _database_version(machine: Machine) -> str | None:
    try:
        return machine.database.version() if machine.has_database else None
    except SQLAlchemyError:
        return None


def _bundles(machine: Machine) -> dict[str, str] | None:
    if not machine.ready:
        return None
    with machine.database.read() as connection:
        return queries.bundle_aliases(connection)


def _engine(machine: Machine) -> dict[str, Any] | None:
    try:
        backend = machine.backend
    except EngineBuildError:
        return None
    return {
        "backend": backend.name,
        "version": backend.version,
        "device": backend.device,
        "capabilities": list(backend.capabilities),
        "precisions": [str(precision) for precision in backend.supported_precisions()],
    }


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
