"""What passes between the ledger and the work: a claim going in, an outcome coming back."""

from __future__ import annotations

from dataclasses import dataclass

from schema.tables import JobKind
from worker.errors import FilmError
from worker.results.result import FilmResult


@dataclass(frozen=True)
class SourceReference:
    """Where a film lies: a named root, a path below it, a member if it is inside a zip archive.

    ``size`` (bytes) and ``modified_ns`` are those seen at registration.
    """

    root: str
    path: str
    member: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class ClaimedJob:
    """One job this worker holds under a lease."""

    id: int
    kind: JobKind
    instance_id: int
    arrival_id: int
    source: SourceReference
    generation: int
    attempts: int
    crashes: int


@dataclass(frozen=True)
class Claim:
    """A batch: jobs held under one lease. ``suspect`` means one job that must run alone, in a child."""

    lease_id: str
    bundle_id: int
    jobs: tuple[ClaimedJob, ...]

    @property
    def suspect(self) -> bool:
        """Whether the job's last holder died with it."""
        return any(job.crashes > 0 for job in self.jobs)


@dataclass(frozen=True)
class Content:
    """What a file turned out to hold: SHA-256 of its bytes and of its canonical content, hex."""

    file_hash: str
    content_hash: str


@dataclass(frozen=True)
class Outcome:
    """What came of one job; exactly one of ``result``, ``content``, ``error``, ``crash`` is set.

    ``result``
        A ``process`` job was worked through: done, or ineligible by picture.
    ``content``
        A ``verify`` job read its file.
    ``error``
        The film cannot go on, or not now: see its kind.
    ``crash``
        Exit code of the child process that died on this film; negative for a signal.
    """

    job: ClaimedJob
    result: FilmResult | None = None
    content: Content | None = None
    error: FilmError | None = None
    crash: int | None = None
