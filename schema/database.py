"""One door to the database, the same on SQLite and PostgreSQL.

``Database.write()`` opens a transaction that may change things, ``Database.read()`` one
that may not. On SQLite a write transaction takes the write lock at once (BEGIN IMMEDIATE),
so that a reader never has to be turned into a writer, which SQLite answers with an error
instead of a wait. On PostgreSQL a read transaction is READ ONLY and sees one snapshot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

BUSY_TIMEOUT_SECONDS = 30

#: Session settings on PostgreSQL: a client that hangs inside a transaction must not keep its
#: locks, and nobody waits for a lock for ever.
POSTGRESQL_SETTINGS: dict[str, str] = {
    "idle_in_transaction_session_timeout": "60s",
    "lock_timeout": "10s",
    "timezone": "UTC",
    # PostgreSQL guesses that an open day has a tenth of all films, and compiles for a second what then takes 30 ms.
    "jit": "off",
    # The server's side of POSTGRESQL_CONNECTION: a client that vanished must not keep its locks for hours.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
}
#: What libpq is told, where the URL does not say otherwise. The TCP settings let a peer that
#: vanished without a word be noticed in half a minute instead of in hours.
POSTGRESQL_CONNECTION: dict[str, int | str] = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "carina",
}
#: SQLSTATE classes of trouble with the server, not with what it was asked: connection (08),
#: resources (53, disk full among them), operator intervention (57), system error (58).
TRANSIENT_CLASSES = frozenset({"08", "53", "57", "58"})
#: Single codes of that kind: a server that takes no writes for now (25006, as after a fail-over),
#: an idle transaction ended (25P03), serialisation failure, deadlock, lock timeout.
TRANSIENT_CODES = frozenset({"25006", "25P03", "40001", "40003", "40P01", "55P03"})
#: Primary result codes of SQLite: busy, locked, out of memory, read-only, interrupted,
#: input/output error, full, cannot be opened, locking protocol.
TRANSIENT_SQLITE_CODES = frozenset({5, 6, 7, 8, 9, 10, 13, 14, 15})


class DatabaseDriverError(Exception):
    """The URL names a database this installation cannot talk to; the message says what to do."""


class DatabaseVersionError(Exception):
    """Code and database are of different versions; the message says what to run."""


class Database:
    """An SQL database with Carina's tables.

    Parameters
    ----------
    url
        SQLAlchemy URL, e.g. ``sqlite:////home/me/.carina/carina.sqlite`` or
        ``postgresql+psycopg://carina@host/carina``. What its query says about the connection
        (``?connect_timeout=10&sslmode=verify-full``) is passed on to libpq.

    Raises
    ------
    DatabaseDriverError
        No database URL, another kind of database, or its driver is not installed.
    """

    def __init__(self, url: str | URL) -> None:
        self.url = _parsed(url)
        self._writer = _engine(self.url, read_only=False)
        self._reader = _engine(self.url, read_only=True)
        #: Entered around every transaction: here a worker watches whether the database answers.
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def dialect(self) -> str:
        """``"sqlite"`` or ``"postgresql"``."""
        return self._writer.dialect.name

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end of the block and rolls back on an exception."""
        with self.around(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a consistent, read-only view of the database."""
        with self.around(), self._reader.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give all connections back."""
        self._writer.dispose()
        self._reader.dispose()

    def upgrade(self, revision: str = "head") -> None:
        """Bring the tables and views to ``revision``; creates them in an empty database."""
        with self.write() as connection:
            command.upgrade(_alembic(connection), revision)

    def downgrade(self, revision: str) -> None:
        """Take the tables back to an earlier ``revision`` (``"base"`` removes them)."""
        with self.write() as connection:
            command.downgrade(_alembic(connection), revision)

    def version(self) -> str | None:
        """The database's schema revision; None for an empty database."""
        with self.read() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def require_current(self) -> None:
        """Refuse to work on a database of another version.

        Raises
        ------
        DatabaseVersionError
            With the two versions and the command that brings them together.
        """
        found, wanted = self.version(), head_revision()
        if found == wanted:
            return
        if found is None:
            raise DatabaseVersionError("The database has no Carina tables yet. Run: carina db upgrade")
        known = {script.revision for script in _scripts().walk_revisions()}
        if found in known:
            raise DatabaseVersionError(
                f"The database is at version {found}, this program needs {wanted}. "
                "Stop the workers, back the database up, then run: carina db upgrade"
            )
        raise DatabaseVersionError(
            f"The database is at version {found}, which this program (version {wanted}) does not know: "
            "it was upgraded by a newer Carina. Install that version here."
        )


def head_revision() -> str:
    """The schema revision this program was written for."""
    head = _scripts().get_current_head()
    assert head is not None
    return head


def view_statements(dialect: str) -> dict[str, str]:
    """View name → ``CREATE VIEW`` statement, in the order to create them."""
    folder = resources.files("schema") / "views"
    statements = {}
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".sql"):
            name = file.name.removesuffix(".sql").split("_", 1)[1]
            statements[name] = file.read_text("utf-8")
    return statements


