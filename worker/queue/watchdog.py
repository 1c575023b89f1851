"""What if something gets stuck: a native call, or a database that neither answers nor hangs up?

Whoever waits for it cannot notice. So one thread, which never waits for anything but time,
looks whether everything that was begun moves. If not, the process ends, and whoever started
it starts it again. Time in which that thread stood still itself does not count.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from schema.database import Database

log = logging.getLogger(__name__)

#: Exit code of a process that got stuck: EX_TEMPFAIL, starting it again helps.
STALLED_EXIT_CODE = 75

BATCHES = "batches"
TRANSACTIONS = "database transactions"
FOLDERS = "looks at the folders of films"

_LOOKS_PER_LIMIT = 20


def exit_stalled(message: str) -> None:
    """End this process at once."""
    log.critical(message)
    logging.shutdown()
    # Threads stuck in native code cannot be joined: a plain exit would wait for them.
    os._exit(STALLED_EXIT_CODE)


@dataclass
class _Watched:
    kind: str
    moved_at: float


class Watchdog:
    """Notices what has not moved for ``limit_seconds``.

    Parameters
    ----------
    on_stall
        Called with a message, once.
    clock
        Seconds that only go forward.
    """

    def __init__(
        self,
        limit_seconds: float,
        *,
        on_stall: Callable[[str], object] = exit_stalled,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit_seconds
        self._on_stall = on_stall
        self._clock = clock
        self._watched: dict[object, _Watched] = {}
        self._lock = threading.Lock()

    @contextmanager
    def watching(self, kind: str, key: object) -> Iterator[None]:
        """Expect that ``key``, one of the ``kind``, moves or comes to its end in time."""
        with self._lock:
            self._watched[key] = _Watched(kind, self._clock())
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(key, None)

    def moved(self, key: object) -> None:
        """Note that something watched goes on; nothing happens to what is not watched any more."""
        with self._lock:
            watched = self._watched.get(key)
            if watched is not None:
                watched.moved_at = self._clock()

    @contextmanager
    def over(self, database: Database) -> Iterator[None]:
        """Keep watch within the block, also over every transaction of ``database``."""
        ended = threading.Event()
        thread = threading.Thread(target=self._look, args=(ended,), name="watchdog", daemon=True)
        before, database.around = database.around, lambda: self.watching(TRANSACTIONS, object())
        thread.start()
        try:
            yield
        finally:
            database.around = before
            ended.set()
            thread.join()

    def complaint(self) -> str | None:
        """What does not move, for a person; None while all is well."""
        now = self._clock()
        with self._lock:
            watched = list(self._watched.values())
        stalled = Counter(item.kind for item in watched if now - item.moved_at > self._limit)
        if not stalled:
            return None
        all_of_kind = Counter(item.kind for item in watched)
        counts = " and ".join(f"{count} of {all_of_kind[kind]} {kind}" for kind, count in sorted(stalled.items()))
        return (
            f"Nothing moved for {self._limit:.0f} s in {counts}: this worker ends, "
            "and its films go to another one or to its next start."
        )

    def _look(self, ended: threading.Event) -> None:
        pause = self._limit / _LOOKS_PER_LIMIT
        before = self._clock()
        while not ended.wait(pause):
            now = self._clock()
            overslept = now - before - pause
            before = now
            if overslept > pause:
                # Nor did we: the whole process stood still, as on a suspended machine.
                self._excuse(overslept, now)
            complaint = self.complaint()
            if complaint is not None:
                self._on_stall(complaint)
                return

    def _excuse(self, seconds: float, now: float) -> None:
        with self._lock:
            for watched in self._watched.values():
                watched.moved_at = min(now, watched.moved_at + seconds)
