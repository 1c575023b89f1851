"""Is there anything left to wait for?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, exists, or_, select, true

from schema.tables import JobKind, JobState, arrival, job, submission, submission_arrival
from worker.queue.claim_statements import lies_under
from worker.queue.engines import Engines
from worker.queue.leases import NO_SHADOW, SHADOW, in_state


@dataclass(frozen=True)
class Idle:
    """What a worker waits for before it ends: the films of a submission, or with None everything.

    Everything includes the shadow jobs of bundles that ``engines`` can load.
    """

    submission_id: int | None
    engines: Engines

    def anything_open(self, connection: Connection, missing_roots: Collection[str]) -> bool:
        """Whether a job is open that somebody reads, here or elsewhere; so is a submission still being scanned.

        What is ready and lies under one of ``missing_roots`` does not count.
        """
        ready = in_state(JobState.READY) & ~lies_under() if missing_roots else in_state(JobState.READY)
        is_open: ColumnElement[bool] = or_(ready, in_state(JobState.LEASED), in_state(JobState.DELAYED))
        if self.submission_id is not None:
            statement = select(or_(*self._of_submission(NO_SHADOW & is_open)))
        elif self.engines.do_shadow_jobs:
            hopeless = SHADOW & job.c.bundle_id.in_(list(self.engines.refused))
            statement = select(exists().where(is_open, ~hopeless))
        else:
            statement = select(exists().where(is_open, NO_SHADOW))
        roots = {"roots": sorted(missing_roots)} if missing_roots else {}
        return bool(connection.scalar(statement, roots))

    def _of_submission(self, is_open: ColumnElement[bool]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        own = (
            select(arrival.c.id)
            .join(submission_arrival, submission_arrival.c.arrival_id == arrival.c.id)
            .join(job, job.c.instance_id == arrival.c.instance_id)
            .where(submission_arrival.c.submission_id == self.submission_id, is_open)
            .where((job.c.kind == JobKind.PROCESS.value) | (job.c.arrival_id == arrival.c.id))
        )
        scanning = exists().where(submission.c.id == self.submission_id, submission.c.scan_complete != true())
        return own.exists(), scanning
