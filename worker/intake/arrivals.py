"""Which film is this file, now that its content is known?

A header names a film; only its pixels say whether two files hold the same one. Every
function here runs inside the transaction of its caller, which holds the job's lease.

==================  =======================================================================
settlement          what happened
==================  =======================================================================
``PROCEED``         the film is the first of its content: write its result
``ALIAS``           another film, of another UID, has this content: no result of its own
``DUPLICATE``       a second file of a film, with the content the film has
``CONFLICT``        a second file of a film, with other content: a person decides
``ADOPTED``         a second file of a film whose first one was of no use: it takes its place
``WAIT``            the film's own job is still open: its content is not known yet
==================  =======================================================================
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, true, update
from sqlalchemy.exc import IntegrityError

from schema.tables import PRIORITY, ArrivalState, JobKind, JobState, arrival, instance, job
from schema.text import storable
from schema.types import database_now
from worker.errors import FilmError
from worker.film.prepared import FilmFacts, Geometry
from worker.intake.lookups import OPEN, PROCESS
from worker.queue.leases import SHADOW, UNBOUND
from worker.queue.outcomes import ClaimedJob, Content

_LOWEST_PRIORITY = max(PRIORITY.values())
_OPEN_STATES = frozenset({JobState.READY.value, JobState.DELAYED.value, JobState.LEASED.value})


class Settlement(StrEnum):
    """What a file turned out to be: see the table above."""

    PROCEED = "proceed"
    ALIAS = "alias"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    ADOPTED = "adopted"
    WAIT = "wait"


def settle(
    connection: Connection,
    job: ClaimedJob,
    content: Content,
    *,
    geometry: Geometry | None,
    facts: FilmFacts | None,
) -> Settlement:
    """Say what the file of ``job`` is, and write it down.

    Parameters
    ----------
    connection
        The transaction in which the job's outcome is written.
    content
        Hashes of the file and of what it holds.
    geometry, facts
        Of a ``process`` job's film; None for a ``verify`` job.
    """
    connection.execute(
        update(arrival)
        .where(arrival.c.id == job.arrival_id)
        .values(file_hash=content.file_hash, content_hash=content.content_hash)
    )
    if job.kind is JobKind.PROCESS:
        return _settle_film(connection, job, content, geometry, facts)
    return _settle_second_file(connection, job, content)


def reject(connection: Connection, job: ClaimedJob, error: FilmError) -> None:
    """Write down that the file of a ``verify`` job cannot be read, or is no film: its arrival is rejected."""
    _set_arrival(connection, job.arrival_id, ArrivalState.REJECTED, code=error.code, detail=error.detail)


def replace_file(
    connection: Connection, instance_id: int, arrival_id: int, *, former: ArrivalState, code: str | None, detail: str
) -> None:
    """Let another file take a film's place: the film is processed anew under a new generation.

    Earlier results are unpublished, open jobs cancelled. Films that were known as aliases of
    the old content speak for it themselves from now on.

    Parameters
    ----------
    former, code, detail
        What becomes of the arrival that held the place, and of its duplicates.
    """
    film = connection.execute(_FILM, {"instance": instance_id}).one()
    before = connection.execute(_JOBS, {"instance": instance_id}).all()
    priority = before[-1].priority if before else _LOWEST_PRIORITY
    connection.execute(
        update(arrival)
        .where(arrival.c.instance_id == instance_id)
        .where((arrival.c.current == true()) | (arrival.c.state == ArrivalState.DUPLICATE.value))
        .values(current=False, state=former.value, code=code, detail=detail)
    )
    _set_arrival(connection, arrival_id, ArrivalState.INSTANCE, current=True)
    same = select(_chosen.c.content_hash).where(_chosen.c.id == arrival_id).scalar_subquery()
    connection.execute(
        update(arrival)
        .where(arrival.c.instance_id == instance_id, arrival.c.state == ArrivalState.CONFLICT.value)
        .where(arrival.c.content_hash == same)
        .values(state=ArrivalState.DUPLICATE.value)
    )
    _close_jobs(connection, instance_id)
    connection.execute(
        update(instance)
        .where(instance.c.id == instance_id)
        .values(generation=film.generation + 1, content_hash=None, file_hash=None, alias_of=None)
    )
    if film.alias_of is None:
        release_aliases(connection, instance_id, priority)
    _open_job(connection, instance_id, arrival_id, film.generation + 1, priority)


def _settle_film(
    connection: Connection, job: ClaimedJob, content: Content, geometry: Geometry | None, facts: FilmFacts | None
) -> Settlement:
    values = {"content_hash": content.content_hash, "file_hash": content.file_hash, **described(geometry, facts)}
    mine = update(instance).where(instance.c.id == job.instance_id)
    twin = _twin(connection, job.instance_id, content)
    if twin is None:
        try:
            with connection.begin_nested():
                connection.execute(mine.values(alias_of=None, **values))
        except IntegrityError:
            # Another worker settled the same content in this moment; its row is visible now.
            twin = _twin(connection, job.instance_id, content)
            if twin is None:
                raise
    if twin is None:
        _set_arrival(connection, job.arrival_id, ArrivalState.INSTANCE, current=True)
        return Settlement.PROCEED
    connection.execute(mine.values(alias_of=twin, **values))
    _set_arrival(connection, job.arrival_id, ArrivalState.ALIAS, current=True)
    return Settlement.ALIAS


def _settle_second_file(connection: Connection, claimed: ClaimedJob, content: Content) -> Settlement:
    film = connection.execute(_FILM, {"instance": claimed.instance_id}).one()
    current = connection.execute(_CURRENT, {"instance": claimed.instance_id}).first()
    if current is not None and current.id == claimed.arrival_id:
        return Settlement.ADOPTED
    if _is_known(film, content) or (current is not None and _is_known(current, content)):
        _set_arrival(connection, claimed.arrival_id, ArrivalState.DUPLICATE)
        return Settlement.DUPLICATE
    # An alias has no results of its own: the film it repeats tells what its first file was worth.
    jobs = connection.execute(_JOBS, {"instance": film.alias_of or claimed.instance_id}).all()
    states = {row.state for row in jobs}
    if JobState.DONE not in states:
        if states & _OPEN_STATES or _in_work(connection, claimed.instance_id):
            return Settlement.WAIT
        code, detail = (jobs[-1].code, jobs[-1].detail) if jobs else (None, "")
        replace_file(
            connection,
            claimed.instance_id,
            claimed.arrival_id,
            # A file that was of no use keeps the reason; one that was never read is only another one.
            former=ArrivalState.REJECTED if code else ArrivalState.CONFLICT,
            code=code,
            detail=detail,
        )
        return Settlement.ADOPTED
    _set_arrival(connection, claimed.arrival_id, ArrivalState.CONFLICT)
    return Settlement.CONFLICT


_FILM: Select[Any] = (
    select(instance.c.generation, instance.c.alias_of, instance.c.file_hash, instance.c.content_hash)
    .where(instance.c.id == bindparam("instance"))
    .with_for_update()
)
_CURRENT: Select[Any] = select(arrival.c.id, arrival.c.file_hash, arrival.c.content_hash).where(
    arrival.c.instance_id == bindparam("instance"), arrival.c.current == true()
)
_JOBS: Select[Any] = (
    select(job.c.state, job.c.code, job.c.detail, job.c.priority)
    .join(instance, (instance.c.id == job.c.instance_id) & (instance.c.generation == job.c.generation))
    .where(job.c.instance_id == bindparam("instance"), PROCESS, job.c.published)
    .order_by(job.c.id)
)


_chosen = arrival.alias("chosen")


def _is_known(row: Row[Any], content: Content) -> bool:
    return content.content_hash == row.content_hash or content.file_hash == row.file_hash


def _twin(connection: Connection, instance_id: int, content: Content) -> int | None:
    """The film that this content is known as, other than ``instance_id`` itself."""
    return connection.scalar(
        select(instance.c.id)
        .where(
            instance.c.content_hash == content.content_hash,
            instance.c.alias_of.is_(None),
            instance.c.id != instance_id,
        )
        # Its content must not be replaced before this film is known as its alias.
        .with_for_update()
    )


def aliases_in_work(connection: Connection, instance_id: int) -> bool:
    """Whether a film known as an alias of this one still has an open job."""
    aliases = select(instance.c.id).where(instance.c.alias_of == instance_id)
    return connection.scalar(select(job.c.id).where(PROCESS, OPEN, job.c.instance_id.in_(aliases)).limit(1)) is not None


def _in_work(connection: Connection, instance_id: int) -> bool:
    own = select(job.c.id).where(PROCESS, OPEN, job.c.instance_id == instance_id).limit(1)
    return connection.scalar(own) is not None or aliases_in_work(connection, instance_id)


def described(geometry: Geometry | None, facts: FilmFacts | None) -> dict[str, Any]:
    """Columns of ``instance`` that only reading the pixels tells."""
    values: dict[str, Any] = {}
    if geometry is not None:
        values.update(
            film_rows=geometry.film_rows,
            film_columns=geometry.film_columns,
            row_spacing=geometry.row_spacing,
            column_spacing=geometry.column_spacing,
            spacing_source=geometry.spacing_source,
        )
    if facts is not None:
        values.update(
            sop_class_uid=facts.sop_class_uid,
            transfer_syntax_uid=facts.transfer_syntax_uid,
            photometric_interpretation=facts.photometric_interpretation,
            modality=facts.modality,
            body_part=facts.body_part,
            view_position=facts.view_position,
            age_days=facts.age_days,
        )
    return {name: _fitting(name, value) for name, value in values.items()}


def _fitting(column: str, value: Any) -> Any:
    return storable(value, getattr(instance.c[column].type, "length", None)) if isinstance(value, str) else value


def _set_arrival(
    connection: Connection,
    arrival_id: int,
    state: ArrivalState,
    *,
    current: bool = False,
    code: str | None = None,
    detail: str = "",
) -> None:
    connection.execute(
        update(arrival)
        .where(arrival.c.id == arrival_id)
        .values(state=state.value, current=current, code=code, detail=detail)
    )


def _close_jobs(connection: Connection, instance_id: int) -> None:
    """Cancel what is open or failed and unpublish all: it was about another file."""
    unfinished = (PROCESS | SHADOW) & (OPEN | (job.c.state == JobState.FAILED.value))
    connection.execute(
        update(job)
        .where(job.c.instance_id == instance_id, unfinished)
        .values(
            state=JobState.CANCELLED.value,
            **UNBOUND,
            finished_at=database_now(),
            detail="another file took the film's place",
        )
    )
    connection.execute(
        update(job).where(job.c.instance_id == instance_id, PROCESS, job.c.published).values(published=False)
    )


def release_aliases(connection: Connection, instance_id: int, priority: int) -> None:
    """The first alias of a film becomes the film of its content; the others become its aliases."""
    aliases = connection.execute(
        select(instance.c.id, instance.c.generation, arrival.c.id.label("arrival_id"))
        .join(arrival, (arrival.c.instance_id == instance.c.id) & (arrival.c.current == true()))
        .where(instance.c.alias_of == instance_id)
        .order_by(instance.c.id)
        .with_for_update(of=instance)
    ).all()
    if not aliases:
        return
    first, others = aliases[0], [row.id for row in aliases[1:]]
    connection.execute(update(instance).where(instance.c.id == first.id).values(alias_of=None))
    connection.execute(update(instance).where(instance.c.id.in_(others)).values(alias_of=first.id))
    _set_arrival(connection, first.arrival_id, ArrivalState.INSTANCE, current=True)
    _open_job(connection, first.id, first.arrival_id, first.generation, priority)


def _open_job(connection: Connection, instance_id: int, arrival_id: int, generation: int, priority: int) -> None:
    connection.execute(
        insert(job).values(instance_id=instance_id, arrival_id=arrival_id, generation=generation, priority=priority)
    )
