"""What is tracked, window by window: computed once, and again only where something changed.

Each row keeps a digest of all that its numbers were computed from. A window whose films, labels, scores, thresholds and
rules are the same is left alone; so a label that comes weeks late, or a correction, changes the windows it falls into
and no others. Windows of equal content are computed once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Table, and_, delete, select

from schema.bulk import insert_rows
from schema.database import Database
from schema.types import database_now
from worker.bootstrap import REPLICATES
from worker.monitor.auc_figures import LEAST_PATIENTS, VERSION
from worker.monitor.labels import ReaderPolicy
from worker.monitor.windows import Window, WindowKey

Row = dict[str, Any]

_COLUMNS = ("cohort", "cohort_value", "period", "ends_at")
_ROWS_AT_ONCE = 500


class OutOfTimeError(Exception):
    """The time that was given is over; what was computed is stored."""


@dataclass
class Effort:
    """How long may it take, and what was done.

    ``until`` is on this process's monotonic clock; at least one window is computed whatever it says.
    """

    until: float = float("inf")
    computed: int = 0

    def spend(self) -> None:
        """Note that a window was computed; raises :class:`OutOfTimeError` when the time is over."""
        self.computed += 1
        if time.monotonic() >= self.until:
            raise OutOfTimeError


@dataclass
class Tracker:
    """Keeps the rows of one table and one owner, a bundle or a pair of them.

    Parameters
    ----------
    owner
        The columns that say whose rows they are, with their values.
    oldest
        Rows of windows that ended before it are left as they are.
    readers
        What several readers of a film say together.
    """

    database: Database
    table: Table
    owner: Mapping[str, Any]
    oldest: datetime
    readers: ReaderPolicy
    effort: Effort
    replicates: int = REPLICATES
    _known: dict[WindowKey, tuple[str, datetime]] = field(default_factory=dict)
    _made: dict[str, list[Row]] = field(default_factory=dict)
    _waiting: list[tuple[WindowKey, list[Row]]] = field(default_factory=list)

    def keep(
        self,
        windows: Iterable[Window],
        content: Callable[[Window], Sequence[npt.NDArray[Any]]],
        compute: Callable[[Window], list[Row]],
    ) -> None:
        """Bring the rows of these windows up to date and delete those of windows that are no more.

        Parameters
        ----------
        content
            All that ``compute`` depends on, as arrays.
        compute
            The rows of a window without the columns that all tables share.

        Raises
        ------
        OutOfTimeError
            There is more to do.
        """
        with self.database.read() as connection:
            self._known = self._stored(connection)
        gone = set(self._known)
        try:
            for window in windows:
                gone.discard(window.key)
                digest = self._digest(content(window))
                if self._known.get(window.key) != (digest, window.starts_at):
                    self._add(window, digest, compute)
        finally:
            self._write(())
        self._write(gone)

    def _add(self, window: Window, digest: str, compute: Callable[[Window], list[Row]]) -> None:
        fresh = digest not in self._made
        if fresh:
            self._made[digest] = compute(window)
        shared = {
            **self.owner,
            **_values(window.key),
            "starts_at": window.starts_at,
            "digest": digest,
            "readers": str(self.readers),
        }
        self._waiting.append((window.key, [{**shared, **row} for row in self._made[digest]]))
        if sum(len(rows) for _, rows in self._waiting) >= _ROWS_AT_ONCE:
            self._write(())
        if fresh:
            self.effort.spend()

    def _write(self, gone: Iterable[WindowKey]) -> None:
        waiting, self._waiting = self._waiting, []
        old = [*(key for key, _ in waiting), *gone]
        rows = [row for _, each in waiting for row in each]
        if not old and not rows:
            return
        with self.database.write() as connection:
            now = connection.scalar(select(database_now()))
            for key in old:
                same = [self.table.c[name] == value for name, value in _values(key).items()]
                connection.execute(delete(self.table).where(self._mine(), *same))
            insert_rows(connection, self.table, [{**row, "computed_at": now} for row in rows])

    def _stored(self, connection: Connection) -> dict[WindowKey, tuple[str, datetime]]:
        columns = self.table.c
        query = (
            select(*(columns[name] for name in _COLUMNS), columns.digest, columns.starts_at)
            .where(self._mine(), columns.ends_at >= self.oldest)
            .distinct()
        )
        return {WindowKey(*row[:-2]): (row[-2], row[-1]) for row in connection.execute(query)}

    def _mine(self) -> Any:
        return and_(*(self.table.c[name] == value for name, value in self.owner.items()))

    def _digest(self, content: Sequence[npt.NDArray[Any]]) -> str:
        digest = hashlib.sha256(f"{VERSION} {LEAST_PATIENTS} {self.replicates} {self.readers}".encode())
        for array in content:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _values(key: WindowKey) -> dict[str, Any]:
    return {
        "cohort": str(key.cohort),
        "cohort_value": key.cohort_value,
        "period": str(key.period),
        "ends_at": key.ends_at,
    }
