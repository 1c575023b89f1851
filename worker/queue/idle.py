"""Is there anything left to wait for?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Select, exists, or_, select, true

from schema.tables import JobKind, JobState, arrival, job, submission, submission_arrival
from worker.queue.claim_statements import lies_under
from worker.queue.leases import SHADOW, in_state


def open_jobs(submission_id: int | None, missing_roots: Collection[str]) -> Select[Any]:
    """Asks whether a job is open: any, or one of a submission's films; a submission still being scanned counts.

    Shadow jobs do not count, nor what is ready and lies under one of ``missing_roots``.
    """
    ready = in_state(JobState.READY) & ~lies_under() if missing_roots else in_state(JobState.READY)
    is_open: ColumnElement[bool] = ~SHADOW & or_(ready, in_state(JobState.LEASED), in_state(JobState.DELAYED))
    if submission_id is None:
        statement = select(exists().where(is_open))
    else:
        own = (
            select(arrival.c.id)
            .join(submission_arrival, submission_arrival.c.arrival_id == arrival.c.id)
            .join(job, job.c.instance_id == arrival.c.instance_id)
            .where(submission_arrival.c.submission_id == submission_id, is_open)
            .where((job.c.kind == JobKind.PROCESS.value) | (job.c.arrival_id == arrival.c.id))
        )
        scanning = exists().where(submission.c.id == submission_id, submission.c.scan_complete != true())
        statement = select(or_(own.exists(), scanning))
    return statement.params(roots=sorted(missing_roots)) if missing_roots else statement
