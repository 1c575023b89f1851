"""Which bundle serves: the aliases in SQL, the bundles' files in the home folder.

``champion`` is in service, ``previous`` was until the last promotion, ``candidate`` is the one
added last that was never in service. What changes an alias leaves an ``audit_event``.

The first bundle (``CARINA_BUNDLE`` or the packaged one) is copied into the home folder when
it is registered, so that an upgrade of the program never takes away the files of a bundle
that is in service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from schema import tables
from schema.bundle import MANIFEST_NAME, BundleError, Manifest, read_manifest, sha256_of
from schema.database import Database
from schema.types import database_now
from worker.errors import CarinaError, FilmError
from worker.inference.bundle_files import check_settings, is_bundle, store
from worker.inference.bundles import PACKAGED_BUNDLE
from worker.queue.shadow import publish
from worker.settings import Settings

CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"


@dataclass(frozen=True)
class RegisteredBundle:
    """A bundle the database knows: its row id, its manifest's SHA-256, its folder here, ``name:version``."""

    id: int
    sha256: str
    directory: Path
    key: str


@dataclass(frozen=True)
class BundleEntry:
    """A bundle as people ask for it.

    Attributes
    ----------
    key
        ``name:version``.
    aliases
        Those of ``champion``, ``candidate`` and ``previous`` that point to it.
    here
        Whether this machine has its files.
    manifest
        As in its ``bundle.json``.
    """

    id: int
    key: str
    sha256: str
    added_at: datetime
    aliases: tuple[str, ...]
    here: bool
    manifest: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain values, without the manifest."""
        return {
            "bundle": self.key,
            "sha256": self.sha256,
            "added_at": self.added_at.isoformat(),
            "aliases": list(self.aliases),
            "here": self.here,
        }


def champion(database: Database, settings: Settings) -> RegisteredBundle:
    """The bundle in service; registers the first one in a new database.

    Raises
    ------
    schema.bundle.BundleError
        The first bundle is unusable, or another one has its name and version.
    worker.errors.FilmError
        ``BUNDLE_MISSING``: this machine lacks the files of the bundle in service.
    """
    with database.read() as connection:
        found = _aliased(connection, CHAMPION)
    source = Path(settings.bundle).expanduser() if settings.bundle else PACKAGED_BUNDLE
    if found is None:
        manifest = read_manifest(source)
        sha256 = sha256_of(source / MANIFEST_NAME)
        store(source, bundle_folder(settings, sha256))
        _register_first(database, manifest, sha256)
        with database.read() as connection:
            found = _aliased(connection, CHAMPION)
        assert found is not None
    directory = bundle_folder(settings, found.sha256)
    if not (directory / MANIFEST_NAME).is_file() and is_bundle(source, found.sha256):
        # Another machine registered the bundle that this one brings along too.
        store(source, directory)
    return _registered(settings, found)


def registered_bundle(database: Database, settings: Settings, bundle_id: int) -> RegisteredBundle:
    """A bundle by its row.

    Raises
    ------
    worker.errors.FilmError
        ``BUNDLE_MISSING``: this machine lacks its files.
    """
    with database.read() as connection:
        return _registered(settings, connection.execute(_ROWS.where(tables.bundle.c.id == bundle_id)).one())


def previous(database: Database, settings: Settings) -> RegisteredBundle | None:
    """The bundle that served before the one in service; None if there is none, or this machine lacks its files."""
    with database.read() as connection:
        found = _aliased(connection, PREVIOUS)
    if found is None or not (bundle_folder(settings, found.sha256) / MANIFEST_NAME).is_file():
        return None
    return _registered(settings, found)


def add_bundle(database: Database, settings: Settings, source: Path, *, actor: str) -> BundleEntry:
    """Copy a bundle into the home folder and make it known; a new one becomes the candidate.

    A bundle that is known keeps its aliases: its files are brought to this machine, or mended.

    Raises
    ------
    schema.bundle.BundleError
        The bundle is damaged, asks for preprocessing or post-processing that does not exist, or
        its name and version belong to another bundle.
    worker.errors.CarinaError
        The files cannot be copied.
    """
    manifest = read_manifest(source)
    check_settings(manifest)
    sha256 = sha256_of(source / MANIFEST_NAME)
    with database.read() as connection:
        _refuse_other_content(connection, manifest, sha256)
    try:
        store(source, bundle_folder(settings, sha256))
    except OSError as error:
        raise CarinaError(
            f"Bundle {manifest.key} cannot be copied into {settings.home}: {error.strerror or error}."
        ) from None
    with database.write() as connection:
        _lock_aliases(connection)
        if _bundle_id(connection, sha256) is None:
            _refuse_other_content(connection, manifest, sha256)
            _point(connection, {CANDIDATE: _insert_bundle(connection, manifest, sha256)})
            _audit(connection, actor, "add", manifest.key, {"sha256": sha256})
    return find_bundle(database, settings, manifest.key)


def list_bundles(database: Database, settings: Settings) -> list[BundleEntry]:
    """Every bundle the database knows, in the order they were added."""
    with database.read() as connection:
        aliases = _aliases(connection)
        rows = connection.execute(select(tables.bundle).order_by(tables.bundle.c.id)).all()
    return [
        BundleEntry(
            id=row.id,
            key=f"{row.name}:{row.version}",
            sha256=row.sha256,
            added_at=row.added_at,
            aliases=tuple(sorted(alias for alias, bundle_id in aliases.items() if bundle_id == row.id)),
            here=(bundle_folder(settings, row.sha256) / MANIFEST_NAME).is_file(),
            manifest=row.manifest,
        )
        for row in rows
    ]


def find_bundle(database: Database, settings: Settings, key: str) -> BundleEntry:
    """The bundle called ``name:version``; CarinaError, with the names there are, if it is not known."""
    entries = list_bundles(database, settings)
    for entry in entries:
        if entry.key == key:
            return entry
    known = ", ".join(entry.key for entry in entries) or "none yet"
    raise CarinaError(f"There is no bundle {key!r}; known are: {known}. Add it with: carina bundle add FOLDER")


def promote_bundle(
    database: Database, settings: Settings, key: str, *, actor: str, overridden: Sequence[str] = ()
) -> BundleEntry:
    """Put a known bundle into service; the one that was becomes ``previous``.

    What it found out in the shadow is published. ``overridden`` is what spoke against it, for the
    record: whether to do it is decided in :mod:`worker.inference.promotion`.
    """
    entry = find_bundle(database, settings, key)
    with database.write() as connection:
        _lock_aliases(connection)
        _promote(connection, entry.id, key, actor, overridden)
    return find_bundle(database, settings, key)


def roll_back(database: Database, settings: Settings, *, actor: str) -> BundleEntry:
    """Put the previous bundle back into service; doing it twice changes nothing in the end.

    Raises
    ------
    worker.errors.CarinaError
        No bundle was promoted over another one yet.
    """
    with database.write() as connection:
        _lock_aliases(connection)
        aliases = _aliases(connection)
        if PREVIOUS not in aliases:
            raise CarinaError(_no_way_back(connection, aliases.get(CHAMPION)))
        champion_id, previous_id = aliases.get(CHAMPION), aliases[PREVIOUS]
        _point(connection, {CHAMPION: previous_id, PREVIOUS: champion_id})
        key = _key_of(connection, previous_id)
        _audit(
            connection, actor, "rollback", key, _instead(connection, champion_id) | _published(connection, previous_id)
        )
    return find_bundle(database, settings, key)


def record_engine(database: Database, bundle_id: int, description: dict[str, Any], parity: dict[str, Any]) -> None:
    """Note that an engine passed its parity gate on this device; a second time changes nothing."""
    columns = ("backend", "backend_version", "device", "precision")
    row = {"bundle_id": bundle_id, **{column: description[column] for column in columns}, "parity": parity}
    dialect = postgresql if database.dialect == "postgresql" else sqlite
    # Workers that change over in the same moment record the same engine.
    with database.write() as connection:
        connection.execute(dialect.insert(tables.engine).values(**row).on_conflict_do_nothing())


def bundle_folder(settings: Settings, sha256: str) -> Path:
    """Where this machine keeps the bundle whose manifest has this SHA-256."""
    return settings.home / "bundles" / sha256[:16]


# Rows


_ROWS: Select[Any] = select(
    tables.bundle.c.id,
    tables.bundle.c.sha256,
    (tables.bundle.c.name + ":" + tables.bundle.c.version).label("key"),
)


def _aliased(connection: Connection, alias: str) -> Row[Any] | None:
    points = tables.bundle_alias
    rows = _ROWS.join(points, points.c.bundle_id == tables.bundle.c.id).where(points.c.alias == alias)
    return connection.execute(rows).one_or_none()


def _registered(settings: Settings, row: Row[Any]) -> RegisteredBundle:
    directory = bundle_folder(settings, row.sha256)
    if not (directory / MANIFEST_NAME).is_file():
        raise FilmError("BUNDLE_MISSING", f"{row.key}, expected in the folder bundles of the home folder")
    return RegisteredBundle(row.id, row.sha256, directory, row.key)


def _bundle_id(connection: Connection, sha256: str) -> int | None:
    return connection.scalar(select(tables.bundle.c.id).where(tables.bundle.c.sha256 == sha256))


def _key_of(connection: Connection, bundle_id: int) -> str:
    return str(connection.execute(_ROWS.where(tables.bundle.c.id == bundle_id)).one().key)


def _aliases(connection: Connection) -> dict[str, int]:
    alias = tables.bundle_alias
    return {row.alias: row.bundle_id for row in connection.execute(select(alias.c.alias, alias.c.bundle_id))}


def _lock_aliases(connection: Connection) -> None:
    """Let no other process change an alias, or open shadow jobs, until this transaction ends."""
    alias = tables.bundle_alias
    connection.execute(select(alias).where(alias.c.alias == CHAMPION).with_for_update())


def _insert_bundle(connection: Connection, manifest: Manifest, sha256: str) -> int:
    row = {"name": manifest.name, "version": manifest.version, "sha256": sha256, "manifest": manifest.to_json()}
    return connection.execute(insert(tables.bundle).values(**row).returning(tables.bundle.c.id)).scalar_one()


def _point(connection: Connection, wanted: Mapping[str, int | None]) -> None:
    """Make each alias point to its bundle, or to none."""
    alias = tables.bundle_alias
    present = _aliases(connection).keys()
    for name, bundle_id in wanted.items():
        if bundle_id is None:
            connection.execute(delete(alias).where(alias.c.alias == name))
        elif name in present:
            # Changed in place: whoever waits for the row of a deleted alias finds none, not the new one.
            moved = update(alias).where(alias.c.alias == name)
            connection.execute(moved.values(bundle_id=bundle_id, since=database_now()))
        else:
            connection.execute(insert(alias).values(alias=name, bundle_id=bundle_id))


def _promote(connection: Connection, bundle_id: int, key: str, actor: str, overridden: Sequence[str]) -> None:
    """Make a bundle the champion; nothing happens to one that is."""
    aliases = _aliases(connection)
    champion_id = aliases.get(CHAMPION)
    if champion_id == bundle_id:
        return
    wanted: dict[str, int | None] = {CHAMPION: bundle_id, PREVIOUS: champion_id}
    if aliases.get(CANDIDATE) == bundle_id:
        wanted[CANDIDATE] = None
    _point(connection, wanted)
    detail = _instead(connection, champion_id) | _published(connection, bundle_id)
    _audit(connection, actor, "promote", key, detail | ({"overridden": list(overridden)} if overridden else {}))


def _no_way_back(connection: Connection, champion_id: int | None) -> str:
    if champion_id is None:
        return "There is no previous bundle to go back to: none was put into service yet."
    return (
        f"There is no previous bundle to go back to: {_key_of(connection, champion_id)} is the first that was put into "
        "service here. To put another one in its place: carina bundle list, then carina bundle promote NAME:VERSION"
    )


def _published(connection: Connection, bundle_id: int) -> dict[str, Any]:
    """Publish what a bundle found out in the shadow; how many films that are, for the record."""
    films = publish(connection, bundle_id)
    return {"published": films} if films else {}


def _instead(connection: Connection, bundle_id: int | None) -> dict[str, Any]:
    return {} if bundle_id is None else {"instead_of": _key_of(connection, bundle_id)}


def _audit(connection: Connection, actor: str, action: str, key: str, detail: dict[str, Any]) -> None:
    event = {"actor": actor, "action": action, "subject": key, "detail": detail}
    connection.execute(insert(tables.audit_event).values(**event))


def _register_first(database: Database, manifest: Manifest, sha256: str) -> None:
    try:
        with database.write() as connection:
            if _other_content(connection, manifest, sha256) is not None:
                raise BundleError(
                    "No bundle is in service yet, and another one than the packaged one (or that of CARINA_BUNDLE) is "
                    f"registered as {manifest.key}. Put it into service: carina bundle promote {manifest.key}"
                )
            bundle_id = _bundle_id(connection, sha256) or _insert_bundle(connection, manifest, sha256)
            connection.execute(insert(tables.bundle_alias).values(alias=CHAMPION, bundle_id=bundle_id))
            _audit(connection, "carina", "promote", manifest.key, {"why": "first bundle"})
    except IntegrityError:
        # Another process registered the first bundle at the same moment.
        with database.read() as connection:
            if _aliased(connection, CHAMPION) is None:
                raise


def _refuse_other_content(connection: Connection, manifest: Manifest, sha256: str) -> None:
    theirs = _other_content(connection, manifest, sha256)
    if theirs is not None:
        raise BundleError(
            f"Another bundle is registered as {manifest.key} (its bundle.json has the SHA-256 {theirs[:16]}…, "
            f"this one {sha256[:16]}…): results of the two could not be told apart. Give this one another "
            "version: carina package --version"
        )


def _other_content(connection: Connection, manifest: Manifest, sha256: str) -> str | None:
    """SHA-256 of the manifest of another bundle with this name and version, if there is one."""
    bundle = tables.bundle
    theirs = connection.scalar(
        select(bundle.c.sha256).where(bundle.c.name == manifest.name, bundle.c.version == manifest.version)
    )
    return None if theirs == sha256 else theirs
