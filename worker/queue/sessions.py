"""What if a worker falls silent while it hands its results to PostgreSQL?

A session that waits for the rest of a statement is neither idle nor working, so none of the
server's limits ends it before PostgreSQL 17, and it keeps the locks on its films: nobody could
take them back. So whoever sweeps ends such sessions first.
"""

from __future__ import annotations

from sqlalchemy import text

from schema.database import Database

#: Sessions of our own role in the middle of a statement that wait for their client, and have
#: written or locked something: who only reads, such as a slow backup, holds nobody up.
_END = text("""
    SELECT count(*) FROM (
        SELECT pg_terminate_backend(pid) AS ended FROM pg_stat_activity
        WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
            AND state = 'active' AND backend_xid IS NOT NULL
            AND wait_event_type = 'Client' AND wait_event IN ('ClientRead', 'ClientWrite')
            AND query_start < clock_timestamp() - make_interval(secs => :seconds)
    ) AS silent WHERE ended""")


def end_silent_sessions(database: Database, seconds: float) -> int:
    """End our sessions whose client has kept a statement waiting for so long; returns how many.

    Their transactions are rolled back and their locks given back; a client that is alive after
    all does its work again. On SQLite there are no sessions.
    """
    if database.dialect != "postgresql":
        return 0
    with database.read() as connection:
        return int(connection.scalar(_END, {"seconds": seconds}) or 0)
