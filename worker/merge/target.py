"""How do the films of a chunk stand in the database they are merged into?

Read in a few statements for the whole chunk and kept up to date while its films are decided.
The rows are locked in the order in which a worker locks them: jobs, then films.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select, true

from schema.tables import JobState, arrival, attempt, instance, job
from worker.intake.lookups import PROCESS, KnownArrival, known_arrivals, slices
from worker.merge.shard_file import Row, ShardArrival, ShardFilm
from worker.queue.outcomes import SourceReference

#: How much is known about a film by the best of its jobs; what says more wins.
RANK: dict[str, int] = {
    JobState.DONE: 4,
    JobState.INELIGIBLE: 3,
    JobState.FAILED: 2,
    JobState.LEASED: 1,
    JobState.DELAYED: 1,
    JobState.READY: 1,
    JobState.CANCELLED: 0,
}
DONE, FAILED = RANK[JobState.DONE], RANK[JobState.FAILED]


def best(jobs: Iterable[Row]) -> Row | None:
    """The job that says most about its film, the newest of equals."""
    return max(jobs, key=lambda row: (RANK[row["state"]], row["id"]), default=None)


def rank(jobs: Iterable[Row]) -> int:
    """The rank of the best job."""
    found = best(jobs)
    return RANK[found["state"]] if found else 0


@dataclass
class TargetFilm:
    """A film of the target: its file's arrival, its present published jobs, its last attempt's end."""

    id: int
    generation: int
    content_hash: str | None
    alias_of: int | None
    current: int | None
    jobs: list[Row] = field(default_factory=list)
    last_attempt: datetime | None = None


class Target:
    """The films of the target that a chunk is about, and the files it knows."""

    def __init__(self, connection: Connection, films: Collection[ShardFilm]) -> None:
        # First, as others write meanwhile: a film that comes with its file after this look collides,
        # and is decided anew. The other way round it would seem to be another film's file.
        self.arrivals = known_files(connection, [file for film in films for file in film.arrivals])
        keys = {film.row["key"] for film in films}
        contents = {film.row["content_hash"] for film in films} - {None}
        ids = set()
        for found, alias_of in _in(connection, _PLACES, instance.c.key, keys):
            ids |= {found, alias_of or found}
        same = _PLACES.where(instance.c.alias_of.is_(None))
        ids.update(row.id for row in _in(connection, same, instance.c.content_hash, contents))
        jobs = _in(connection, _JOBS, job.c.instance_id, ids)
        films_found = _in(connection, _FILMS, instance.c.id, ids)
        currents = {row.instance_id: row.id for row in _in(connection, _CURRENT, arrival.c.instance_id, ids)}
        self._by_id = {
            row.id: TargetFilm(row.id, row.generation, row.content_hash, row.alias_of, currents.get(row.id))
            for row in films_found
        }
        self._by_key = {row.key: self._by_id[row.id] for row in films_found}
        self._by_content = {
            film.content_hash: film for film in self._by_id.values() if film.content_hash and film.alias_of is None
        }
        self._add_jobs(connection, [dict(row._mapping) for row in jobs])

    def film(self, key: str) -> TargetFilm | None:
        """The film with this key."""
        return self._by_key.get(key)

    def of_content(self, content_hash: str | None) -> TargetFilm | None:
        """The film that speaks for a content."""
        return self._by_content.get(content_hash) if content_hash else None

    def holder(self, film: TargetFilm) -> TargetFilm:
        """The film that holds the results: itself, or the one it is an alias of."""
        return self._by_id.get(film.alias_of, film) if film.alias_of else film

    def add(self, key: str, film: TargetFilm) -> None:
        """Note a film that this chunk brings."""
        self._by_id[film.id] = self._by_key[key] = film
        self.speaks_for(film)

    def speaks_for(self, film: TargetFilm) -> None:
        """Note which film speaks for a content from now on."""
        if film.content_hash and film.alias_of is None:
            self._by_content[film.content_hash] = film

    def known(self, file: ShardArrival) -> KnownArrival | None:
        """The same file in the target, if it came there too."""
        return self.arrivals.get(file.source) if file.source else None

    def _add_jobs(self, connection: Connection, jobs: list[Row]) -> None:
        ended: dict[int, datetime] = {
            row.job_id: row.ended_at
            for row in _in(connection, _ATTEMPTS, attempt.c.job_id, [row["id"] for row in jobs])
        }
        for row in jobs:
            film = self._by_id[row["instance_id"]]
            if row["generation"] != film.generation or not row["published"]:
                continue
            film.jobs.append(row)
            if row["id"] in ended and (film.last_attempt is None or ended[row["id"]] > film.last_attempt):
                film.last_attempt = ended[row["id"]]


def known_files(connection: Connection, files: Iterable[ShardArrival]) -> dict[SourceReference, KnownArrival]:
    """Those of ``files`` that came to the target too: same place, size and time."""
    return known_arrivals(connection, [file.source for file in files if file.source is not None])


_PLACES = select(instance.c.id, instance.c.alias_of)
_JOBS = select(job).where(PROCESS).order_by(job.c.id).with_for_update()
_FILMS = select(instance).order_by(instance.c.id).with_for_update()
_CURRENT = select(arrival.c.instance_id, arrival.c.id).where(arrival.c.current == true())
_ATTEMPTS = select(attempt.c.job_id, func.max(attempt.c.ended_at).label("ended_at")).group_by(attempt.c.job_id)


def _in(connection: Connection, query: Select[Any], column: ColumnElement[Any], values: Collection[Any]) -> list[Any]:
    return [row for piece in slices(values) for row in connection.execute(query.where(column.in_(piece)))]
