"""What if another bundle is put into service while the night runs?

The worker looks at the ``champion`` alias at every poll. The new bundle is loaded and warmed up
beside the one that serves, with decoder children of its own, and takes over between two
batches. What is in work is finished by whoever began it; the old engines are closed after their
last batch. If anything goes wrong - a damaged file, a network that gives no numbers, no memory
left, files that this machine lacks - the old bundle goes on, and the new one is tried again
later. The worker's row always names the bundle that really serves.

A bundle on trial is held beside the one that serves for as long as it has shadow jobs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.exc import DBAPIError

from schema import tables
from schema.bundle import BundleError
from schema.database import Database
from worker.errors import CarinaError, FilmError
from worker.queue.engines import Engines, Processor
from worker.queue.shadow import bundles_on_trial
from worker.queue.workers import WorkerIdentity

log = logging.getLogger(__name__)

#: A bundle that could not be loaded is tried again after so long; twice as long each time.
FIRST_REST_SECONDS = 30.0
LONGEST_REST_SECONDS = 600.0


@dataclass(frozen=True)
class Opened:
    """A bundle that is loaded and warm: its ``name:version``, device and processor, and how to close it."""

    key: str
    device: str
    processor: Processor
    close: Callable[[], None]

    @property
    def bundle_id(self) -> int:
        """The bundle's row."""
        return self.processor.bundle_id


#: Loads the bundle of this id and warms it up; raises whatever is wrong with it.
OpenBundle = Callable[[int], Opened]


@dataclass
class _Shift:
    """An opened bundle, how many batches it works on, and whether it gets no more."""

    opened: Opened
    batches: int = 0
    over: bool = False


@dataclass
class _Trouble:
    """A bundle that could not be loaded: why, how long to rest, and until when."""

    reason: str
    seconds: float
    until: float


@dataclass(frozen=True)
class _Wanted:
    """What the database asks for."""

    champion: int | None
    on_trial: Sequence[int]