def is_busy(error: DBAPIError) -> bool:
    """Whether the database was merely busy, locked, full or away: worth trying again.

    Judged by SQLSTATE on PostgreSQL and by result code on SQLite, because both drivers raise
    the same exception for trouble that passes and for data that will never be taken.
    """
    if error.connection_invalidated:
        return True
    original = error.orig
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return state in TRANSIENT_CODES or state[:2] in TRANSIENT_CLASSES
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in TRANSIENT_SQLITE_CODES
    if isinstance(error, InterfaceError):
        # psycopg says so of a closed connection, sqlite3 of a value it cannot bind.
        return not isinstance(original, sqlite3.Error)
    # The server never said anything: the connection was lost, or was never made.
    return isinstance(error, OperationalError)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_migrations_folder()))


def _migrations_folder() -> Path:
    import migrations

    assert migrations.__file__ is not None
    return Path(migrations.__file__).parent


def _alembic(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _parsed(url: str | URL) -> URL:
    try:
        return make_url(url)
    except ArgumentError:
        # The library's own message quotes the URL, and with it a password.
        raise DatabaseDriverError(
            "CARINA_DATABASE_URL is not a database URL. Write postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, "
            "or leave it empty for SQLite in the home folder."
        ) from None


def _engine(url: URL, *, read_only: bool) -> Engine:
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_engine(url, read_only=read_only)
    if backend == "postgresql":
        return _postgresql_engine(url, read_only=read_only)
    raise DatabaseDriverError(
        f"Carina runs on SQLite and PostgreSQL, not on {backend}: correct CARINA_DATABASE_URL, "
        "or leave it empty for SQLite in the home folder."
    )


def _postgresql_engine(url: URL, *, read_only: bool) -> Engine:
    # Whatever driver the URL names, this is the one that Carina brings and knows the errors of.
    url = url.set(drivername="postgresql+psycopg")
    settings = " ".join(f"-c {name}={value}" for name, value in POSTGRESQL_SETTINGS.items())
    asked = url.query.get("options", "")
    connection: dict[str, Any] = {name: value for name, value in POSTGRESQL_CONNECTION.items() if name not in url.query}
    # Of two equal options PostgreSQL takes the last: the URL's word counts more than ours.
    connection["options"] = f"{settings} {asked if isinstance(asked, str) else ' '.join(asked)}".strip()
    try:
        engine = create_engine(
            url, pool_pre_ping=True, pool_size=3, max_overflow=2, connect_args=connection, hide_parameters=True
        )
    except ModuleNotFoundError:
        raise DatabaseDriverError(
            "The driver for PostgreSQL is not installed. Run: pip install 'carina-cxr[postgresql]'"
        ) from None
    if read_only:
        engine = engine.execution_options(postgresql_readonly=True, isolation_level="REPEATABLE READ")
    return engine


def _sqlite_engine(url: URL, *, read_only: bool) -> Engine:
    # Neither a log nor an exception may quote what was asked: it names patients and files.
    engine = create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
        # pysqlite must not open transactions of its own: the "begin" event below does.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")
        if read_only:
            cursor.execute("PRAGMA query_only = ON")
        else:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
