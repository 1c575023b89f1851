"""Two files, one SOP Instance UID, two pictures: which one is the film?

The first one stays until a person says otherwise. What is shown here holds identity: it is
for the person who decides, never for a log.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, insert, select, true

from schema.database import Database
from schema.queries import source_text
from schema.tables import ArrivalState, arrival, audit_event, identity, instance, instance_identity
from worker.errors import CarinaError
from worker.intake.arrivals import aliases_in_work, replace_file


@dataclass(frozen=True)
class ArrivedFile:
    """A file: where it lies (as :func:`schema.queries.source_text` says it), its size
    in bytes, SHA-256 of its bytes and of its content, and when it came."""

    arrival_id: int
    source: str
    size: int
    file_hash: str | None
    content_hash: str | None
    arrived_at: datetime

    def to_json(self) -> dict[str, Any]:
        """As plain values; the time as ISO 8601."""
        return {**asdict(self), "arrived_at": self.arrived_at.isoformat()}


@dataclass(frozen=True)
class Conflict:
    """A file that carries a known film's UID and another picture, beside the file that holds its place."""

    sop_instance_uid: str
    instance_id: int
    conflicting: ArrivedFile
    current: ArrivedFile | None

    @property
    def arrival_id(self) -> int:
        """Number of the conflicting file, as the commands take it."""
        return self.conflicting.arrival_id

    @property
    def source(self) -> str:
        """Where the conflicting file lies."""
        return self.conflicting.source

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "arrival_id": self.arrival_id,
            "sop_instance_uid": self.sop_instance_uid,
            "source": self.source,
            "conflicting": self.conflicting.to_json(),
            "current": self.current.to_json() if self.current else None,
        }


def list_conflicts(database: Database) -> list[Conflict]:
    """All files in conflict, the oldest first."""
    with database.read() as connection:
        return [_conflict(connection, row) for row in connection.execute(_CONFLICTS.order_by(arrival.c.id)).all()]


def show(database: Database, arrival_id: int) -> Conflict:
    """The conflicting file ``arrival_id`` beside the one that holds the film's place.

    Raises
    ------
    CarinaError
        The file is not in conflict.
    """
    with database.read() as connection:
        return _find(connection, arrival_id)


def accept(database: Database, arrival_id: int, actor: str) -> None:
    """Let the conflicting file take the film's place; the film is processed anew. Audited.

    The file that held the place becomes the conflicting one, so the decision can be undone
    the same way. Earlier results stay stored, unpublished.

    Raises
    ------
    CarinaError
        The file is not in conflict, or films that depend on it are being worked on.
    """
    with database.write() as connection:
        conflict = _find(connection, arrival_id)
        if aliases_in_work(connection, conflict.instance_id):
            raise CarinaError("A film with the same picture is being worked on: try again in a minute.")
        replace_file(connection, conflict.instance_id, arrival_id, former=ArrivalState.CONFLICT, code=None, detail="")
        connection.execute(
            insert(audit_event).values(
                actor=actor,
                action="conflict accepted",
                subject=f"instance {conflict.instance_id}",
                detail={
                    "accepted": arrival_id,
                    "replaced": conflict.current.arrival_id if conflict.current else None,
                },
            )
        )


_FILES: Select[Any] = (
    select(
        arrival.c.id,
        arrival.c.instance_id,
        arrival.c.arrived_at,
        arrival.c.file_hash,
        arrival.c.content_hash,
        identity.c.root,
        identity.c.path,
        identity.c.member,
        identity.c.size,
        instance_identity.c.sop_instance_uid,
    )
    .join(instance, instance.c.id == arrival.c.instance_id)
    .outerjoin(identity, identity.c.arrival_id == arrival.c.id)
    .outerjoin(instance_identity, instance_identity.c.instance_id == arrival.c.instance_id)
)
_CONFLICTS = _FILES.where(arrival.c.state == ArrivalState.CONFLICT.value)


def _find(connection: Connection, arrival_id: int) -> Conflict:
    row = connection.execute(_CONFLICTS.where(arrival.c.id == arrival_id)).first()
    if row is None:
        raise CarinaError(f"File {arrival_id} is not in conflict. See: carina conflicts list")
    return _conflict(connection, row)


def _conflict(connection: Connection, row: Any) -> Conflict:
    current = connection.execute(
        _FILES.where(arrival.c.instance_id == row.instance_id, arrival.c.current == true())
    ).first()
    return Conflict(
        sop_instance_uid=row.sop_instance_uid or "",
        instance_id=row.instance_id,
        conflicting=_file(row),
        current=_file(current) if current is not None else None,
    )


def _file(row: Any) -> ArrivedFile:
    # Without identity the person was forgotten: only the numbers are left.
    source = source_text(row.root or "", row.path or "", row.member or "")
    return ArrivedFile(row.id, source, row.size or 0, row.file_hash, row.content_hash, row.arrived_at)
