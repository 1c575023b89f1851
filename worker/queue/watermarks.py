"""Is there room for more work?

Two watermarks with hysteresis: what stops at the high mark goes on only below the low one,
so that nothing flutters around a limit. A full disk stops claiming and registering; a long
backlog stops registering.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select

from schema.database import Database
from schema.tables import JobState, job
from worker.queue.leases import NO_SHADOW, in_state
from worker.settings import Settings

log = logging.getLogger(__name__)

#: Work resumes when this much more than the reserve is free.
DISK_HYSTERESIS = 1.1


class Watermark:
    """Closed once a level reaches ``high``, open again once it is at ``low`` or below."""

    def __init__(self, *, low: float, high: float) -> None:
        if low > high:
            raise ValueError(f"the low mark {low} lies above the high mark {high}")
        self._low, self._high = low, high
        self.closed = False

    def update(self, level: float) -> bool:
        """Take a new level; returns whether it is closed now."""
        self.closed = level > self._low if self.closed else level >= self._high
        return self.closed


class DiskWatermark:
    """Closed while the folder's file system has less free space than the reserve (bytes)."""

    def __init__(
        self, folder: Path, reserve: int, *, free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    ) -> None:
        self._folder, self._free = folder, free
        # Levels are negative free bytes: a watermark closes upwards.
        self._mark = Watermark(low=-reserve * DISK_HYSTERESIS, high=-reserve + 1)
        self._lock = threading.Lock()
        #: Free bytes at the last look; None before the first.
        self.free_bytes: int | None = None

    def full(self) -> bool:
        """Look at the disk; says so in the log when it fills up and when there is room again."""
        free = self.free_bytes = self._free(self._folder)
        with self._lock:
            before = self._mark.closed
            closed = self._mark.update(-free)
        if closed and not before:
            log.warning("The disk of the home folder is nearly full (%d MiB free): work pauses.", free >> 20)
        if before and not closed:
            log.warning("The disk of the home folder has room again: work goes on.")
        return closed


def backlog(database: Database, limit: int) -> int:
    """Ready jobs, shadow jobs left out, counted up to ``limit``: a walk along the index of ready jobs."""
    ready = select(job.c.id).where(in_state(JobState.READY), NO_SHADOW).limit(limit).subquery()
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(ready)) or 0)


class Room:
    """Whether more films may be registered: disk and backlog together."""

    def __init__(self, database: Database, settings: Settings, *, disk: DiskWatermark | None = None) -> None:
        self._database = database
        self._high = settings.backlog_high
        self._disk = disk or DiskWatermark(settings.home, settings.disk_reserve)
        self._backlog = Watermark(low=settings.backlog_low, high=settings.backlog_high)

    def missing(self) -> str | None:
        """What there is too much or too little of, for a person; None when there is room."""
        if self._disk.full():
            return "the disk of the home folder is nearly full"
        if self._backlog.update(backlog(self._database, self._high)):
            return f"{self._high} films wait already"
        return None

    def wait(
        self, stop: threading.Event, *, poll_seconds: float, say: Callable[[str], None] = lambda reason: None
    ) -> bool:
        """Wait until there is room; False if ``stop`` was set first. ``say`` hears each new reason once."""
        said = None
        while (reason := self.missing()) is not None:
            if reason != said:
                said = reason
                say(reason)
            if stop.wait(poll_seconds):
                return False
        return not stop.is_set()


def wait_for_room(
    database: Database,
    settings: Settings,
    stop: threading.Event,
    *,
    say: Callable[[str], None] = lambda reason: None,
) -> bool:
    """Wait until films may be registered; False if ``stop`` was set first.

    Whoever registers in many steps keeps a :class:`Room` instead, so that the pause lasts
    until the low mark.
    """
    return Room(database, settings).wait(stop, poll_seconds=settings.poll_seconds, say=say)
