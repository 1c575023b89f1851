"""Let a bundle that is not in service read films as well: jobs of the kind ``shadow``.

A database that goes back loses its shadow jobs with what they found.
"""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: Constraint of ``job`` → what it said, what it says now.
CHECKS = {
    "ck_job_kind": ("kind IN ('process', 'verify')", "kind IN ('process', 'verify', 'shadow')"),
    "ck_job_unbound": (
        "state NOT IN ('ready', 'delayed') OR bundle_id IS NULL",
        "state NOT IN ('ready', 'delayed') OR (bundle_id IS NULL) = (kind <> 'shadow')",
    ),
}
NEW_CHECK = ("ck_job_shadow", "kind <> 'shadow' OR (NOT published AND priority = 20 AND bundle_id IS NOT NULL)")
_OPEN = "kind = 'shadow' AND state IN ('ready', 'delayed', 'leased')"
#: Index → columns, whether it is unique, which rows.
INDEXES = {
    "uq_job_shadow": (["instance_id", "bundle_id"], True, _OPEN),
    "ix_job_shadow": (["bundle_id", "state"], False, "kind = 'shadow'"),
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        changes = {_written(name, before): _written(name, now) for name, (before, now) in CHECKS.items()}
        last = list(changes)[-1]
        _rewrite_in_sqlite({**changes, last: f"{changes[last]}, {_written(*NEW_CHECK)}"})
    else:
        for name, (_, now) in CHECKS.items():
            _replace_in_postgresql(name, now)
        _replace_in_postgresql(*NEW_CHECK)
    for name, (columns, unique, rows) in INDEXES.items():
        op.create_index(name, "job", columns, unique=unique, sqlite_where=sa.text(rows), postgresql_where=sa.text(rows))


def downgrade() -> None:
    op.execute("DELETE FROM job WHERE kind = 'shadow'")
    for name in INDEXES:
        op.drop_index(name, "job")
    if op.get_bind().dialect.name == "sqlite":
        _rewrite_in_sqlite(
            {
                f", {_written(*NEW_CHECK)}": "",
                **{_written(name, now): _written(name, before) for name, (before, now) in CHECKS.items()},
            }
        )
        return
    op.execute(f"ALTER TABLE job DROP CONSTRAINT {NEW_CHECK[0]}")
    for name, (before, _) in CHECKS.items():
        _replace_in_postgresql(name, before)


def _written(name: str, condition: str) -> str:
    return f"CONSTRAINT {name} CHECK ({condition})"


def _replace_in_postgresql(name: str, condition: str) -> None:
    op.execute(f"ALTER TABLE job DROP CONSTRAINT IF EXISTS {name}")
    op.execute(f"ALTER TABLE job ADD {_written(name, condition)}")


def _rewrite_in_sqlite(changes: dict[str, str]) -> None:
    """Change the conditions in the table's own text, as SQLite's documentation of ALTER TABLE has it (section 7).

    To make the table anew would mean to drop it, and whoever drops it deletes all results with it.
    """
    connection = op.get_bind()
    sql = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'job'").scalar_one()
    for before, now in changes.items():
        if sql.count(before) != 1:
            raise RuntimeError(f"the table job has no condition {before!r}")
        sql = sql.replace(before, now)
    driver = connection.connection.driver_connection
    if hasattr(driver, "setconfig"):
        driver.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, False)
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    try:
        connection.exec_driver_sql("UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = 'job'", (sql,))
    finally:
        connection.exec_driver_sql("PRAGMA writable_schema = RESET")
