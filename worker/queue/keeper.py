"""Who tells the ledger that this worker lives and still has its films?"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from schema.database import Database
from worker.errors import CarinaError
from worker.queue.batches import BatchReport
from worker.queue.leases import heartbeat, seen
from worker.queue.outcomes import Claim
from worker.queue.patience import outage_ends
from worker.queue.watchdog import BATCHES, Watchdog
from worker.queue.workers import WorkerIdentity

log = logging.getLogger(__name__)


@dataclass
class Batch:
    """A lease this process works under, and what came of it so far."""

    claim: Claim
    report: BatchReport
    held: bool = True

    @property
    def lease_id(self) -> str:
        """The lease."""
        return self.claim.lease_id


class LeaseKeeper:
    """Knows the batches in work, has them watched, and renews their leases."""

    def __init__(
        self,
        database: Database,
        worker: WorkerIdentity,
        *,
        lease_seconds: float,
        watchdog: Watchdog,
        home_free_bytes: Callable[[], int | None],
    ) -> None:
        self._home_free_bytes = home_free_bytes
        self._database = database
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._watchdog = watchdog
        self._batches: dict[str, Batch] = {}
        self._lock = threading.Lock()

    def leases(self) -> tuple[str, ...]:
        """The leases this process works under."""
        with self._lock:
            return tuple(self._batches)

    @contextmanager
    def keeping(self, claim: Claim) -> Iterator[Batch]:
        """Keep the lease of a claim within the block."""
        batch = Batch(claim, BatchReport(len(claim.jobs), alone=claim.suspect))
        with self._lock:
            self._batches[claim.lease_id] = batch
        try:
            with self._watchdog.watching(BATCHES, claim.lease_id):
                yield batch
        finally:
            with self._lock:
                self._batches.pop(claim.lease_id, None)

    def run(self, ended: threading.Event) -> None:
        """Give a sign of life four times a lease until ``ended``; a database that is away is no reason to stop.

        Raises
        ------
        CarinaError
            Another process has this worker's name by now.
        """
        while not ended.wait(self._lease_seconds / 4):
            with self._lock:
                batches = list(self._batches.values())
            with outage_ends(lambda: True):
                free = self._home_free_bytes()
                if not seen(self._database, self._worker.id, self._worker.boot_id, home_free_bytes=free):
                    raise CarinaError(
                        f"Another worker named {self._worker.name} was started while this one was silent: "
                        "this one ends. Give each worker a name of its own."
                    )
                for batch in batches:
                    self._renew(batch)

    def _renew(self, batch: Batch) -> None:
        renewed = heartbeat(self._database, batch.lease_id, self._lease_seconds)
        # A suspect's lease ends with its child's own COMMIT, before we hear of the child's end.
        missed = not renewed and not batch.claim.suspect and batch.lease_id in self.leases()
        if missed and batch.held:
            batch.held = False
            log.warning("a lease was lost while its batch was being processed: its results will not be written")
