"""What does it take to know nothing of a patient any more?

Every row that belongs to one of the patient's films goes, found by the tables' own foreign keys, so
that a table which comes later is not overlooked. Of earlier audit events what points at these
rows goes. Files that we made (the listener's spool, what was pulled) are deleted; a submitted path is
never touched. A film of somebody else that was known as an alias of such a film becomes the film of
its content and is processed. What stays is one audit event with counts.

Not reached from here: backups, databases of shards, reports and exports that were written, training
data, and what was delivered. docs/pacs.md says what to do about them.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    ForeignKey,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from schema.database import Database
from schema.keys import patient_key
from schema.queries import source_text
from schema.tables import PRIORITY, arrival, audit_event, identity, instance, instance_identity, metadata
from worker.errors import CarinaError
from worker.intake.arrivals import aliases_in_work, release_aliases
from worker.intake.lookups import slices
from worker.intake.sources import system_path
from worker.intake.traces import require_nothing_left, traces_of
from worker.settings import Settings, site_key

#: The root of what the listener and ``carina pull`` keep: nobody else's files lie there.
OUR_ROOT = "spool"

_LOWEST_PRIORITY = max(PRIORITY.values())
_LOOK_SECONDS = 0.5
_WORDS: dict[str, str] = {
    "instance": "films",
    "arrival": "files known",
    "segmentation": "results",
    "label": "labels",
    "delivery": "deliveries",
}


class InWorkError(CarinaError):
    """A film of the patient is being worked on just now."""


@dataclass
class Forgotten:
    """What was deleted, or would be.

    ``rows`` has the rows of each table, ``files`` the files of ours, ``elsewhere`` the files in
    submitted folders, as a person finds them; ``released`` is how many films of others are
    processed anew because they were known as aliases.
    """

    rows: Counter[str] = field(default_factory=Counter)
    files: int = 0
    elsewhere: list[str] = field(default_factory=list)
    released: int = 0

    def lines(self) -> Iterator[tuple[str, int]]:
        """What to show: a name and a number."""
        for table, words in _WORDS.items():
            yield words, self.rows[table]
        yield "received files deleted", self.files
        yield "files in submitted folders, left alone", len(self.elsewhere)
        if self.released:
            yield "films of others processed anew", self.released

    def counts(self) -> dict[str, Any]:
        """All numbers, and nothing else."""
        return {
            "rows": dict(sorted(self.rows.items())),
            "files": self.files,
            "files_elsewhere": len(self.elsewhere),
            "released": self.released,
        }


def patient_keys(database: Database, settings: Settings, patient_id: str, issuer: str | None = None) -> list[str]:
    """The pseudonymous keys under which a patient's films are known.

    Parameters
    ----------
    patient_id
        Patient ID (0010,0020), exactly as the films say it.
    issuer
        Issuer of Patient ID (0010,0021); None where it does not matter.

    Raises
    ------
    CarinaError
        The patient ID is used by several issuers and none was named.
    """
    conditions = [instance_identity.c.patient_id == patient_id]
    if issuer is not None:
        conditions.append(instance_identity.c.issuer_of_patient_id == issuer)
    query = (
        select(instance_identity.c.issuer_of_patient_id, instance.c.patient_key)
        .join(instance, instance.c.id == instance_identity.c.instance_id)
        .where(*conditions)
        .distinct()
    )
    with database.read() as connection:
        found = connection.execute(query).all() if patient_id else []
    issuers = {row.issuer_of_patient_id for row in found}
    if len(issuers) > 1:
        raise CarinaError(
            f"This patient ID was given by {len(issuers)} issuers. Name one with --issuer; '' is the films without one."
        )
    # Where identity was dropped already, the key can still be made.
    made = patient_key(site_key(settings), issuer or "", patient_id, otherwise="") if patient_id else None
    return sorted({row.patient_key for row in found}.union([made] if made else []))


def forget(
    database: Database,
    settings: Settings,
    keys: Collection[str],
    *,
    actor: str,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> Forgotten:
    """Delete everything that belongs to films of these patient keys; may be repeated.

    Parameters
    ----------
    keys
        Of :func:`patient_keys`, or read in ``instance.patient_key``.
    dry_run
        Only say what would be deleted.
    wait_seconds
        Wait so long for films that are being worked on.

    Raises
    ------
    InWorkError
        A film is still being worked on, or delivered. Nothing was deleted.
    CarinaError
        Received files lie on another machine, or cannot be deleted; or something is left, which
        must not be.
    """
    if dry_run:
        with database.read() as connection:
            return _report(_Doomed(connection, _films(connection, keys)), settings)
    until = time.monotonic() + wait_seconds
    while True:
        try:
            with database.write() as connection:
                doomed = _lock(connection, keys)
                traces = traces_of(connection, doomed.ids, keys)
                report = _delete(connection, settings, doomed, actor)
            break
        except InWorkError:
            if time.monotonic() >= until:
                raise
            time.sleep(_LOOK_SECONDS)
    if doomed.ids[instance]:
        _empty_write_ahead_log(database)
        with database.read() as connection:
            require_nothing_left(connection, traces)
    return report


class _Doomed:
    """The rows that belong to some films: of every table that refers to them, however far.

    ``ids`` has the ids of the tables that others refer to.
    """

    def __init__(self, connection: Connection, films: Sequence[int]) -> None:
        self.connection = connection
        self.ids: dict[Table, list[int]] = {instance: list(films)}
        for table in metadata.sorted_tables:
            if table is not instance and self.conditions(table) and _single_id(table) is not None:
                self.ids[table] = self.select(table, cast(ColumnElement[int], _single_id(table)))

    def conditions(self, table: Table) -> list[tuple[ColumnElement[Any], list[int]]]:
        """Columns of ``table`` that tie a row to doomed ones, and to which."""
        return [
            (key.parent, self.ids[key.column.table])
            for key in sorted(table.foreign_keys, key=lambda key: key.parent.name)
            if key.column.table in self.ids and key.column.table is not table and _belongs(key)
        ]

    def select(self, table: Table, column: ColumnElement[Any]) -> list[Any]:
        """``column`` of the doomed rows of ``table``."""
        found: set[Any] = set()
        for reference, ids in self.conditions(table):
            for piece in slices(ids):
                found.update(self.connection.scalars(select(column).where(reference.in_(piece))))
        return sorted(found)

    def tables(self) -> list[Table]:
        """Tables that may have doomed rows, those that refer to others first."""
        return [table for table in reversed(metadata.sorted_tables) if table is instance or self.conditions(table)]

    def where(self, table: Table) -> Iterator[ColumnElement[bool]]:
        """Conditions that together fit the doomed rows of ``table``; a row may fit several of them."""
        identifier = _single_id(table)
        known = [(identifier, self.ids[table])] if identifier is not None else self.conditions(table)
        for column, ids in known:
            yield from (column.in_(piece) for piece in slices(ids))

    def count(self, table: Table) -> int:
        """How many rows of ``table`` are doomed."""
        if table in self.ids:
            return len(self.ids[table])
        key = list(table.primary_key.columns)
        return len({row for where in self.where(table) for row in self.connection.execute(select(*key).where(where))})


def _belongs(key: ForeignKey) -> bool:
    return key.ondelete != "SET NULL"


def _single_id(table: Table) -> ColumnElement[Any] | None:
    columns = list(table.primary_key.columns)
    return columns[0] if len(columns) == 1 else None


def _films(connection: Connection, keys: Collection[str]) -> list[int]:
    return sorted(
        number
        for piece in slices(set(keys))
        for number in connection.scalars(select(instance.c.id).where(instance.c.patient_key.in_(piece)))
    )


def _lock(connection: Connection, keys: Collection[str]) -> _Doomed:
    """The doomed rows; from now on nobody takes one of them up, and no row is added to them."""
    # What is leased first and the films then, as those do who finish a batch.
    first = _Doomed(connection, _films(connection, keys))
    for table in first.ids:
        if "lease_id" in table.c:
            for condition in first.where(table):
                connection.execute(select(table.c.lease_id).where(condition).with_for_update()).all()
    for piece in slices(first.ids[instance]):
        connection.execute(select(instance.c.id).where(instance.c.id.in_(piece)).with_for_update()).all()
    doomed = _Doomed(connection, _films(connection, keys))
    for table in doomed.ids:
        if "lease_id" in table.c:
            for condition in doomed.where(table):
                held = select(func.count()).select_from(table).where(condition, table.c.lease_id.is_not(None))
                if connection.scalar(held):
                    raise InWorkError("A film of this patient is being worked on: try again in a minute, or --wait 300")
    return doomed


def _report(doomed: _Doomed, settings: Settings) -> Forgotten:
    report = Forgotten()
    for table in doomed.tables():
        report.rows[table.name] = doomed.count(table)
    ours, report.elsewhere = _files(doomed, settings)
    report.files = sum(path.is_file() for path in ours)
    report.released = len(_orphans(doomed))
    return report


def _files(doomed: _Doomed, settings: Settings) -> tuple[list[Path], list[str]]:
    """The files we made, and where the others lie.

    Raises
    ------
    CarinaError
        Files we made lie on another machine.
    """
    ours: list[Path] = []
    elsewhere: list[str] = []
    roots = settings.root_folders
    for piece in slices(doomed.ids[arrival]):
        for row in doomed.connection.execute(select(identity).where(identity.c.arrival_id.in_(piece))):
            if row.root != OUR_ROOT:
                elsewhere.append(source_text(row.root, row.path, row.member, roots))
            elif OUR_ROOT in roots:
                ours.append(roots[OUR_ROOT] / system_path(row.path))
            else:
                raise CarinaError("Films of this patient lie in another machine's spool: run carina forget there.")
    return ours, sorted(elsewhere)


def _orphans(doomed: _Doomed) -> list[int]:
    """Doomed films as whose aliases films of others are known."""
    mine = set(doomed.ids[instance])
    return sorted(
        {
            row.alias_of
            for piece in slices(doomed.ids[instance])
            for row in doomed.connection.execute(
                select(instance.c.id, instance.c.alias_of).where(instance.c.alias_of.in_(piece))
            )
            if row.id not in mine
        }
    )


def _delete(connection: Connection, settings: Settings, doomed: _Doomed, actor: str) -> Forgotten:
    report = _report(doomed, settings)
    if not doomed.ids[instance]:
        return report
    if connection.dialect.name == "sqlite":
        # What is deleted is overwritten, not only marked as free.
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    _release(connection, doomed)
    _scrub_audit(connection, doomed)
    # Files before rows: if we die in between, the rows still say what is to be deleted.
    for path in _files(doomed, settings)[0]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise CarinaError(
                f"A received file of this patient cannot be deleted: {error.strerror}. Run it as the listener's user."
            ) from None
    for table in doomed.tables():
        for condition in doomed.where(table):
            connection.execute(delete(table).where(condition))
    connection.execute(insert(audit_event).values(actor=actor, action="patient forgotten", detail=report.counts()))
    return report


def _release(connection: Connection, doomed: _Doomed) -> None:
    orphans = _orphans(doomed)
    if any(aliases_in_work(connection, film) for film in orphans):
        raise InWorkError("A film with the same picture is being worked on: try again in a minute, or --wait 300")
    for piece in slices(doomed.ids[instance]):
        connection.execute(update(instance).where(instance.c.id.in_(piece)).values(alias_of=None, content_hash=None))
    for film in orphans:
        release_aliases(connection, film, _LOWEST_PRIORITY)


def _scrub_audit(connection: Connection, doomed: _Doomed) -> None:
    """Take out of earlier events what points at rows that go: their numbers may be given anew."""
    subjects = {f"instance {number}" for number in doomed.ids[instance]}
    jobs = set(doomed.ids[metadata.tables["job"]])
    for event in connection.execute(select(audit_event.c.id, audit_event.c.subject, audit_event.c.detail)).all():
        detail = event.detail
        if event.subject in subjects:
            subject, detail = "instance", {}
        elif event.subject == "job" and isinstance(detail, dict) and jobs.intersection(detail.get("ids") or ()):
            subject, detail = "job", {**detail, "ids": [number for number in detail["ids"] if number not in jobs]}
        else:
            continue
        connection.execute(
            update(audit_event).where(audit_event.c.id == event.id).values(subject=subject, detail=detail)
        )


def _empty_write_ahead_log(database: Database) -> None:
    """On SQLite, bring what was deleted out of the log file too, as far as readers let us."""
    if database.dialect != "sqlite" or not database.url.database:
        return
    with closing(sqlite3.connect(database.url.database, timeout=5)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
