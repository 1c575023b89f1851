"""Which bundle serves: the ``champion`` alias in SQL, its files in the home folder.

The first bundle (``CARINA_BUNDLE`` or the packaged one) is copied into the home folder when
it is registered, so that an upgrade of the program never takes away the files of a bundle
that is in service.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from schema import tables
from schema.bundle import MANIFEST_NAME, Manifest, read_manifest, sha256_of
from schema.database import Database
from worker.errors import FilmError
from worker.inference.bundles import PACKAGED_BUNDLE
from worker.settings import Settings


@dataclass(frozen=True)
class RegisteredBundle:
    """A bundle the database knows: its row id, its manifest's SHA-256 and its folder here."""

    id: int
    sha256: str
    directory: Path


def champion(database: Database, settings: Settings) -> RegisteredBundle:
    """The bundle in service; registers the first one in a new database.

    Raises
    ------
    schema.bundle.BundleError
        The first bundle is unusable.
    worker.errors.FilmError
        ``BUNDLE_MISSING``: this machine lacks the files of the bundle in service.
    """
    with database.read() as connection:
        found = _champion_row(connection)
    source = Path(settings.bundle).expanduser() if settings.bundle else PACKAGED_BUNDLE
    if found is None:
        manifest = read_manifest(source)
        sha256 = sha256_of(source / MANIFEST_NAME)
        _store(source, bundle_folder(settings, sha256))
        _register(database, manifest, sha256)
        with database.read() as connection:
            found = _champion_row(connection)
        assert found is not None
    bundle_id, sha256, key = found
    directory = bundle_folder(settings, sha256)
    if not (directory / MANIFEST_NAME).is_file() and _is_bundle(source, sha256):
        # Another machine registered the bundle that this one brings along too.
        _store(source, directory)
    if not (directory / MANIFEST_NAME).is_file():
        raise FilmError("BUNDLE_MISSING", f"{key}, expected in the folder bundles of the home folder")
    return RegisteredBundle(bundle_id, sha256, directory)


def record_engine(database: Database, bundle_id: int, description: dict[str, Any], parity: dict[str, Any]) -> None:
    """Note that an engine passed its parity gate on this device; a second time changes nothing."""
    columns = ("backend", "backend_version", "device", "precision")
    row = {"bundle_id": bundle_id, **{column: description[column] for column in columns}}
    engine = tables.engine
    with database.write() as connection:
        known = connection.scalar(
            select(engine.c.id).where(*(engine.c[column] == value for column, value in row.items()))
        )
        if known is None:
            connection.execute(insert(engine).values(**row, parity=parity))


def _champion_row(connection: Connection) -> tuple[int, str, str] | None:
    bundle, alias = tables.bundle, tables.bundle_alias
    row = connection.execute(
        select(bundle.c.id, bundle.c.sha256, bundle.c.name, bundle.c.version)
        .join(alias, alias.c.bundle_id == bundle.c.id)
        .where(alias.c.alias == "champion")
    ).one_or_none()
    return None if row is None else (row.id, row.sha256, f"{row.name}:{row.version}")


def _is_bundle(source: Path, sha256: str) -> bool:
    manifest = source / MANIFEST_NAME
    return manifest.is_file() and sha256_of(manifest) == sha256


def bundle_folder(settings: Settings, sha256: str) -> Path:
    """Where this machine keeps the bundle whose manifest has this SHA-256."""
    return settings.home / "bundles" / sha256[:16]


def _store(source: Path, target: Path) -> None:
    """Copy a bundle; it appears under its name whole or not at all."""
    if (target / MANIFEST_NAME).is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".copy-"))
    try:
        shutil.copytree(source, temporary / "bundle")
        try:
            (temporary / "bundle").rename(target)
        except OSError:
            if not (target / MANIFEST_NAME).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _register(database: Database, manifest: Manifest, sha256: str) -> None:
    try:
        with database.write() as connection:
            known = connection.scalar(select(tables.bundle.c.id).where(tables.bundle.c.sha256 == sha256))
            bundle_id = (
                known
                or connection.execute(
                    insert(tables.bundle)
                    .values(name=manifest.name, version=manifest.version, sha256=sha256, manifest=manifest.to_json())
                    .returning(tables.bundle.c.id)
                ).scalar_one()
            )
            connection.execute(insert(tables.bundle_alias).values(alias="champion", bundle_id=bundle_id))
            connection.execute(
                insert(tables.audit_event).values(
                    actor="carina", action="promote", subject=manifest.key, detail={"why": "first bundle"}
                )
            )
    except IntegrityError:
        # Another process registered the first bundle at the same moment.
        with database.read() as connection:
            if _champion_row(connection) is None:
                raise
