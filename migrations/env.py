"""Run migrations, then make the views anew: they are always those of the newest tables."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from schema.database import Database, view_statements
from schema.tables import metadata


def _drop_views(connection: Connection) -> None:
    for name in reversed(view_statements(connection.dialect.name)):
        connection.execute(text(f"DROP VIEW IF EXISTS {name}"))


def _create_views(connection: Connection) -> None:
    for statement in view_statements(connection.dialect.name).values():
        connection.exec_driver_sql(statement)


def _migrate(connection: Connection) -> None:
    _drop_views(connection)
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        transactional_ddl=True,
        include_object=lambda _object, name, kind, *_: not (kind == "table" and name in view_statements("")),
    )
    context.run_migrations()
    if context.get_context().get_current_revision() == context.script.get_current_head():
        _create_views(connection)


connection = context.config.attributes.get("connection")
if connection is not None:
    _migrate(connection)
else:
    database = Database(context.get_x_argument(as_dictionary=True)["url"])
    with database.write() as own:
        _migrate(own)
