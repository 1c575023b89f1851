"""Must every film of a batch be settled by itself?

Nearly all films are the first of their content. A batch of those is settled in three
statements; only what repeats a content, in the batch or in the ledger, goes through
:func:`worker.intake.arrivals.settle` one at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from schema.bulk import update_rows
from schema.tables import ArrivalState, JobKind, arrival, instance
from worker.intake.arrivals import Settlement, described
from worker.queue.outcomes import ClaimedJob
from worker.results.result import FilmResult

_KNOWN = select(instance.c.content_hash, instance.c.id).where(
    instance.c.content_hash.in_(bindparam("hashes", expanding=True)), instance.c.alias_of.is_(None)
)
#: The films' files, once the films know what they hold.
_FILES = (
    update(arrival)
    .where(arrival.c.id.in_(bindparam("files", expanding=True)), arrival.c.instance_id == instance.c.id)
    .values(
        content_hash=instance.c.content_hash,
        file_hash=instance.c.file_hash,
        state=ArrivalState.INSTANCE.value,
        current=True,
        code=None,
        detail="",
    )
)


def settle_firsts(connection: Connection, films: Sequence[tuple[ClaimedJob, FilmResult]]) -> dict[int, Settlement]:
    """Settle the films whose content is nobody else's: job id → ``PROCEED``.

    Raises
    ------
    sqlalchemy.exc.IntegrityError
        Another worker settled one of these contents in this moment: settle one at a time.
    """
    counts = Counter(result.content_hash for _, result in films)
    known = {row.content_hash: row.id for row in connection.execute(_KNOWN, {"hashes": list(counts)})}
    firsts = [
        (job, result)
        for job, result in films
        if job.kind is JobKind.PROCESS
        and counts[result.content_hash] == 1
        and known.get(result.content_hash, job.instance_id) == job.instance_id
    ]
    if firsts:
        update_rows(connection, instance, [_film(job, result) for job, result in firsts])
        connection.execute(_FILES, {"files": [job.arrival_id for job, _ in firsts]})
    return {job.id: Settlement.PROCEED for job, _ in firsts}


def _film(job: ClaimedJob, result: FilmResult) -> dict[str, Any]:
    return {
        "id": job.instance_id,
        "content_hash": result.content_hash,
        "file_hash": result.file_hash,
        "alias_of": None,
        **described(result.geometry, result.facts),
    }
