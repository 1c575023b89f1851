"""What does a worker do all night?

Claim, process, finish, in a few threads, so that one batch is read while another is
inferred; next to them one thread that keeps the leases, one that looks whether another
bundle is wanted, and one that does the duties. A
ticket from a broker is a call of :meth:`WorkerLoop.run_batch` from yet another thread. The
loop outlives a database that is away and a disk that is full. It does not outlive itself
getting stuck: then it lets go of its films and ends, and whoever started it starts it again.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from schema.database import Database, DatabaseVersionError, is_busy
from worker import REVISION
from worker.errors import FilmError, MachineError
from worker.queue.batches import BatchReport, Slots
from worker.queue.claiming import Claimer
from worker.queue.duties import Duty, do_due_duties, ensure_duties, standard_duties
from worker.queue.engines import Engines, OneEngine, Processor
from worker.queue.finish import SIGNALS_FROM_OUTSIDE, FinishReport, finish, postpone
from worker.queue.idle import Idle
from worker.queue.keeper import Batch, LeaseKeeper
from worker.queue.ledger import WorkerIdentity, deregister_worker, release
from worker.queue.outcomes import Claim, Outcome
from worker.queue.patience import Patience, outage_ends
from worker.queue.solo import run_solo, watch_child
from worker.queue.watchdog import STALLED_EXIT_CODE, Watchdog, exit_stalled
from worker.queue.watermarks import DiskWatermark
from worker.settings import Settings

__all__ = ["IN_FLIGHT", "STALLED_EXIT_CODE", "Processor", "WorkerLoop", "run_solo"]

log = logging.getLogger(__name__)

#: Batches a worker works on at the same time: one is read while the other is inferred.
IN_FLIGHT = 2

_LOOK_SECONDS = 0.2
#: At the end of the loop, how long to wait for a bundle that is being loaded.
_LOADING_SECONDS = 30.0


class WorkerLoop:
    """Works through the ledger until stopped.

    Parameters
    ----------
    processor
        Turns jobs into outcomes with one loaded bundle, or engines that exchange such
        processors between batches; called from several threads.
    solo_command
        Command that, with a lease id appended, calls :func:`run_solo` in a new process.
    in_flight
        Batches worked on at the same time.
    announce
        Called with a number of films that are ready for anybody.
    extra_duties
        Duties besides the standard ones.
    on_stall
        Called with a message when a batch or the database does not move; must not return.
    disk
        Free space of the home folder.
    observe
        Called after each batch with what came of it and the seconds it took.
    clock
        Seconds that only go forward.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        worker: WorkerIdentity,
        processor: Processor | Engines,
        *,
        solo_command: Sequence[str],
        revision: int = REVISION,
        in_flight: int = IN_FLIGHT,
        announce: Callable[[int], object] = lambda films: None,
        extra_duties: Sequence[Duty] = (),
        on_stall: Callable[[str], object] = exit_stalled,
        disk: DiskWatermark | None = None,
        observe: Callable[[BatchReport, float], object] = lambda report, seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._database = database
        self._worker = worker
        self._engines = processor if isinstance(processor, Engines) else OneEngine(processor)
        self._solo_command = list(solo_command)
        self._in_flight = in_flight
        self._slots = Slots(in_flight)
        self._announce = announce
        self._watchdog = Watchdog(settings.stall_seconds, on_stall=on_stall, clock=clock)
        self._disk = disk or DiskWatermark(settings.home, settings.disk_reserve)
        self._keeper = LeaseKeeper(
            database,
            worker,
            lease_seconds=settings.lease_seconds,
            watchdog=self._watchdog,
            home_free_bytes=lambda: self._disk.free_bytes,
        )
        self._claimer = Claimer(
            settings,
            database,
            worker,
            revision=revision,
            watchdog=self._watchdog,
            clock=clock,
        )
        self._duties = (*standard_duties(settings, self._keeper.leases, announce), *extra_duties)
        self._observe = observe
        self._clock = clock
        self._stop = threading.Event()
        self._over = threading.Event()
        self._wake = threading.Event()
        self._patience = Patience(wait=self._stop.wait)
        self._solo = threading.Lock()
        self._shadow = threading.Lock()
        self._failure: BaseException | None = None

    def wake(self) -> None:
        """Look for films at once instead of at the next poll."""
        self._wake.set()

    def run_batch(self) -> BatchReport:
        """Claim one batch, process it and write what came of it: what a ticket asks for.

        Waits for a slot. Nothing is claimed while the disk is full or after the loop's end.
        """
        with self._slots.for_ticket() as given:
            if not given or self._disk.full():
                return BatchReport()
            try:
                return self._one_batch()
            except BaseException as error:
                self._fail(error)
                raise

    def run(self, stop: threading.Event, *, until_idle: bool = False, submission_id: int | None = None) -> None:
        """Work until ``stop`` is set; the batches being processed are finished first.

        With ``until_idle`` also end when no job is open any more, neither here nor with
        another worker; with ``submission_id`` only the films of that submission count. What is
        ready but lies under a root that this machine lacks does not count, nor do shadow jobs
        of a bundle that cannot be loaded here.
        """
        self._stop = stop
        self._patience = Patience(wait=stop.wait)
        self._over.clear()
        self._slots.open()
        idle = Idle(submission_id, self._engines) if until_idle or submission_id is not None else None
        with self._watchdog.over(self._database):
            with outage_ends(stop.is_set):
                self._patience.until_done(lambda: ensure_duties(self._database, self._duties), give_up=stop.is_set)
            self._run_threads(idle)
        if self._failure is not None:
            raise self._failure

    def _run_threads(self, idle: Idle | None) -> None:
        batches = [
            threading.Thread(target=self._guarded, args=(lambda: self._work(idle),), name=f"batch-{number}")
            for number in range(self._in_flight)
        ]
        ended = threading.Event()
        keeper = threading.Thread(target=self._guarded, args=(lambda: self._keeper.run(ended),), name="leases")
        # A bundle is loaded in native code, which cannot be told to stop.
        looker = threading.Thread(
            target=self._guarded, args=(lambda: self._look_at_engines(ended),), name="engines", daemon=True
        )
        for thread in (*batches, keeper, looker):
            thread.start()
        try:
            self._do_duties(batches)
        finally:
            self._over.set()
            self._wake.set()
            self._slots.close()
            for thread in batches:
                thread.join()
            self._slots.wait_until_free()
            ended.set()
            keeper.join()
            looker.join(_LOADING_SECONDS)
            with outage_ends(lambda: True):
                self._claimer.give_back_lost()
                deregister_worker(self._database, self._worker)

    # -- the batches ------------------------------------------------------------------

    @property
    def _ending(self) -> bool:
        return self._stop.is_set() or self._over.is_set()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a thread's work; a fault of ours ends the whole loop and comes out of ``run``."""
        try:
            work()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._over.set()
        self._wake.set()

    def _work(self, idle: Idle | None) -> None:
        while not self._ending:
            if self._disk.full():
                self._pause()
                continue
            with self._slots.for_poll() as given:
                if given and (self._one_batch().claimed or self._one_shadow_batch().claimed):
                    continue
            with outage_ends(lambda: self._ending):
                if idle is not None and self._nothing_open(idle):
                    self._over.set()
                    self._wake.set()
                else:
                    self._pause()

    def _one_batch(self) -> BatchReport:
        with outage_ends(lambda: self._ending):
            with self._engines.hold() as processor:
                claimed = self._claim(processor.bundle_id)
                if claimed is None:
                    return BatchReport()
                if claimed.suspect or len(claimed.jobs) >= self._settings.claim_size:
                    self._announce(self._settings.claim_size)
                if not claimed.suspect:
                    return self._carry_out(claimed, partial(self._process, processor))
            return self._carry_out(claimed, self._run_alone)
        return BatchReport()

    def _one_shadow_batch(self) -> BatchReport:
        """Nothing else was ready. One batch at a time, so that the next film of the night finds a slot free."""
        if not self._shadow.acquire(blocking=False):
            return BatchReport()
        try:
            with outage_ends(lambda: self._ending), self._engines.hold_shadow() as processor:
                claimed = self._claim(processor.bundle_id, shadow=True) if processor else None
                if processor and claimed:
                    return self._carry_out(
                        claimed, self._run_alone if claimed.suspect else partial(self._process, processor)
                    )
            return BatchReport()
        finally:
            self._shadow.release()

    def _pause(self) -> None:
        self._wake.wait(self._settings.poll_seconds)
        if not self._ending:
            self._wake.clear()

    def _claim(self, bundle_id: int, *, shadow: bool = False) -> Claim | None:
        # Two engines for suspects at once would need the memory twice over.
        suspects = self._solo.acquire(blocking=False)
        try:
            claimed = self._patience.until_done(
                lambda: self._claimer.claim(bundle_id, suspects=suspects, shadow=shadow),
                give_up=lambda: self._ending,
            )
        except BaseException:
            if suspects:
                self._solo.release()
            raise
        if suspects and (claimed is None or not claimed.suspect):
            self._solo.release()
        return claimed

    def _carry_out(self, claimed: Claim, work: Callable[[Batch], None]) -> BatchReport:
        began = self._clock()
        try:
            with self._keeper.keeping(claimed) as batch:
                try:
                    if self._stop.is_set():
                        self._release(batch)
                    else:
                        work(batch)
                except (DBAPIError, DatabaseVersionError, MachineError) as error:
                    if not isinstance(error, DBAPIError) or not is_busy(error):
                        # No film's fault: none should be suspected when its lease runs out.
                        self._fail(error)
                        with suppress(DBAPIError):
                            release(self._database, batch.lease_id)
                    raise
                self._observe(batch.report, self._clock() - began)
                return batch.report
        finally:
            if claimed.suspect:
                self._solo.release()

    def _process(self, processor: Processor, batch: Batch) -> None:
        claimed, lease_id = batch.claim, batch.lease_id
        try:
            outcomes = processor.process(claimed.jobs, lambda: self._watchdog.moved(lease_id))
        except MachineError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            words = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
            log.error("a batch of %d films failed as a whole: %s", len(claimed.jobs), words)
            outcomes = []
            batch.report.failure = words
            missing = FilmError("ENGINE_FAILED", words)
        else:
            missing = FilmError("ENGINE_FAILED", "the film came back without an outcome")
        if outcomes:
            self._finish(batch, outcomes)
        answered = {outcome.job.id for outcome in outcomes}
        if any(item.id not in answered for item in claimed.jobs):
            self._postpone(batch, missing)

    def _run_alone(self, batch: Batch) -> None:
        claimed = batch.claim
        (item,) = claimed.jobs
        log.warning("job %d is run alone: its last holder died", item.id)
        try:
            code = watch_child(
                [*self._solo_command, claimed.lease_id],
                alive=lambda: self._watchdog.moved(claimed.lease_id),
                stop=self._stop.is_set,
                limit_seconds=self._settings.stall_seconds,
            )
        except OSError as error:
            self._postpone(batch, FilmError("ENGINE_FAILED", f"its process did not start: {error.strerror}"))
            return
        if code in (None, STALLED_EXIT_CODE) or (self._stop.is_set() and code in SIGNALS_FROM_OUTSIDE):
            self._release(batch)
        elif code < 0:
            self._finish(batch, [Outcome(item, crash=code)])
        else:
            if code > 0:
                # An upgraded database may have refused the child: then it refuses us too.
                self._patiently(batch.lease_id, self._database.require_current)
            # After a finished job this finds nothing to postpone. A child that gives up by itself
            # may lack its engine or its database: that is no proof against the film.
            self._postpone(batch, FilmError("ENGINE_FAILED", f"its process gave up with exit code {code}"))

    def _finish(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        self._write(batch, lambda: finish(self._database, batch.claim, outcomes, settings=self._settings))

    def _postpone(self, batch: Batch, error: FilmError) -> None:
        self._write(batch, lambda: postpone(self._database, batch.claim, error, settings=self._settings))

    def _release(self, batch: Batch) -> None:
        batch.report.released += self._patiently(batch.lease_id, lambda: release(self._database, batch.lease_id))

    def _write(self, batch: Batch, operation: Callable[[], FinishReport]) -> None:
        written: FinishReport = self._patiently(batch.lease_id, operation)
        batch.report.states.update(state.value for state in written.states.values())
        batch.report.fenced += len(written.fenced)
        if written.fenced:
            log.warning("%d results came after their lease was lost: fenced, nothing written", len(written.fenced))

    def _patiently(self, lease_id: str, operation: Callable[[], Any]) -> Any:
        """Try until the database takes it; at the end of the loop no longer than a lease lasts."""
        limit: float | None = None

        def give_up() -> bool:
            nonlocal limit
            self._watchdog.moved(lease_id)
            if self._stop.is_set():
                limit = limit or self._clock() + self._settings.lease_seconds
                time.sleep(_LOOK_SECONDS)
            return limit is not None and self._clock() > limit

        return self._patience.until_done(operation, give_up=give_up)

    def _nothing_open(self, idle: Idle) -> bool:
        def look() -> bool:
            missing = self._claimer.missing_roots()
            with self._database.read() as connection:
                return not idle.anything_open(connection, missing)

        return self._patience.until_done(look, give_up=lambda: self._ending)

    # -- engines and duties -----------------------------------------------------------

    def _look_at_engines(self, ended: threading.Event) -> None:
        while True:
            with outage_ends(lambda: True):
                self._engines.look()
            if ended.wait(self._settings.poll_seconds):
                return

    def _do_duties(self, batches: Sequence[threading.Thread]) -> None:
        look_at = self._clock()
        while any(thread.is_alive() for thread in batches) and not self._over.is_set():
            if self._stop.wait(_LOOK_SECONDS):
                return
            if self._clock() >= look_at:
                look_at = self._clock() + self._settings.poll_seconds
                with outage_ends(lambda: True):
                    do_due_duties(self._database, self._worker, self._duties)
