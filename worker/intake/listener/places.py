"""Who may stay when all places are taken?

A connection that never asked for an association, or has been silent for a moment, gives way to
a new one: idle connections cannot lock senders out.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

#: An association keeps its place for so long without a word.
_IDLE_SECONDS = 2.0


class Place:
    """One connection: when its peer was last heard, and whether a film of it is being stored."""

    def __init__(self, connection: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        self.connection = connection
        self._clock = clock
        self.heard = self.stored = clock()
        self.established = False
        self.storing = False

    def hear(self) -> None:
        """Something came."""
        self.heard = self._clock()

    def last_sign(self) -> float:
        """When something last came, or a film was stored (seconds of the clock)."""
        return max(self.heard, self.stored)

    def idle_seconds(self) -> float:
        """Seconds since then; 0 while a film is being stored."""
        return 0.0 if self.storing else self._clock() - self.last_sign()

    def begin_storing(self) -> None:
        """A film of this connection is being stored."""
        self.storing = True

    def end_storing(self) -> None:
        """Its answer is on the way."""
        self.stored = self._clock()
        self.storing = False

    def gives_way(self) -> bool:
        """Whether a new connection may have this place."""
        return not self.storing and (not self.established or self.idle_seconds() > _IDLE_SECONDS)

    def close(self) -> None:
        """Break the connection off; whoever serves it notices."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class Places:
    """The places of a listener process. Safe between threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: set[Place] = set()
        self._lock = threading.Lock()

    def take(self, place: Place) -> Place | None:
        """Give ``place`` to a new connection; returns the one that must be broken off for it, if any.

        Raises
        ------
        BlockingIOError
            All places are taken by associations at work.
        """
        with self._lock:
            leaver = None
            if len(self._taken) >= self._limit:
                leaver = min(filter(Place.gives_way, self._taken), key=Place.last_sign, default=None)
                if leaver is None:
                    raise BlockingIOError
                self._taken.remove(leaver)
            self._taken.add(place)
            return leaver

    def leave(self, place: Place) -> None:
        """The connection is over."""
        with self._lock:
            self._taken.discard(place)

    def taken(self) -> list[Place]:
        """All places taken now."""
        with self._lock:
            return list(self._taken)