class SwappingEngines(Engines):
    """The engines of a worker that follows the ``champion`` alias.

    Parameters
    ----------
    first
        What serves at the start.
    open_bundle
        Loads another bundle beside it.
    worker
        Whose row names the bundle that serves; None while nobody is registered.
    shadow
        Whether to load bundles on trial.
    clock
        Seconds that only go forward.
    """

    def __init__(
        self,
        database: Database,
        first: Opened,
        open_bundle: OpenBundle,
        *,
        worker: WorkerIdentity,
        shadow: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._open_bundle = open_bundle
        self._worker = worker
        self._shadow = shadow
        self._clock = clock
        self._lock = threading.Lock()
        self._serving = _Shift(first)
        self._told = first.bundle_id
        self._trial: _Shift | None = None
        self._troubles: dict[int, _Trouble] = {}
        self._closed = False

    @property
    def serving(self) -> str:
        """``name:version`` of the bundle that serves."""
        return self._serving.opened.key

    @property
    def do_shadow_jobs(self) -> bool:
        """Whether bundles on trial are loaded."""
        return self._shadow

    @property
    def refused(self) -> Collection[int]:
        """The bundles that were asked for and could not be loaded."""
        return tuple(self._troubles)

    @contextmanager
    def hold(self) -> Iterator[Processor]:
        """The processor that serves now; it stays open within the block."""
        with self._lock:
            shift = self._serving
            shift.batches += 1
        try:
            yield shift.opened.processor
        finally:
            self._leave(shift)

    @contextmanager
    def hold_shadow(self) -> Iterator[Processor | None]:
        """The processor of the bundle on trial, open within the block; None if there is none."""
        with self._lock:
            shift = self._trial
            if shift is not None:
                shift.batches += 1
        if shift is None:
            yield None
            return
        try:
            yield shift.opened.processor
        finally:
            self._leave(shift)

    def look(self) -> None:
        """Load what the database asks for, and exchange; may take minutes. For one thread only.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            The database is away: to be called again.
        """
        wanted = self._wanted()
        # Whoever is asked for anew is tried at once.
        asked = {wanted.champion, *wanted.on_trial}
        self._troubles = {bundle_id: trouble for bundle_id, trouble in self._troubles.items() if bundle_id in asked}
        if wanted.champion is not None:
            self._serve(wanted.champion)
        self._try_out([bundle_id for bundle_id in wanted.on_trial if bundle_id != self._serving.opened.bundle_id])
        self._tell()

    def close(self) -> None:
        """Close everything as soon as no batch needs it any more."""
        with self._lock:
            self._closed = True
            shifts = [self._serving, *([self._trial] if self._trial else [])]
        for shift in shifts:
            self._end(shift)

    def _wanted(self) -> _Wanted:
        with self._database.read() as connection:
            champion = connection.scalar(_CHAMPION)
            on_trial = bundles_on_trial(connection) if self._shadow else []
        return _Wanted(champion, on_trial)

    def _serve(self, champion: int) -> None:
        old = self._serving
        if champion == old.opened.bundle_id:
            return
        trial = self._trial
        if trial is not None and trial.opened.bundle_id == champion:
            new = trial
        else:
            opened = self._open(champion)
            if opened is None:
                return
            with ExitStack() as unless_it_serves:
                unless_it_serves.callback(opened.close)
                if self._wanted().champion != champion:
                    # Rolled back while it was being loaded.
                    return
                unless_it_serves.pop_all()
            new = _Shift(opened)
        with self._lock:
            self._serving = new
            self._trial = None if self._trial is new else self._trial
            closed = self._closed
        log.warning("Bundle %s serves from now on, instead of %s.", new.opened.key, old.opened.key)
        self._end(old)
        if closed:
            self._end(new)

    def _try_out(self, bundles: Sequence[int]) -> None:
        trial = self._trial
        if trial is not None and trial.opened.bundle_id not in bundles:
            with self._lock:
                self._trial = None
            self._end(trial)
        if self._trial is None:
            opened = next((opened for bundle_id in bundles if (opened := self._open(bundle_id))), None)
            if opened is not None:
                with self._lock:
                    self._trial = new = _Shift(opened)
                    closed = self._closed
                log.info("bundle %s is on trial here", opened.key)
                if closed:
                    self._end(new)

    def _open(self, bundle_id: int) -> Opened | None:
        trouble = self._troubles.get(bundle_id)
        if trouble is not None and self._clock() < trouble.until:
            return None
        try:
            opened = self._open_bundle(bundle_id)
        except DBAPIError:
            raise
        except Exception as error:
            self._note(bundle_id, reason_of(error))
            return None
        self._troubles.pop(bundle_id, None)
        return opened

    def _note(self, bundle_id: int, reason: str) -> None:
        """Remember that a bundle could not be loaded; said and recorded once for each reason."""
        before = self._troubles.get(bundle_id)
        seconds = min(before.seconds * 2, LONGEST_REST_SECONDS) if before else FIRST_REST_SECONDS
        if before is None or before.reason != reason:
            with self._database.write() as connection:
                row = connection.execute(
                    select(tables.bundle.c.name, tables.bundle.c.version).where(tables.bundle.c.id == bundle_id)
                ).one()
                key = f"{row.name}:{row.version}"
                connection.execute(
                    insert(tables.audit_event).values(
                        actor=self._worker.name,
                        action="bundle refused",
                        subject=key,
                        detail={"reason": reason, "serving": self.serving},
                    )
                )
            log.error(
                "Bundle %s cannot be loaded here, %s goes on serving. %s It is tried again.", key, self.serving, reason
            )
        self._troubles[bundle_id] = _Trouble(reason, seconds, self._clock() + seconds)

    def _tell(self) -> None:
        """Write down which bundle serves."""
        serving = self._serving.opened.bundle_id
        if serving == self._told:
            return
        with self._database.write() as connection:
            connection.execute(
                update(tables.worker)
                .where(tables.worker.c.id == self._worker.id, tables.worker.c.boot_id == self._worker.boot_id)
                .values(bundle_id=serving)
            )
        self._told = serving

    def _leave(self, shift: _Shift) -> None:
        with self._lock:
            shift.batches -= 1
            last = shift.over and shift.batches == 0
        if last:
            shift.opened.close()

    def _end(self, shift: _Shift) -> None:
        """Give a shift no more batches; it is closed after its last one."""
        with self._lock:
            idle = not shift.over and shift.batches == 0
            shift.over = True
        if idle:
            shift.opened.close()


_CHAMPION = select(tables.bundle_alias.c.bundle_id).where(tables.bundle_alias.c.alias == "champion")


def reason_of(error: Exception) -> str:
    """Why a bundle could not be loaded, a sentence; an exception of another kind may quote anything."""
    if isinstance(error, BundleError | CarinaError | FilmError):
        return str(error)
    return f"Loading it failed: {type(error).__name__}."
