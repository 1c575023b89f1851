"""Who tells the workers that there is work?

Whoever committed new work announces it; a thread in the background sends tickets. They are
a courtesy: a worker that gets none looks into the ledger by itself a moment later. So no
announcement waits for the broker, none is repeated, and there are never many more tickets
than workers could use at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import func, select

from schema.database import Database
from schema.tables import worker
from worker.queue.app import QUEUE, make_app
from worker.queue.leases import is_alive
from worker.queue.loop import IN_FLIGHT
from worker.queue.tasks import BATCH, register
from worker.settings import Settings

log = logging.getLogger(__name__)

#: Called with the number of films that are ready since a commit.
Announce = Callable[[int], object]

#: Tickets for each batch that the workers can have in flight.
TICKETS_PER_SLOT = 2
#: A broker that did not answer is left alone for so long.
_REST_SECONDS = 5.0
#: How long a command waits at its end for its last tickets.
_CLOSE_SECONDS = 3.0


class TicketSender:
    """Sends tickets from a thread of its own.

    Parameters
    ----------
    slots
        Returns how many batches all workers together can have in flight.
    """

    def __init__(self, settings: Settings, slots: Callable[[], int]) -> None:
        self._app = make_app(settings)
        register(self._app)
        self._claim_size = settings.claim_size
        self._slots = slots
        self._connection: Any = None
        self._films = 0
        self._closing = False
        self._away = False
        self._quiet_until = float("-inf")
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ticket-sender", daemon=True)
        self._thread.start()

    def announce(self, films: int) -> None:
        """Say that ``films`` became ready; returns at once."""
        with self._changed:
            self._films += films
            self._changed.notify()

    def close(self) -> None:
        """Send what was announced, if that does not take long, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._films > 0 or self._closing)
                films, self._films = self._films, 0
            if films == 0:
                break
            if time.monotonic() >= self._quiet_until:
                self._try_to_send(-(-films // self._claim_size))
        self._disconnect()

    def _try_to_send(self, tickets: int) -> None:
        try:
            self._send(tickets)
        except Exception as error:
            # Whatever it is: the ledger has the work, and the workers look there.
            self._disconnect()
            self._quiet_until = time.monotonic() + _REST_SECONDS
            self._note(away=True, reason=type(error).__name__)
        else:
            self._note(away=False)

    def _send(self, tickets: int) -> None:
        if self._connection is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
        channel = self._connection.default_channel
        waiting = channel.queue_declare(queue=QUEUE, durable=True).message_count
        producer = self._app.amqp.Producer(channel, auto_declare=False)
        for _ in range(min(tickets, TICKETS_PER_SLOT * self._slots() - waiting)):
            self._app.send_task(BATCH, producer=producer, queue=QUEUE, retry=False, ignore_result=True)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _note(self, *, away: bool, reason: str = "") -> None:
        if away and not self._away:
            log.warning("The broker takes no tickets (%s): workers look into the database instead.", reason)
        if self._away and not away:
            log.warning("The broker takes tickets again.")
        self._away = away


@contextmanager
def announcing(settings: Settings, database: Database) -> Iterator[Announce]:
    """What to call after each commit that made films ready; does nothing where there is no broker.

    Raises
    ------
    CarinaError
        There is a broker, but Celery is not installed.
    """
    if not settings.broker_url:
        yield lambda films: None
        return
    sender = TicketSender(settings, lambda: _slots(database, settings))
    try:
        yield sender.announce
    finally:
        sender.close()


def _slots(database: Database, settings: Settings) -> int:
    alive = select(func.count()).select_from(worker).where(is_alive(settings.lease_seconds))
    with database.read() as connection:
        workers = int(connection.scalar(alive) or 0)
    return max(1, workers) * IN_FLIGHT
