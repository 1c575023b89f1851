"""Is there room for one more film?"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from schema.database import Database, is_busy
from worker.queue.watermarks import DiskWatermark, Room
from worker.settings import Settings

#: What was seen is believed for so long: a look asks the database.
_LOOK_SECONDS = 1.0


class Gate:
    """The watermarks of disk and backlog, looked at once a second at most. Safe between threads."""

    def __init__(self, database: Database, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        def least_free(spool: Path) -> int:
            return min(shutil.disk_usage(spool).free, shutil.disk_usage(settings.home).free)

        self._disk = DiskWatermark(settings.spool, settings.disk_reserve, free=least_free)
        self._room = Room(database, settings, disk=self._disk)
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._missing: str | None = None

    def missing(self) -> str | None:
        """Why no film can be taken now, for a person; None when there is room."""
        with self._lock:
            if self._clock() - self._looked_at >= _LOOK_SECONDS:
                self._missing = self._look()
                self._looked_at = self._clock()
            return self._missing

    def disk_full(self) -> bool:
        """Whether the disk alone is too full, looked at now."""
        return self._disk.full()

    def _look(self) -> str | None:
        try:
            return self._room.missing()
        except DBAPIError as error:
            if not is_busy(error):
                raise
            return "the database does not answer"
