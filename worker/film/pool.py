"""A pool of decoder children: one film each at a time, replaced when they die."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import worker
from worker.errors import FilmError, MachineError
from worker.film.prepared import PreparedFilm
from worker.film.protocol import PROTOCOL, film_from_header, read_message, write_message
from worker.film.source import FilmSource

DEFAULT_MEMORY_BYTES = 3 << 30
DEFAULT_TIMEOUT_SECONDS = 60.0

#: A child is replaced after so many films: codecs may leak, and its memory is limited.
_FILMS_PER_CHILD = 1000
_START_SECONDS = 60.0
_START_ATTEMPTS = 3
_GRACE_SECONDS = 2.0
#: All a child inherits: database addresses and keys stay with the parent.
_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
#: glibc gives memory of a film's size back at every release, and a fifth of the time goes into fetching it again.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(256 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


class DecoderDied(Exception):  # noqa: N818 - it died, nobody erred
    """The child died while it worked on a film; ``exit_code`` is negative for a signal."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(f"the decoder child ended with exit code {exit_code}")


class _ChildGone(Exception):  # noqa: N818
    """The child died before it took up the film."""


class _Child:
    """One child process and the plan it holds."""

    def __init__(self, memory_bytes: int) -> None:
        root = str(Path(worker.__file__).resolve().parents[1])
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= dict.fromkeys(_ONE_THREAD, "1") | _KEEP_MEMORY | {"PYTHONPATH": root}
        command = [sys.executable, "-P", "-m", "worker.film.decoder"]
        command += ["--parent", str(os.getpid()), "--memory-bytes", str(memory_bytes)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        self.requests = cast(BinaryIO, self.process.stdin)
        self.replies = cast(BinaryIO, self.process.stdout)
        self.plan_version = -1
        self.films = 0
        self.poll = select.poll()
        self.poll.register(self.replies, select.POLLIN)

    def send(self, header: dict[str, Any]) -> None:
        """Raise _ChildGone when nobody listens."""
        try:
            write_message(self.requests, header)
        except OSError:
            raise _ChildGone from None

    def receive(self, seconds: float) -> tuple[dict[str, Any], Any] | None:
        """The next message, None when the child is gone; raises TimeoutError."""
        deadline = time.monotonic() + seconds

        def fill(buffer: memoryview) -> bool:
            filled = 0
            while filled < len(buffer):
                left = deadline - time.monotonic()
                if left <= 0 or not self.poll.poll(left * 1000):
                    raise TimeoutError
                count = self.replies.readinto(buffer[filled:])  # type: ignore[attr-defined]
                if not count:
                    return False
                filled += count
            return True

        try:
            return read_message(fill)
        except (EOFError, ValueError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return None

    def end(self) -> int:
        """Kill the child if it lives, free its pipes, and give its exit code."""
        if self.process.poll() is None:
            self.process.kill()
        exit_code = self.process.wait()
        self.requests.close()
        self.replies.close()
        return exit_code

    def reap(self) -> int:
        """The exit code of a child that closed its side, killing it if it lingers."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_SECONDS)
        return self.end()


class DecoderPool:
    """Prepares films in children; thread-safe, every call blocks until its film is done.

    Parameters
    ----------
    plan
        Member name → preprocessing steps, checked by :func:`worker.film.preprocess.check`.
    size
        Most children at a time; they are started when first needed.
    memory_bytes
        Address space of a child; beyond it a film is ``DECODE_MEMORY``.
    timeout_seconds
        Time for one film; beyond it the child is killed and the film is ``DECODE_TIMEOUT``.
    """

    def __init__(
        self,
        plan: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        size: int,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._timeout_seconds = timeout_seconds
        self._slots = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._plan, self._plan_version = _as_json(plan), 0
        self._closed = False
        # The kernel kills a child with the *thread* that started it, so one thread that
        # lives as long as the pool starts them all.
        self._launcher = ThreadPoolExecutor(1, "decoder-launcher")

    def prepare(self, source: FilmSource) -> PreparedFilm:
        """Prepare one film in a free child.

        Raises
        ------
        FilmError
            What the film is, or ``DECODE_TIMEOUT``.
        DecoderDied
            The child died on this film: the ledger decides what that means.
        MachineError
            The pool is closed, no child can be started, or children belong to another version of the program.
        """
        with self._slots:
            for _ in range(_START_ATTEMPTS):
                child = self._take()
                try:
                    self._begin(child, source)
                except (_ChildGone, TimeoutError):
                    self._discard(child)
                    continue
                except BaseException:
                    self._discard(child)
                    raise
                return self._finish(child)
        raise MachineError(
            "No decoder child can be started. Check the memory limit and run: python -m worker.film.decoder --help"
        )

    def set_plan(self, plan: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Use another plan from the next film on; films under way finish with the old one."""
        with self._lock:
            self._plan, self._plan_version = _as_json(plan), self._plan_version + 1

    def child_pids(self) -> list[int]:
        """Process ids of the living children."""
        with self._lock:
            return [child.process.pid for child in (*self._idle, *self._busy) if child.process.poll() is None]

    def close(self) -> None:
        """End all children, those at work too; prepare raises MachineError from now on."""
        with self._lock:
            self._closed = True
            children = [*self._idle, *self._busy]
            self._idle = []
            for child in children:
                child.process.kill()
        for child in children:
            if child not in self._busy:
                child.end()
        self._launcher.shutdown(wait=True)

    def __enter__(self) -> Self:
        """The pool itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool."""
        self.close()

    def _take(self) -> _Child:
        while True:
            with self._lock:
                if self._closed:
                    raise MachineError("The decoder pool is closed.")
                child = self._idle.pop() if self._idle else None
                if child is not None:
                    self._busy.add(child)
            if child is None:
                child = self._start()
                with self._lock:
                    self._busy.add(child)
            if child.process.poll() is None and child.films < _FILMS_PER_CHILD:
                return child
            self._discard(child)

    def _start(self) -> _Child:
        try:
            return self._launcher.submit(_Child, self._memory_bytes).result()
        except (RuntimeError, OSError) as error:
            raise MachineError(f"No decoder child can be started: {type(error).__name__}.") from None

    def _begin(self, child: _Child, source: FilmSource) -> None:
        """Hand the film over; returns once the child has taken it up."""
        with self._lock:
            plan, version = self._plan, self._plan_version
        if child.plan_version != version:
            child.send({"plan": plan})
            child.plan_version = version
        child.films += 1
        child.send({"path": str(source.path.absolute()), "member": source.member})
        message = child.receive(_START_SECONDS)
        if message is None:
            raise _ChildGone
        if message[0].get("started") != PROTOCOL:
            raise MachineError("Carina was replaced by another version while this worker ran: start the worker again.")

    def _finish(self, child: _Child) -> PreparedFilm:
        try:
            message = child.receive(self._timeout_seconds)
        except TimeoutError:
            self._discard(child)
            raise FilmError("DECODE_TIMEOUT", f"more than {self._timeout_seconds:g} seconds") from None
        except BaseException:
            self._discard(child)
            raise
        if message is None:
            exit_code = child.reap()
            self._discard(child)
            if self._closed:
                # Closing killed it: the film is innocent.
                raise MachineError("The decoder pool was closed.")
            raise DecoderDied(exit_code)
        header, tensors = message
        if header.get("code") == "DECODE_MEMORY":
            self._discard(child)
        else:
            self._give_back(child)
        if "code" in header:
            raise FilmError(header["code"], header["detail"])
        return film_from_header(header, tensors)

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            self._busy.discard(child)
            if not self._closed:
                self._idle.append(child)
                return
        child.end()

    def _discard(self, child: _Child) -> None:
        with self._lock:
            self._busy.discard(child)
        child.end()


def _as_json(plan: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {member: [dict(step) for step in steps] for member, steps in plan.items()}
