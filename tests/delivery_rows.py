"""Destinations and their outboxes, for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update

from schema import tables
from schema.database import Database
from schema.outputs import OutputKind
from worker.peers.configuration import Destination, DicomPeer, Rules


def destination(name: str = "pacs", port: int = 104, **changes: Any) -> Destination:
    values: dict[str, Any] = {
        "peer": DicomPeer("127.0.0.1", port, "PACS", timeout_seconds=5.0),
        "outputs": (OutputKind.SEGMENTATION, OutputKind.REPORT),
        "rules": Rules(),
    }
    return Destination(name, **{**values, **changes})


def set_up(database: Database, number: int, ago: timedelta) -> None:
    then = datetime.now(UTC) - ago
    with database.write() as connection:
        connection.execute(
            update(tables.delivery_destination)
            .where(tables.delivery_destination.c.id == number)
            .values(added_at=then, filled_until=then)
        )


def rows(database: Database, **conditions: Any) -> list[Any]:
    query = select(tables.delivery).order_by(tables.delivery.c.id)
    for name, value in conditions.items():
        query = query.where(tables.delivery.c[name] == value)
    with database.read() as connection:
        return list(connection.execute(query).all())


def states(database: Database) -> dict[str, int]:
    query = select(tables.delivery.c.state, func.count()).group_by(tables.delivery.c.state)
    with database.read() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def sooner(database: Database, column: str, seconds: float = 100_000.0) -> None:
    """Let the times of a column lie further back: the database's clock cannot be moved."""
    with database.write() as connection:
        for row in connection.execute(select(tables.delivery.c.id, tables.delivery.c[column])).all():
            if row[1] is not None:
                connection.execute(
                    update(tables.delivery)
                    .where(tables.delivery.c.id == row.id)
                    .values({column: row[1] - timedelta(seconds=seconds)})
                )


def destination_row(database: Database, name: str = "pacs") -> Any:
    table = tables.delivery_destination
    with database.read() as connection:
        return connection.execute(select(table).where(table.c.name == name)).one()
