"""What does it mean to submit a film again?

It becomes as urgent as it was ever asked for, never less. A film done with another bundle
or revision gets a new job; one that has its job, done or to be done, gets none: replaying an
archive changes nothing. A film that failed is left alone: ``carina retry`` is for it. A film that a rule
left out, and no rule leaves out now, waits to be processed like any other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, case, func, insert, null, select, true, update

from schema.tables import PRIORITY, JobState, arrival, instance, job
from worker import REVISION
from worker.intake.lookups import BOUND, OPEN, PROCESS, VERIFY, champion_id, slices
from worker.intake.rules import RULE_SKIPPED

_LOWEST_PRIORITY = max(PRIORITY.values())

_CANONICAL = select(func.coalesce(instance.c.alias_of, instance.c.id)).where(
    instance.c.id.in_(bindparam("instances", expanding=True))
)
_HURRY = (
    update(job)
    .where(PROCESS, OPEN, job.c.instance_id.in_(bindparam("instances", expanding=True)))
    .where(job.c.priority > bindparam("urgent"))
    .values(priority=bindparam("urgent"))
)
_HURRY_VERIFICATION = (
    update(job)
    .where(VERIFY, OPEN, job.c.arrival_id.in_(bindparam("arrivals", expanding=True)))
    .where(job.c.priority > bindparam("urgent"))
    .values(priority=bindparam("urgent"))
)
_OPEN_FILMS = select(job.c.instance_id).where(
    PROCESS, OPEN, job.c.instance_id.in_(bindparam("instances", expanding=True))
)
_BOUND_JOBS = (
    select(job.c.instance_id, job.c.state, job.c.bundle_id, job.c.revision)
    .join(instance, (instance.c.id == job.c.instance_id) & (instance.c.generation == job.c.generation))
    .where(BOUND, job.c.published, job.c.instance_id.in_(bindparam("instances", expanding=True)))
)
_SKIPPED = (
    select(job.c.id, job.c.instance_id, job.c.arrival_id, job.c.kind, job.c.generation)
    .where(job.c.instance_id.in_(bindparam("instances", expanding=True)))
    .where(job.c.state == JobState.INELIGIBLE.value, job.c.code == RULE_SKIPPED, job.c.published)
    .with_for_update()
)
#: What is ineligible stays so for ever: it makes room for another job. A file has one job that verifies it.
_MAKE_ROOM = (
    update(job)
    .where(job.c.id.in_(bindparam("jobs", expanding=True)))
    .values(published=False, arrival_id=case((VERIFY, null()), else_=job.c.arrival_id))
)
_NO_LONGER_SKIPPED = (
    update(arrival).where(arrival.c.id.in_(bindparam("arrivals", expanding=True))).values(code=None, detail="")
)
_CURRENT = (
    select(instance.c.id, instance.c.generation, arrival.c.id)
    .join(arrival, (arrival.c.instance_id == instance.c.id) & (arrival.c.current == true()))
    .where(instance.c.id.in_(bindparam("instances", expanding=True)))
)


def hurry(connection: Connection, instances: Collection[int], priority: int) -> None:
    """Raise the open jobs of films to ``priority``; an alias stands for the film it repeats."""
    if priority == _LOWEST_PRIORITY:
        return
    for piece in slices(instances):
        films = connection.scalars(_CANONICAL, {"instances": piece}).all()
        connection.execute(_HURRY, {"instances": films, "urgent": priority})


def hurry_verification(connection: Connection, arrivals: Collection[int], priority: int) -> None:
    """Raise the open jobs that verify these arrivals to ``priority``."""
    if priority == _LOWEST_PRIORITY:
        return
    for piece in slices(arrivals):
        connection.execute(_HURRY_VERIFICATION, {"arrivals": piece, "urgent": priority})


def reopen(connection: Connection, instances: Collection[int], priority: int) -> tuple[int, int]:
    """Open jobs for films that are through, but not with the champion bundle and this revision.

    Returns
    -------
    tuple of int
        Films that got a job, and films left alone because they failed.
    """
    reopened = failed = 0
    for piece in slices(instances):
        outdated, failures = outdated_films(connection, piece)
        failed += len(failures)
        reopened += _open_jobs(connection, outdated, priority)
    return reopened, failed


def reopen_skipped(connection: Connection, instances: Collection[int], priority: int) -> int:
    """Open jobs for films that a rule left out when they came, and for their second files.

    Returns
    -------
    int
        How many.
    """
    reopened = 0
    for piece in slices(set(instances)):
        skipped = connection.execute(_SKIPPED, {"instances": piece}).all()
        if skipped:
            connection.execute(_MAKE_ROOM, {"jobs": [row.id for row in skipped]})
            connection.execute(insert(job), [_again(row, priority) for row in skipped])
            connection.execute(_NO_LONGER_SKIPPED, {"arrivals": [row.arrival_id for row in skipped]})
            reopened += len(skipped)
    return reopened


def _again(row: Any, priority: int) -> dict[str, Any]:
    return {
        "instance_id": row.instance_id,
        "arrival_id": row.arrival_id,
        "kind": row.kind,
        "generation": row.generation,
        "priority": priority,
    }


def outdated_films(connection: Connection, instances: Sequence[int]) -> tuple[set[int], set[int]]:
    """Films to be read anew (at most a slice of them), and films that failed.

    An alias stands for the film it repeats. A film with an open job is neither.
    """
    champion = champion_id(connection)
    films = set(connection.scalars(_CANONICAL, {"instances": instances}))
    films.difference_update(connection.scalars(_OPEN_FILMS, {"instances": list(films)}))
    jobs: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for film, state, bundle_id, revision in connection.execute(_BOUND_JOBS, {"instances": list(films)}):
        jobs[film].append((state, bundle_id, revision))
    failed = {film for film, ended in jobs.items() if any(state == JobState.FAILED for state, _, _ in ended)}
    read = {film for film, ended in jobs.items() if any(job[1:] == (champion, REVISION) for job in ended)}
    return set() if champion is None else jobs.keys() - failed - read, failed


def _open_jobs(connection: Connection, films: Collection[int], priority: int) -> int:
    if not films:
        return 0
    rows = [
        {"instance_id": film, "generation": generation, "arrival_id": arrival_id, "priority": priority}
        for film, generation, arrival_id in connection.execute(_CURRENT, {"instances": list(films)})
    ]
    if rows:
        connection.execute(insert(job), rows)
    return len(rows)
