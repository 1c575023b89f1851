"""Which received films may go, and which does the ledger not know yet?

Only files in the listener's own spool are ever deleted, never a path that was submitted. A
file goes when it is old enough and nothing can ask for it any more: its film is done or
ineligible, or it repeats another one; no job on it is open; no file conflicts with it; every
output is delivered or given up; and, unless told otherwise, no reader has labelled it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, literal_column, or_, select

from schema.database import Database
from schema.tables import (
    ArrivalState,
    DeliveryState,
    JobState,
    Lane,
    arrival,
    delivery,
    delivery_destination,
    job,
    label,
)
from worker.intake.departures import through
from worker.intake.folders import FoundFile, LeftOut, walk
from worker.intake.headers import HeaderReader
from worker.intake.listener.spool import Spool
from worker.intake.lookups import OPEN, PROCESS, known_arrivals, slices
from worker.intake.register import Registrar
from worker.intake.rules import load_rules
from worker.intake.scan import close_submission, examine_ahead, open_submission
from worker.intake.sources import Roots
from worker.queue.outcomes import SourceReference
from worker.settings import Settings, site_key

log = logging.getLogger(__name__)

_DAY_SECONDS = 86_400.0
_PIECE = 500


def delete_expired(
    database: Database,
    settings: Settings,
    spool: Spool,
    *,
    stop: threading.Event | None = None,
    now: Callable[[], float] = time.time,
) -> int:
    """Delete the spool's files that are older than ``CARINA_LISTEN_KEEP_DAYS`` and may go; returns how many."""
    if settings.listen_keep_days <= 0:
        return 0
    stop = stop or threading.Event()
    before_ns = int((now() - settings.listen_keep_days * _DAY_SECONDS) * 1e9)
    old = (file for file in _files(settings, spool) if file.source.modified_ns < before_ns)
    deleted = 0
    while not stop.is_set() and (piece := list(islice(old, _PIECE))):
        with database.read() as connection:
            going = may_go(
                connection, [file.source for file in piece], keep_labelled=settings.listen_keep_labelled == "yes"
            )
        for file in piece:
            if file.source in going:
                with suppress(FileNotFoundError):
                    Path(file.path).unlink()
                    deleted += 1
    return deleted


def may_go(
    connection: Connection, sources: Sequence[SourceReference], *, keep_labelled: bool
) -> frozenset[SourceReference]:
    """Of ``sources``, the files that nothing will ask for any more."""
    candidates = through(connection, sources)
    needed = or_(
        _OPEN_JOB, _IN_CONFLICT, _TO_BE_DELIVERED, _NOT_YET_IN_THE_OUTBOX, *([_LABELLED] if keep_labelled else [])
    )
    statement = select(arrival.c.id).where(arrival.c.id.in_(bindparam("arrivals", expanding=True)), needed)
    kept = {
        number
        for piece in slices(set(candidates.values()))
        for number in connection.scalars(statement, {"arrivals": piece})
    }
    return frozenset(source for source, arrival_id in candidates.items() if arrival_id not in kept)


def register_unrecorded(
    database: Database,
    settings: Settings,
    spool: Spool,
    *,
    stop: threading.Event,
    announce: Callable[[int], object] = lambda films: None,
) -> int:
    """Register complete films of the spool that the ledger does not know; returns how many.

    A listener that died between the disk and the ledger leaves them. Their senders were not
    told that they arrived; if they come again they are recognised.
    """
    found, submission_id = 0, None
    rules = load_rules(settings)
    with HeaderReader() as reader:
        for examined in examine_ahead(database, reader, _files(settings, spool), settings.scan_chunk):
            if stop.is_set():
                break
            with database.read() as connection:
                known = known_arrivals(connection, [file.source for file in examined])
            # Also not those that a rule left out: who sent them is no longer known here.
            new = [file for file in examined if file.source not in known]
            if not new:
                continue
            if submission_id is None:
                submission_id = open_submission(database, Lane.ICU)
            counts = Registrar(database, site_key(settings), submission_id, Lane.ICU, rules).register(new)
            announce(counts.work)
            found += len(new)
    if submission_id is not None:
        close_submission(database, submission_id)
    return found


def _files(settings: Settings, spool: Spool) -> Iterator[FoundFile]:
    for item in walk(Roots(settings), str(spool.films)):
        if isinstance(item, FoundFile):
            yield item
        elif not isinstance(item, LeftOut):
            log.warning("a file of the spool cannot be looked at: %s", item.code)


_other = arrival.alias("other")
#: Not ``*``: the listener's role may see a few columns of these tables only.
_ONE: Select[Any] = select(literal_column("1"))


def _jobs(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return _ONE.where(job.c.instance_id == arrival.c.instance_id, *conditions).exists()


_OPEN_JOB = _jobs(OPEN)
_IN_CONFLICT = _ONE.where(
    _other.c.instance_id == arrival.c.instance_id, _other.c.state == ArrivalState.CONFLICT.value
).exists()
_LABELLED = _ONE.where(label.c.instance_id == arrival.c.instance_id).exists()
_TO_BE_DELIVERED = _jobs(
    delivery.c.job_id == job.c.id,
    delivery.c.state.not_in([DeliveryState.SENT.value, DeliveryState.ABANDONED.value]),
)
#: Whoever delivers has not looked at this result yet.
_NOT_YET_IN_THE_OUTBOX = _jobs(
    PROCESS,
    job.c.published,
    job.c.state == JobState.DONE.value,
    delivery_destination.c.removed_at.is_(None),
    job.c.finished_at > delivery_destination.c.filled_until,
)
