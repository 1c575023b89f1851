"""What waits for one destination, and who is sending it?

A sender claims deliveries under a lease, a UUID with an end, and writes what became of them only while
they still carry it, as workers do with films: so of two processes one sends, and whoever dies over a
delivery leaves it to the others. All times are the database's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, exists, func, literal_column, or_, select, update

from schema.database import Database
from schema.outputs import OutputKind
from schema.tables import DeliveryState, delivery, delivery_destination, job
from schema.types import database_now
from schema.view_tables import published_result
from worker.peers.configuration import Destination
from worker.peers.trouble import PeerError
from worker.results.delivery.destinations import UNTROUBLED
from worker.results.delivery.wanted import put_in, wanted

#: A result may be finished and its transaction committed so much later, and is still noticed.
OVERLAP = timedelta(minutes=10)
#: A peer in trouble is left alone for at most so long.
LONGEST_REST_SECONDS = 600.0
#: An output in trouble waits for at most so long.
LONGEST_DELAY_SECONDS = 3600.0
#: Attempts at one output before a person must look: about five hours.
MAX_ATTEMPTS = 12

_RATE_SECONDS = 60.0
_NO_LEASE: dict[str, Any] = {"lease_id": None, "leased_until": None}
_ORDER = {str(kind): number for number, kind in enumerate(OutputKind)}


def in_state(state: DeliveryState) -> ColumnElement[bool]:
    """``delivery.state = '…'`` with the value written out: partial indexes serve nothing else."""
    return delivery.c.state == literal_column(f"'{state.value}'")


@dataclass(frozen=True)
class Claimed:
    """One output to send. ``superseded`` says that another result speaks for the film now."""

    id: int
    job_id: int
    output: OutputKind
    attempts: int
    superseded: bool


@dataclass(frozen=True)
class Ended:
    """What became of a claimed output: sent (``trouble`` is None), or the code and detail of why not.

    ``final`` says that trying again would not help.
    """

    claimed: Claimed
    code: str | None = None
    detail: str = ""
    final: bool = False
    state: DeliveryState | None = None


@dataclass(frozen=True)
class Look:
    """How a destination stands: left alone for now, failures since its last success, and work of each kind."""

    resting: bool
    failures: int
    ready: bool
    returning: bool


class Outbox:
    """The deliveries of one destination.

    Parameters
    ----------
    backoff_seconds
        First wait after trouble; doubles each time.
    lease_seconds
        How long a silent sender keeps what it claimed.
    """

    def __init__(
        self,
        database: Database,
        destination_id: int,
        destination: Destination,
        *,
        backoff_seconds: float,
        lease_seconds: float,
    ) -> None:
        self._database = database
        self._id = destination_id
        self._destination = destination
        self._backoff = backoff_seconds
        self._lease_seconds = lease_seconds
        self._filled_until: datetime | None = None
        self._mine = delivery.c.destination_id == destination_id

    def fill(self, *, backfill: datetime | None = None) -> int:
        """Put in what was published since the last time, or since ``backfill``; returns how many outputs.

        Looks before it takes the write lock, so that an idle sender does not get in a worker's way.
        """
        with self._database.read() as connection:
            now, added, until = connection.execute(
                select(database_now(), delivery_destination.c.added_at, delivery_destination.c.filled_until).where(
                    delivery_destination.c.id == self._id
                )
            ).one()
            since = backfill or max(added, max(self._filled_until or until, until) - OVERLAP)
            queries = [
                wanted(self._id, self._destination.rules, output, since=since) for output in self._destination.outputs
            ]
            missing = [query for query in queries if connection.scalar(select(exists(query)))]
        added_rows = 0
        if missing:
            with self._database.write() as connection:
                added_rows = sum(self._insert(connection, query) for query in missing)
                connection.execute(
                    update(delivery_destination)
                    .where(delivery_destination.c.id == self._id, delivery_destination.c.filled_until < now)
                    .values(filled_until=now)
                )
        self._filled_until = now
        return added_rows

    def replace(self, superseded: Sequence[Claimed], lease_id: str) -> None:
        """Abandon what another result speaks for, and put that in instead, as far as the rules want it."""
        with self._database.write() as connection:
            self._write(connection, lease_id, [
                Ended(each, "SUPERSEDED", state=DeliveryState.ABANDONED) for each in superseded
            ])  # fmt: skip
            jobs = [each.job_id for each in superseded]
            films = connection.scalars(select(job.c.instance_id).where(job.c.id.in_(jobs)).distinct()).all()
            for output in self._destination.outputs:
                self._insert(connection, wanted(self._id, self._destination.rules, output, films=films))

    def look(self) -> Look:
        """How things stand; from indexes alone."""
        with self._database.read() as connection:
            row = connection.execute(
                select(
                    delivery_destination.c.failures,
                    func.coalesce(delivery_destination.c.blocked_until > database_now(), literal_column("false")),
                    exists().where(self._mine, in_state(DeliveryState.READY)),
                    exists().where(self._mine, or_(*self._returning())),
                ).where(delivery_destination.c.id == self._id)
            ).one()
        return Look(resting=bool(row[1]), failures=row[0], ready=bool(row[2]), returning=bool(row[3]))

    def bring_back(self) -> int:
        """Make ready what waited long enough, and what its sender fell silent over."""
        with self._database.write() as connection:
            return sum(
                connection.execute(
                    update(delivery).where(self._mine, which).values(state=DeliveryState.READY.value, **_NO_LEASE)
                ).rowcount
                for which in self._returning()
            )

    def claim(self, lease_id: str, limit: int) -> list[Claimed]:
        """Claim up to ``limit`` outputs, the most urgent first; those of one film stand together.

        Called again with the same ``lease_id`` it returns what that claimed: an answer may be lost.
        """
        with self._database.write() as connection:
            # Whoever counts what was sent in the last minute must be alone with it.
            connection.execute(
                select(delivery_destination.c.id).where(delivery_destination.c.id == self._id).with_for_update()
            )
            claimed = self._held(connection, lease_id)
            if claimed:
                return claimed
            room = self._room(connection, limit)
            if room <= 0:
                return []
            chosen = (
                select(delivery.c.id)
                .where(self._mine, in_state(DeliveryState.READY))
                .order_by(delivery.c.priority, delivery.c.job_id, delivery.c.id)
                .limit(room)
                .with_for_update(skip_locked=True)
                .cte("chosen")
                .prefix_with("MATERIALIZED")
            )
            connection.execute(
                update(delivery)
                .where(delivery.c.id.in_(select(chosen.c.id)))
                .values(
                    state=DeliveryState.LEASED.value,
                    lease_id=lease_id,
                    leased_until=database_now(self._lease_seconds),
                    attempts=delivery.c.attempts + 1,
                )
            )
            return self._held(connection, lease_id)

    def full(self) -> bool:
        """Whether the destination has had its outputs of this minute."""
        with self._database.read() as connection:
            return self._room(connection, 1) <= 0

    def renew(self, lease_id: str) -> bool:
        """Hold what is claimed for another while; False if nothing of it is held any more."""
        with self._database.write() as connection:
            renewed = connection.execute(
                update(delivery)
                .where(delivery.c.lease_id == lease_id, in_state(DeliveryState.LEASED))
                .values(leased_until=database_now(self._lease_seconds))
            )
            return renewed.rowcount > 0

    def record(self, lease_id: str, ended: Sequence[Ended]) -> None:
        """Write what became of claimed outputs, as far as they are still held; a success closes the circuit."""
        with self._database.write() as connection:
            self._write(connection, lease_id, ended)
            if any(each.code is None for each in ended):
                connection.execute(
                    update(delivery_destination)
                    .where(delivery_destination.c.id == self._id, delivery_destination.c.failures > 0)
                    .values(**UNTROUBLED)
                )

    def give_back(self, lease_id: str) -> int:
        """Make ready again what is still held, its attempt uncounted."""
        with self._database.write() as connection:
            return connection.execute(
                update(delivery)
                .where(delivery.c.lease_id == lease_id, in_state(DeliveryState.LEASED))
                .values(
                    state=DeliveryState.READY.value,
                    **_NO_LEASE,
                    attempts=case((delivery.c.attempts > 0, delivery.c.attempts - 1), else_=0),
                )
            ).rowcount

    def rest(self, trouble: PeerError) -> float:
        """Leave the destination alone for a while; returns for how many seconds."""
        with self._database.write() as connection:
            row = connection.execute(
                select(delivery_destination.c.failures).where(delivery_destination.c.id == self._id).with_for_update()
            ).one()
            seconds = _doubled(self._backoff, row.failures, LONGEST_REST_SECONDS)
            connection.execute(
                update(delivery_destination)
                .where(delivery_destination.c.id == self._id)
                .values(
                    failures=row.failures + 1,
                    blocked_until=database_now(seconds),
                    code=trouble.code,
                    detail=trouble.detail,
                )
            )
            return seconds

    def _insert(self, connection: Connection, query: Any) -> int:
        statement = put_in(query, self._database.dialect)
        return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount

    def _returning(self) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        due = in_state(DeliveryState.DELAYED) & (delivery.c.available_at <= database_now())
        silent = in_state(DeliveryState.LEASED) & (delivery.c.leased_until <= database_now())
        return due, silent

    def _room(self, connection: Connection, limit: int) -> int:
        if self._destination.per_minute is None:
            return limit
        lately = connection.scalar(
            select(func.count()).where(self._mine, delivery.c.sent_at > database_now(-_RATE_SECONDS))
        )
        held = connection.scalar(select(func.count()).where(self._mine, in_state(DeliveryState.LEASED)))
        return min(limit, self._destination.per_minute - (lately or 0) - (held or 0))

    def _held(self, connection: Connection, lease_id: str) -> list[Claimed]:
        rows = connection.execute(
            select(
                delivery.c.id, delivery.c.job_id, delivery.c.output, delivery.c.attempts, delivery.c.priority,
                exists().where(published_result.c.job_id == delivery.c.job_id).label("speaks"),
            ).where(delivery.c.lease_id == lease_id, in_state(DeliveryState.LEASED))
        ).all()  # fmt: skip
        rows = sorted(rows, key=lambda row: (row.priority, row.job_id, _ORDER[row.output]))
        return [
            Claimed(row.id, row.job_id, OutputKind(row.output), row.attempts, superseded=not row.speaks) for row in rows
        ]

    def _write(self, connection: Connection, lease_id: str, ended: Sequence[Ended]) -> None:
        for each in ended:
            connection.execute(
                update(delivery)
                .where(delivery.c.id == each.claimed.id, delivery.c.lease_id == lease_id)
                .values(**_NO_LEASE, code=each.code, detail=each.detail, **self._next(each))
            )

    def _next(self, ended: Ended) -> dict[str, Any]:
        """State and times after an end."""
        if ended.code is None:
            return {"state": DeliveryState.SENT.value, "sent_at": database_now(), "available_at": None}
        if ended.state is not None:
            return {"state": ended.state.value}
        if ended.final or ended.claimed.attempts >= MAX_ATTEMPTS:
            return {"state": DeliveryState.FAILED.value}
        seconds = _doubled(self._backoff, ended.claimed.attempts - 1, LONGEST_DELAY_SECONDS)
        return {"state": DeliveryState.DELAYED.value, "available_at": database_now(seconds)}


def _doubled(first: float, times: int, longest: float) -> float:
    return min(longest, first * 2.0 ** min(times, 30))
