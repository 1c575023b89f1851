"""Wait for something to come true, but not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], what: str | Callable[[], object] = "a condition", seconds: float = 120.0
) -> None:
    """Look at ``condition`` until it holds; fails, and says ``what`` it waited for, if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what() if callable(what) else what}"
        time.sleep(0.02)
