"""How do many senders share the price of a commit?

Films that are stored at the same time are registered in one transaction: whoever finds nobody
committing commits for all who wait. None is acknowledged before.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Self

from sqlalchemy.exc import DBAPIError

from schema.database import Database, DatabaseVersionError, is_busy
from worker.intake.register import Examined, Registrar
from worker.intake.rules import Rules
from worker.intake.scan import close_submission, open_submission

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Waiting:
    file: Examined
    lane: str
    done: Future[None] = field(default_factory=Future)


class GroupCommit:
    """Registers films, one submission for each lane and day.

    Parameters
    ----------
    rules
        Which films are processed.
    announce
        Called after each commit with the number of films that became ready.
    today
        The day (UTC).
    """

    def __init__(
        self,
        database: Database,
        site_key: bytes,
        rules: Rules,
        announce: Callable[[int], object] = lambda films: None,
        *,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self._database = database
        self._site_key = site_key
        self._rules = rules
        self._announce = announce
        self._today = today
        #: The tables were upgraded meanwhile: nothing can be registered any more.
        self.outdated: DatabaseVersionError | None = None
        self._submissions: dict[str, tuple[date, int]] = {}
        self._waiting: deque[_Waiting] = deque()
        self._committing = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, submission_id in self._submissions.values():
            self._close(submission_id)

    def register(self, file: Examined, lane: str) -> None:
        """Register one film; returns once it is committed.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            Nothing is known to be committed: see :func:`schema.database.is_busy`.
        schema.database.DatabaseVersionError
            The tables were upgraded meanwhile; :attr:`outdated` is set.
        """
        waiting = _Waiting(file, lane)
        self._waiting.append(waiting)
        with self._committing:
            if not waiting.done.done():
                self._commit_waiting()
        waiting.done.result()

    def _commit_waiting(self) -> None:
        # Nobody takes from the other end meanwhile, and the caller's own film is among these.
        together = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for lane in {item.lane for item in together}:
            self._commit(lane, [item for item in together if item.lane == lane])

    def _commit(self, lane: str, together: list[_Waiting]) -> None:
        try:
            registrar = Registrar(self._database, self._site_key, self._submission(lane), lane, self._rules)
            counts = registrar.register([item.file for item in together])
        except Exception as error:
            for item in together:
                item.done.set_exception(error)
            self._look_at_version(error)
            return
        for item in together:
            item.done.set_result(None)
        if counts.work:
            self._announce(counts.work)

    def _look_at_version(self, error: Exception) -> None:
        if isinstance(error, DatabaseVersionError):
            self.outdated = error
        elif isinstance(error, DBAPIError) and not is_busy(error):
            try:
                self._database.require_current()
            except DatabaseVersionError as outdated:
                self.outdated = outdated
            except DBAPIError:
                log.info("the version of the database could not be looked at")

    def _submission(self, lane: str) -> int:
        today = self._today()
        day, submission_id = self._submissions.get(lane, (None, 0))
        if day != today:
            if day is not None:
                self._close(submission_id)
                del self._submissions[lane]
            submission_id = open_submission(self._database, lane)
            self._submissions[lane] = today, submission_id
        return submission_id

    def _close(self, submission_id: int) -> None:
        try:
            close_submission(self._database, submission_id)
        except DBAPIError as error:
            log.warning("a submission of the listener could not be closed: %s", type(error).__name__)
