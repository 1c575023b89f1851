"""Which destinations does the database know, and how do they stand?

The file of ``CARINA_DELIVERY`` is the truth about what a destination is; the table mirrors it at each
start of ``carina deliver``, so that SQL can say where results go, and holds what is learnt about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from schema.database import Database
from schema.tables import DeliveryState, audit_event, delivery, delivery_destination
from schema.types import database_now
from worker.errors import CarinaError
from worker.peers.configuration import Destination

#: The values of a closed circuit.
UNTROUBLED: dict[str, Any] = {"failures": 0, "blocked_until": None, "code": None, "detail": ""}

_WAITING = [str(state) for state in (DeliveryState.READY, DeliveryState.DELAYED)]


def mirror(database: Database, destinations: Mapping[str, Destination], *, actor: str) -> dict[str, int]:
    """Bring the table in line with the file; audited. Returns name → id of each destination in the file.

    What waits for a destination that the file no longer names is abandoned. One that comes back
    gets what is published from then on.
    """
    try:
        return _mirror(database, destinations, actor)
    except IntegrityError:
        # Another process that starts in the same moment has just added them.
        return _mirror(database, destinations, actor)


def _mirror(database: Database, destinations: Mapping[str, Destination], actor: str) -> dict[str, int]:
    with database.write() as connection:
        # In one order, so that two processes that start together wait for each other.
        query = select(delivery_destination).order_by(delivery_destination.c.id).with_for_update()
        known = {row.name: row for row in connection.execute(query)}
        for name, row in known.items():
            if name not in destinations and row.removed_at is None:
                _remove(connection, row, actor)
        return {name: _bring_in_line(connection, known.get(name), one, actor) for name, one in destinations.items()}


def _bring_in_line(connection: Connection, row: Row[Any] | None, destination: Destination, actor: str) -> int:
    values = {"kind": str(destination.kind), "configuration": destination.to_json()}
    if row is None:
        added = connection.execute(insert(delivery_destination).values(name=destination.name, **values))
        assert added.inserted_primary_key is not None
        _audit(connection, actor, "add destination", destination.name, values)
        return int(added.inserted_primary_key[0])
    back = row.removed_at is not None
    if back or row.kind != values["kind"] or row.configuration != values["configuration"]:
        renewed = {"added_at": database_now(), "filled_until": database_now()} if back else {}
        connection.execute(
            update(delivery_destination)
            .where(delivery_destination.c.id == row.id)
            # Whatever was wrong with it may be right now.
            .values(**values, **renewed, **UNTROUBLED, removed_at=None)
        )
        _audit(connection, actor, "add destination" if back else "change destination", destination.name, values)
    return int(row.id)


def _remove(connection: Connection, row: Row[Any], actor: str) -> None:
    connection.execute(
        update(delivery_destination).where(delivery_destination.c.id == row.id).values(removed_at=database_now())
    )
    abandoned = connection.execute(
        update(delivery)
        .where(delivery.c.destination_id == row.id, delivery.c.state.in_(_WAITING))
        .values(state=DeliveryState.ABANDONED.value, code="DESTINATION_REMOVED", detail="")
    ).rowcount
    _audit(connection, actor, "remove destination", row.name, {"abandoned": abandoned})


def destination_id(connection: Connection, name: str) -> int:
    """The row of a destination.

    Raises
    ------
    CarinaError
        There is none of this name.
    """
    found = connection.scalar(select(delivery_destination.c.id).where(delivery_destination.c.name == name))
    if found is None:
        raise CarinaError(f"No destination is called {name}. Known ones: carina deliver status")
    return int(found)


def _audit(connection: Connection, actor: str, action: str, name: str, detail: dict[str, Any]) -> None:
    connection.execute(insert(audit_event).values(actor=actor, action=action, subject=name, detail=detail))
