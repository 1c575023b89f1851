"""What if the database is busy, full or away? Wait and try again; say so once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from schema.database import is_busy

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 10.0


class Patience:
    """Repeats what fails because the database is busy, full or away; shared by all threads.

    Parameters
    ----------
    wait
        Waits so many seconds; may return early.
    """

    def __init__(self, *, wait: Callable[[float], object] = time.sleep) -> None:
        self._wait = wait
        self._away = False
        self._lock = threading.Lock()

    def until_done(self, operation: Callable[[], Value], *, give_up: Callable[[], bool] = lambda: False) -> Value:
        """Return what ``operation`` returns, however often it has to be tried.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            An error that waiting does not cure, or any once ``give_up`` returns True.
        """
        seconds = _FIRST_WAIT_SECONDS
        while True:
            try:
                value = operation()
            except DBAPIError as error:
                if not is_busy(error) or give_up():
                    raise
                self._note(away=True, error=error)
            else:
                self._note(away=False)
                return value
            self._wait(seconds)
            seconds = min(seconds * 2, _LONGEST_WAIT_SECONDS)

    def _note(self, *, away: bool, error: DBAPIError | None = None) -> None:
        with self._lock:
            if away == self._away:
                return
            self._away = away
        if away:
            log.error("The database does not take our work (%s): trying until it does.", type(error).__name__)
        else:
            log.warning("The database takes our work again.")


@contextmanager
def outage_ends(accepted: Callable[[], bool]) -> Iterator[None]:
    """Leave the block where the database is away and that is ``accepted``: what is open stays in the ledger."""
    try:
        yield
    except DBAPIError as error:
        if not (is_busy(error) and accepted()):
            raise
