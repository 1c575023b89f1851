"""How many batches does a process work on at once, and what came of one?

Two kinds of callers ask for work: tickets, which come when somebody knows of work, and
threads that look into the ledger every few seconds. Both share the same few slots.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class BatchReport:
    """What came of one batch; ``claimed`` is 0 where nothing was ready.

    ``states`` counts what the films became, ``released`` those given back unstarted,
    ``fenced`` those whose lease was lost meanwhile; ``alone`` marks a suspect that was run
    by itself. ``failure`` says, without identity, why the batch failed as a whole: its
    films are tried again.
    """

    claimed: int = 0
    states: Counter[str] = field(default_factory=Counter)
    released: int = 0
    fenced: int = 0
    alone: bool = False
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values: ``claimed``, a count for every state that occurred, and what else there was."""
        remarks = {"released": self.released, "fenced": self.fenced, "alone": self.alone}
        return {"claimed": self.claimed, **self.states, **{name: value for name, value in remarks.items() if value}}


class Slots:
    """Room for so many batches at once, between :meth:`open` and :meth:`close`.

    Tickets go before whoever merely looks: while work is announced, it is done under
    tickets, where people see it.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._tickets_waiting = 0
        self._open = False
        self._closed = False
        self._changed = threading.Condition()

    def open(self) -> None:
        """Give slots from now on."""
        with self._changed:
            self._open, self._closed = True, False
            self._changed.notify_all()

    def close(self) -> None:
        """Give no more slots; whoever waits for one goes away empty-handed."""
        with self._changed:
            self._open, self._closed = False, True
            self._changed.notify_all()

    def wait_until_free(self) -> None:
        """Wait until all slots were given back."""
        with self._changed:
            self._changed.wait_for(lambda: self._free == self._count)

    @contextmanager
    def for_ticket(self) -> Iterator[bool]:
        """A slot as soon as there is one; False once closed."""
        with self._changed:
            self._tickets_waiting += 1
            try:
                self._changed.wait_for(lambda: self._closed or (self._open and self._free > 0))
            finally:
                self._tickets_waiting -= 1
            given = self._take()
        with self._giving_back(given):
            yield given

    @contextmanager
    def for_poll(self) -> Iterator[bool]:
        """A slot if one is free now and no ticket waits for it; else False."""
        with self._changed:
            given = self._free > self._tickets_waiting and self._take()
        with self._giving_back(given):
            yield given

    def _take(self) -> bool:
        if not self._open or self._free == 0:
            return False
        self._free -= 1
        return True

    @contextmanager
    def _giving_back(self, given: bool) -> Iterator[None]:
        try:
            yield
        finally:
            if given:
                with self._changed:
                    self._free += 1
                    self._changed.notify_all()
