"""A machine whose clock is wrong: ``time.time`` and ``datetime.now`` of this process, moved.

To be called before anything else is imported, so that nobody keeps the right ones. The clocks
that only go forward stay as they are, as on a machine that was set wrongly before it started.
"""

from __future__ import annotations

import datetime
import time
from typing import Any

#: Name of the environment variable with the seconds by which a worker for tests is ahead.
VARIABLE = "CARINA_TEST_CLOCK_SHIFT"


def shift_clock(seconds: float) -> None:
    """Let this process believe that it is ``seconds`` later."""
    if not seconds:
        return
    right_time, right_time_ns, right = time.time, time.time_ns, datetime.datetime
    shift = datetime.timedelta(seconds=seconds)

    class AnyDatetime(type):
        # What C code makes is of the right class: it must still count as one.
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, right)

    class Shifted(right, metaclass=AnyDatetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return right.now(tz) + shift

        @classmethod
        def utcnow(cls) -> Any:
            return right.utcnow() + shift

        @classmethod
        def today(cls) -> Any:
            return right.today() + shift

    time.time = lambda: right_time() + seconds
    time.time_ns = lambda: right_time_ns() + int(seconds * 1e9)
    datetime.datetime = Shifted  # type: ignore[misc]
