"""Which files will never be asked for again, and how do they leave a watched folder?"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection, bindparam, select, update

from schema.database import Database
from schema.tables import ArrivalState, JobState, identity, instance, job
from worker.errors import CarinaError
from worker.intake.folders import FoundFile
from worker.intake.lookups import PROCESS, known_arrivals, location_of, slices
from worker.intake.sources import Roots
from worker.queue.outcomes import SourceReference

log = logging.getLogger(__name__)

_REPEATS = frozenset({ArrivalState.DUPLICATE.value, ArrivalState.ALIAS.value})
_THROUGH = frozenset({JobState.DONE.value, JobState.INELIGIBLE.value})


@dataclass(frozen=True)
class Departure:
    """What becomes of a file whose film is through: deleted, or moved below ``target``."""

    roots: Roots
    target: str | None

    def let_go(self, database: Database, folder: str, file: FoundFile, arrival_id: int) -> None:
        """Delete or move one file of ``folder``; a file that changed or vanished meanwhile is left alone."""
        try:
            status = os.stat(file.path)  # noqa: PTH116
            if (status.st_size, status.st_mtime_ns) != (file.source.size, file.source.modified_ns):
                return
            if self.target is None:
                Path(file.path).unlink()
            else:
                self._move(database, file, _free_place(self.target, os.path.relpath(file.path, folder), arrival_id))
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("the file of arrival %d cannot leave the watched folder: %s", arrival_id, error.strerror)

    def _move(self, database: Database, file: FoundFile, place: Path) -> None:
        root, path = self.roots.locate(str(place))
        moved = replace(file.source, root=root, path=path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with database.write() as connection:
            connection.execute(
                update(identity)
                .where(identity.c.location_hash == location_of(file.source))
                .values(root=root, path=path, location_hash=location_of(moved))
            )
            # Before the commit: if it cannot be moved, the ledger still knows where it is.
            Path(file.path).rename(place)


def parse_after(after: str, roots: Roots, folder: str) -> Departure | None:
    """``"leave"`` (None), ``"delete"`` or ``"move:FOLDER"``; makes FOLDER.

    Raises
    ------
    CarinaError
        Something else, or a folder that files cannot be moved to.
    """
    if after == "leave":
        return None
    if after == "delete":
        return Departure(roots, None)
    kind, _, name = after.partition(":")
    if kind != "move" or not name:
        raise CarinaError("What becomes of files afterwards must be leave, delete or move:FOLDER.")
    target = os.path.normpath(Path(name).absolute())
    if target == folder or target.startswith(folder + "/"):
        raise CarinaError("Files must be moved out of the watched folder, not to a place inside it.")
    roots.locate(target)
    try:
        Path(target).mkdir(parents=True, exist_ok=True)
        same = Path(target).stat().st_dev == Path(folder).stat().st_dev
    except OSError as error:
        raise CarinaError(f"The folder to move files to cannot be used: {error.strerror}.") from None
    if not same:
        raise CarinaError("Files can only be moved within one file system: choose a folder there.")
    return Departure(roots, target)


def through(connection: Connection, sources: Sequence[SourceReference]) -> dict[SourceReference, int]:
    """Of ``sources``, the files nothing more will be asked of → their arrivals."""
    known = known_arrivals(connection, sources)
    films = {item.instance_id for item in known.values() if item.instance_id is not None}
    states: dict[int, set[str]] = {film: set() for film in films}
    for piece in slices(films):
        for film, state in connection.execute(_STATES, {"instances": piece}):
            states[film].add(state)
    ended = {film for film, found in states.items() if found and found <= _THROUGH}
    return {
        source: item.arrival_id
        for source, item in known.items()
        if item.state in _REPEATS or (item.state == ArrivalState.INSTANCE and item.instance_id in ended)
    }


_STATES = (
    select(job.c.instance_id, job.c.state)
    .join(instance, (instance.c.id == job.c.instance_id) & (instance.c.generation == job.c.generation))
    .where(PROCESS, job.c.published, job.c.state != JobState.CANCELLED.value)
    .where(job.c.instance_id.in_(bindparam("instances", expanding=True)))
)


def _free_place(target: str, relative: str, arrival_id: int) -> Path:
    place = Path(target) / relative
    return place.with_name(f"{place.name}.{arrival_id}") if place.exists() else place
