"""What would another bundle have said about these films?

A shadow job has a bundle on trial read a film that has its result already. It is bound to that
bundle from the start, waits behind everything else, and what comes of it is shown to nobody.
Promoting the bundle publishes it: the job becomes an ordinary one, and its film is not read
again. What of it was still open is cancelled then, as the film's own jobs go on with the new
bundle anyway.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, bindparam, exists, func, insert, select, true, update

from schema import tables
from schema.database import Database
from schema.tables import PRIORITY, SHADOW_PRIORITY, JobKind, JobState, Lane, arrival, instance, job
from schema.types import database_now
from schema.view_tables import published_result
from worker import REVISION
from worker.errors import CarinaError
from worker.intake.lookups import OPEN, slices
from worker.queue.leases import SHADOW, UNBOUND

_SLICE = 1000
_KEY_DIGITS = 8


@dataclass(frozen=True)
class ShadowReport:
    """What a call of :func:`open_shadow_jobs` did, and how the bundle's shadow jobs stand now.

    ``opened`` are new jobs, ``known`` films of the choice that the bundle has read or will
    read anyway; ``states`` counts all its shadow jobs.
    """

    opened: int
    known: int
    states: Counter[str]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"opened": self.opened, "known": self.known, "states": dict(sorted(self.states.items()))}


def open_shadow_jobs(
    database: Database, bundle_id: int, *, share: float = 1.0, last: int | None = None, revision: int = REVISION
) -> ShadowReport:
    """Have a bundle read films that have a published result.

    Parameters
    ----------
    share
        Part of the films (0-1). The same films are chosen whenever it is asked for.
    last
        Only so many films, those whose results were written last.

    Raises
    ------
    CarinaError
        The bundle is the one in service.
    """
    with database.read() as connection:
        films = list(connection.scalars(_films(share, last)))
    opened = 0
    for piece in slices(films, _SLICE):
        with database.write() as connection:
            _refuse_champion(connection, bundle_id)
            failed = update(job).where(SHADOW, job.c.bundle_id == bundle_id, job.c.state == JobState.FAILED.value)
            again = failed.where(job.c.instance_id.in_(piece))
            connection.execute(again.values(state=JobState.CANCELLED.value, detail="asked for again"))
            rows = [
                {**row, "kind": JobKind.SHADOW.value, "priority": SHADOW_PRIORITY, "published": False}
                for row in connection.execute(
                    _UNREAD, {"films": piece, "bundle": bundle_id, "revision": revision}
                ).mappings()
            ]
            if rows:
                connection.execute(insert(job), rows)
            opened += len(rows)
    with database.read() as connection:
        states = shadow_states(connection, bundle_id)
    return ShadowReport(opened, len(films) - opened, states)


def shadow_states(connection: Connection, bundle_id: int) -> Counter[str]:
    """State → a bundle's shadow jobs in it."""
    counted = select(job.c.state, func.count()).where(SHADOW, job.c.bundle_id == bundle_id).group_by(job.c.state)
    return Counter({row[0]: row[1] for row in connection.execute(counted)})


def bundles_on_trial(connection: Connection) -> list[int]:
    """The bundles that have open shadow jobs, the one added last first; answered from an index."""
    waits = exists().where(SHADOW, OPEN, job.c.bundle_id == tables.bundle.c.id)
    return list(connection.scalars(select(tables.bundle.c.id).where(waits).order_by(tables.bundle.c.id.desc())))


def publish(connection: Connection, bundle_id: int) -> int:
    """Publish what a bundle found out in the shadow; for whoever puts it into service, in the same transaction.

    Returns
    -------
    int
        How many films have its result from now on.
    """
    connection.execute(
        update(job)
        .where(SHADOW, OPEN, job.c.bundle_id == bundle_id)
        .values(state=JobState.CANCELLED.value, **UNBOUND, finished_at=database_now(), detail="its bundle was promoted")
    )
    rival, film = job.alias("rival"), instance.alias("film")
    same = (
        rival.c.instance_id == job.c.instance_id,
        rival.c.bundle_id == job.c.bundle_id,
        rival.c.revision == job.c.revision,
        rival.c.generation == job.c.generation,
    )
    # The bundle may have been in service before, or have read a film in the shadow twice.
    taken = exists().where(*same, rival.c.kind == JobKind.PROCESS.value)
    repeated = exists().where(*same, rival.c.kind == JobKind.SHADOW.value, rival.c.id > job.c.id, _final(rival))
    present = exists().where(
        film.c.id == job.c.instance_id, film.c.generation == job.c.generation, film.c.alias_of.is_(None)
    )
    return connection.execute(
        update(job)
        .where(SHADOW, job.c.bundle_id == bundle_id, _final(job), present, ~taken, ~repeated)
        .values(kind=JobKind.PROCESS.value, published=True, priority=PRIORITY[Lane.ARCHIVE])
    ).rowcount


def _final(table: Any) -> Any:
    return table.c.state.in_([JobState.DONE.value, JobState.INELIGIBLE.value])


def _films(share: float, last: int | None) -> Select[Any]:
    films = select(published_result.c.instance_id)
    if share < 1.0:
        # Keys are hashes: their first digits deal the films out evenly.
        limit = round(share * 16**_KEY_DIGITS)
        films = films.where(published_result.c.instance_key < f"{limit:0{_KEY_DIGITS}x}")
    return films.order_by(published_result.c.finished_at.desc(), published_result.c.job_id.desc()).limit(last)


_other = job.alias("other")
_SEEN = exists().where(
    _other.c.instance_id == instance.c.id,
    _other.c.bundle_id == bindparam("bundle"),
    _other.c.generation == instance.c.generation,
    _other.c.kind != JobKind.VERIFY.value,
    _other.c.state != JobState.CANCELLED.value,
    _other.c.revision.is_(None) | (_other.c.revision == bindparam("revision")),
)
#: Of the films asked for, those that the bundle has not read and is not going to.
_UNREAD = (
    select(
        instance.c.id.label("instance_id"),
        instance.c.generation,
        arrival.c.id.label("arrival_id"),
        bindparam("bundle", type_=job.c.bundle_id.type).label("bundle_id"),
    )
    .join(arrival, (arrival.c.instance_id == instance.c.id) & (arrival.c.current == true()))
    .where(instance.c.id.in_(bindparam("films", expanding=True)), ~_SEEN)
    .order_by(instance.c.id)
)


def _refuse_champion(connection: Connection, bundle_id: int) -> None:
    # Locked: a promotion in this moment waits, and then publishes or cancels what comes here.
    champion = select(tables.bundle_alias.c.bundle_id).where(tables.bundle_alias.c.alias == "champion")
    if connection.scalar(champion.with_for_update()) == bundle_id:
        raise CarinaError("This bundle is in service: it reads every film anyway.")
