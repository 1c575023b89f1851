"""What came in and what was refused since the last look, as a line for a person."""

from __future__ import annotations

import threading
from collections import Counter


class Tally:
    """Counts films and connections; names nobody. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forget()

    def received(self, size: int) -> None:
        """A film of ``size`` bytes was stored and acknowledged."""
        with self._lock:
            self._films += 1
            self._bytes += size

    def refused(self, reason: str) -> None:
        """A film was refused."""
        with self._lock:
            self._refused[reason] += 1

    def turned_away(self, reason: str) -> None:
        """A connection or an association was refused or broken off."""
        with self._lock:
            self._turned_away[reason] += 1

    def line(self) -> str:
        """What happened since the last call; "" if nothing did."""
        with self._lock:
            films, size, refused, away = self._films, self._bytes, self._refused, self._turned_away
            self._forget()
        parts = []
        if films or refused:
            parts.append(f"{films} films received ({size / 1e6:.1f} MB), {refused.total()} refused{_why(refused)}")
        if away:
            parts.append(f"{away.total()} connections turned away{_why(away)}")
        return "; ".join(parts)

    def _forget(self) -> None:
        self._films = self._bytes = 0
        self._refused: Counter[str] = Counter()
        self._turned_away: Counter[str] = Counter()


def _why(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{reason}: {count}' for reason, count in counts.most_common())})" if counts else ""
