"""How does a worker come to its next batch?

It claims what is ready, after whatever waited long enough became ready again, and passes over
films that this machine cannot reach (:mod:`worker.queue.roots`). A claim of which it does not
know whether it went through is given back at the next occasion.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy.exc import DBAPIError

from schema.database import Database
from worker.queue.leases import make_due_ready
from worker.queue.ledger import claim, release
from worker.queue.outcomes import Claim
from worker.queue.roots import LocalRoots
from worker.queue.watchdog import FOLDERS, Watchdog
from worker.queue.workers import WorkerIdentity
from worker.settings import Settings

#: Passing over films takes the database time that grows with their number: at most a tenth of ours.
_PASSING_SHARE = 10.0


@dataclass(frozen=True)
class _Wanted:
    """What to claim: see :meth:`Claimer.claim`."""

    bundle_id: int
    suspects: bool
    shadow: bool


class Claimer:
    """Claims batches for one worker; called from several threads.

    Parameters
    ----------
    revision
        Version of our own reading and post-processing.
    watchdog
        Watches that a share which does not answer holds nobody up.
    clock
        Seconds that only go forward.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        worker: WorkerIdentity,
        *,
        revision: int,
        watchdog: Watchdog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._database = database
        self._worker = worker
        self._revision = revision
        self._watchdog = watchdog
        self._clock = clock
        self._roots = LocalRoots(database, lambda: settings.root_folders)
        self._rests_until = float("-inf")
        self._lost: set[str] = set()
        self._lock = threading.Lock()

    def claim(self, bundle_id: int, *, suspects: bool, shadow: bool = False) -> Claim | None:
        """The next batch; None if nothing is ready that this machine can reach.

        Parameters
        ----------
        bundle_id
            The bundle that the batch will be read with.
        suspects
            Whether a suspect may be claimed.
        shadow
            Shadow jobs of that bundle, and those only, if nothing else is ready.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            Nothing is known to be claimed: call again.
        """
        wanted = _Wanted(bundle_id, suspects, shadow)
        claimed = self._claim_within_reach(wanted)
        if claimed is None and make_due_ready(self._database):
            claimed = self._claim_within_reach(wanted)
        return claimed

    def missing_roots(self) -> frozenset[str]:
        """The roots that this machine lacks, as far as it knows."""
        # Before anything is claimed: a share that hangs must not hang films with it.
        with self._watchdog.watching(FOLDERS, object()):
            return self._roots.look()

    def give_back_lost(self) -> None:
        """Give back what was claimed by a COMMIT whose answer was lost."""
        with self._lock:
            lost = tuple(self._lost)
        for lease_id in lost:
            release(self._database, lease_id)
            with self._lock:
                self._lost.discard(lease_id)

    def _claim_within_reach(self, wanted: _Wanted) -> Claim | None:
        self.give_back_lost()
        if self._clock() < self._rests_until:
            return None
        while True:
            began, missing = self._clock(), self.missing_roots()
            claimed = self._claim(wanted, missing)
            if claimed is None:
                if missing:
                    self._rests_until = self._clock() + _PASSING_SHARE * (self._clock() - began)
                    self._roots.say()
                return None
            kept = self._leave_unknown(claimed)
            if kept is not None:
                return kept

    def _claim(self, wanted: _Wanted, missing_roots: frozenset[str]) -> Claim | None:
        lease_id = str(uuid.uuid4())
        limit = self._settings.claim_size
        if wanted.shadow:
            # As few as keep the machine busy: the next film of the night waits for them.
            limit = min(limit, max(self._settings.decoder_count, self._settings.engine_batch))
        try:
            return claim(
                self._database,
                self._worker,
                bundle_id=wanted.bundle_id,
                revision=self._revision,
                limit=limit,
                lease_seconds=self._settings.lease_seconds,
                lease_id=lease_id,
                suspects=wanted.suspects,
                shadow=wanted.shadow,
                missing_roots=missing_roots,
            )
        except DBAPIError:
            self._may_be_lost(lease_id)
            raise

    def _leave_unknown(self, claimed: Claim) -> Claim | None:
        """Give back at once what lies under roots that this machine has never heard of."""
        unknown = self._roots.unknown({item.source.root for item in claimed.jobs})
        if not unknown:
            return claimed
        left = [item for item in claimed.jobs if item.source.root in unknown]
        try:
            release(self._database, claimed.lease_id, left)
        except DBAPIError:
            self._may_be_lost(claimed.lease_id)
            raise
        kept = tuple(item for item in claimed.jobs if item.source.root not in unknown)
        return replace(claimed, jobs=kept) if kept else None

    def _may_be_lost(self, lease_id: str) -> None:
        with self._lock:
            self._lost.add(lease_id)
