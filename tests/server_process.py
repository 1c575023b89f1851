"""A server process for tests: started, killed, frozen and restarted at will, and never left behind."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
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
from typing import Self

import psutil

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
