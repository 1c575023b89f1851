"""How long will it take?"""

from __future__ import annotations

from itertools import pairwise

from sqlalchemy import select

from schema.database import Database
from schema.tables import JobState, job
from worker.intake.lookups import PROCESS

#: Where nothing was processed yet: one film in so many seconds, a careful figure for two cores.
ASSUMED_SECONDS = 1.5
_RECENT_FILMS = 1000
_ENOUGH_FILMS = 20
#: A longer pause between two films means that nothing was to be done.
_IDLE_SECONDS = 60.0


def seconds_per_film(database: Database) -> tuple[float, str]:
    """Expected seconds for a film, all workers together, and in words where the figure comes from."""
    recent = (
        select(job.c.finished_at)
        .where(job.c.finished_at.is_not(None), PROCESS, job.c.state == JobState.DONE.value)
        .order_by(job.c.finished_at.desc())
        .limit(_RECENT_FILMS)
    )
    with database.read() as connection:
        ends = list(connection.scalars(recent))
    if len(ends) < _ENOUGH_FILMS:
        return ASSUMED_SECONDS, f"an assumed {ASSUMED_SECONDS:g} s a film: too few were processed yet to know"
    gaps = [min((later - earlier).total_seconds(), _IDLE_SECONDS) for later, earlier in pairwise(ends)]
    seconds = max(sum(gaps) / len(gaps), 1e-3)
    return seconds, f"the {seconds:.2g} s a film of the last {len(ends)} films"
