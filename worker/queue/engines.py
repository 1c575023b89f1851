"""Who reads the next batch?

A worker asks before each claim, and the batch is read by whoever it was claimed for. So the
processor may be exchanged between two batches, and a result never stands under the name of
a bundle that did not make it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from worker.queue.outcomes import ClaimedJob, Outcome


class Processor(Protocol):
    """Turns jobs into outcomes with one loaded bundle."""

    @property
    def bundle_id(self) -> int:
        """The bundle's row."""

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        """Work through ``jobs``, one outcome each; call ``progress`` whenever a film moved on."""


class Engines(ABC):
    """The processors of a worker: one serves, another may read in the shadow."""

    @abstractmethod
    def hold(self) -> AbstractContextManager[Processor]:
        """The processor that serves now; it stays open within the block."""

    @abstractmethod
    def hold_shadow(self) -> AbstractContextManager[Processor | None]:
        """The processor of a bundle on trial, open within the block; None if there is none."""

    @abstractmethod
    def look(self) -> None:
        """See whether another bundle is wanted, and exchange; called now and then, may take minutes.

        Raises
        ------
        sqlalchemy.exc.DBAPIError
            The database is away: nothing was exchanged.
        """

    @property
    @abstractmethod
    def do_shadow_jobs(self) -> bool:
        """Whether this worker loads bundles on trial."""

    @property
    @abstractmethod
    def refused(self) -> Collection[int]:
        """The bundles that were asked for and could not be loaded."""


class OneEngine(Engines):
    """A processor that is never exchanged."""

    do_shadow_jobs = False
    refused = ()

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    @contextmanager
    def hold(self) -> Iterator[Processor]:
        """The processor."""
        yield self._processor

    @contextmanager
    def hold_shadow(self) -> Iterator[None]:
        """None."""
        yield None

    def look(self) -> None:
        """Nothing is ever exchanged."""
