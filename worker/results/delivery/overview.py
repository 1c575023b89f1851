"""How do deliveries stand, and what is to be sent again? What a person asks and orders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, literal, select, update

from schema.database import Database
from schema.tables import DeliveryState, audit_event, delivery, delivery_destination, job
from schema.types import UtcDateTime, database_now, seconds_since
from worker.peers.trouble import advice, sentence
from worker.results.delivery.destinations import UNTROUBLED, destination_id

_OPEN = [str(state) for state in (DeliveryState.READY, DeliveryState.LEASED, DeliveryState.DELAYED)]


@dataclass(frozen=True)
class Standing:
    """One destination: outputs by state, the age of its oldest open one, and what is wrong with it, if anything.

    ``troubles`` is code → outputs that wait or failed because of it.
    """

    name: str
    kind: str
    configuration: dict[str, Any]
    removed: bool
    counts: dict[str, int]
    oldest_open_seconds: float | None
    failures: int
    code: str | None
    detail: str
    tried_again_in_seconds: float | None
    troubles: dict[str, int]

    @property
    def open(self) -> int:
        """Outputs still to be sent."""
        return sum(self.counts.get(state, 0) for state in _OPEN)

    @property
    def words(self) -> str:
        """How it stands, for a person."""
        if self.removed:
            return "removed"
        if self.code is not None:
            return f"{sentence(self.code, self.detail)} {advice(self.code)}"
        return "; ".join(f"{number} x {sentence(code)}" for code, number in sorted(self.troubles.items()))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "open": self.open, "sentence": self.words}


def standings(database: Database) -> list[Standing]:
    """All destinations by name; reads the whole outbox once."""
    counts: dict[int, dict[str, int]] = defaultdict(dict)
    oldest: dict[int, float] = {}
    troubles: dict[int, dict[str, int]] = defaultdict(dict)
    waiting = delivery.c.state.in_([str(DeliveryState.DELAYED), str(DeliveryState.FAILED)])
    with database.read() as connection:
        for number, state, count, age in connection.execute(
            select(
                delivery.c.destination_id,
                delivery.c.state,
                func.count(),
                func.max(seconds_since(delivery.c.created_at)),
            ).group_by(delivery.c.destination_id, delivery.c.state)
        ):
            counts[number][state] = count
            if state in _OPEN:
                oldest[number] = max(oldest.get(number, 0.0), age)
        for number, code, count in connection.execute(
            select(delivery.c.destination_id, delivery.c.code, func.count())
            .where(waiting)
            .group_by(delivery.c.destination_id, delivery.c.code)
        ):
            troubles[number][code] = count
        rows = connection.execute(
            select(
                delivery_destination, (-seconds_since(delivery_destination.c.blocked_until)).label("rests")
            ).order_by(delivery_destination.c.name)
        ).all()
    return [
        Standing(
            row.name, row.kind, row.configuration, row.removed_at is not None, counts[row.id], oldest.get(row.id),
            row.failures, row.code, row.detail, None if row.rests is None else max(0.0, row.rests), troubles[row.id],
        )
        for row in rows
    ]  # fmt: skip


def resend(
    database: Database,
    *,
    actor: str,
    states: Collection[str] = (str(DeliveryState.FAILED),),
    destination: str | None = None,
    jobs: Sequence[int] = (),
    since: datetime | None = None,
) -> int:
    """Put deliveries back into the outbox, and let their destinations be tried at once; audited.

    Parameters
    ----------
    states
        Of ``failed`` (dead letters), ``sent``, ``abandoned``: those in one of them are sent again. What was sent
        before has the same UIDs, so the other side recognises it.
    destination, jobs, since
        Only this destination's, these jobs', of results finished at or after this time; all where none is given.

    Returns
    -------
    int
        How many outputs are ready again.

    Raises
    ------
    CarinaError
        There is no such destination.
    """
    known = select(delivery_destination.c.id).where(delivery_destination.c.removed_at.is_(None))
    conditions: list[ColumnElement[bool]] = [delivery.c.state.in_(list(states)), delivery.c.destination_id.in_(known)]
    # What another result speaks for stays abandoned.
    conditions.append(func.coalesce(delivery.c.code, "") != "SUPERSEDED")
    if jobs:
        conditions.append(delivery.c.job_id.in_(jobs))
    if since is not None:
        finished = select(job.c.id).where(job.c.finished_at >= literal(since, UtcDateTime()))
        conditions.append(delivery.c.job_id.in_(finished))
    with database.write() as connection:
        if destination is not None:
            conditions.append(delivery.c.destination_id == destination_id(connection, destination))
        changed = connection.execute(
            update(delivery)
            .where(*conditions)
            .values(
                state=DeliveryState.READY.value, code=None, detail="", attempts=0, sent_at=None,
                available_at=database_now(),
            )
            .returning(delivery.c.destination_id)
        ).all()  # fmt: skip
        if changed:
            connection.execute(
                update(delivery_destination)
                .where(delivery_destination.c.id.in_({row.destination_id for row in changed}))
                .values(**UNTROUBLED)
            )
            detail = {
                "states": sorted(states), "destination": destination, "jobs": list(jobs),
                "since": None if since is None else since.isoformat(), "outputs": len(changed),
            }  # fmt: skip
            connection.execute(
                insert(audit_event).values(actor=actor, action="resend", subject="delivery", detail=detail)
            )
    return len(changed)
