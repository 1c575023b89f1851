"""What if this machine lacks a folder that films lie under?

A film's place is a named root and a path below it (``CARINA_ROOTS``). A machine that does not
know the name, or whose share is not mounted, says so and leaves such films to machines that
have the root: they stay ready, at their place in the queue, and no attempt is counted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from sqlalchemy import Connection, exists, func, select

from schema.database import Database
from schema.tables import JobState, identity, job
from worker.queue.claim_statements import FILE_OF_JOB, lies_under
from worker.queue.leases import NO_SHADOW, in_state

log = logging.getLogger(__name__)

UNKNOWN = "CARINA_ROOTS does not name it"


def missing_roots(folders: Mapping[str, Path]) -> dict[str, str]:
    """Roots whose folder is not there → why, for a person. An empty folder is one that is not mounted."""
    return {name: reason for name, folder in folders.items() if (reason := _trouble(folder))}


def _trouble(folder: Path) -> str:
    try:
        with os.scandir(folder) as entries:
            return "" if next(entries, None) else "its folder is empty: is it mounted?"
    except PermissionError:
        # Whoever may not list a folder may still be let into it.
        return "" if os.access(folder, os.X_OK) else "its folder may not be read"
    except (FileNotFoundError, NotADirectoryError):
        return "its folder is not there"
    except OSError as error:
        return f"its folder cannot be read ({error.strerror})"


def waiting_films(connection: Connection) -> dict[str, int]:
    """Root → films that are ready or delayed, shadow jobs left out; looks at each of them."""
    waits = in_state(JobState.READY) | in_state(JobState.DELAYED)
    rows = connection.execute(
        select(identity.c.root, func.count())
        .select_from(job.join(identity, identity.c.arrival_id == FILE_OF_JOB))
        .where(waits, NO_SHADOW)
        .group_by(identity.c.root)
    )
    return {row[0]: row[1] for row in rows}


def films_left(connection: Connection, folders: Mapping[str, Path]) -> dict[str, tuple[int, str]]:
    """Root that this machine lacks → how many films wait under it, and why it is lacking."""
    missing = missing_roots(folders)
    return {
        root: (films, missing.get(root, UNKNOWN))
        for root, films in sorted(waiting_films(connection).items())
        if root in missing or root not in folders
    }


class LocalRoots:
    """The roots of this machine, and what it has noticed and said about those it lacks."""

    def __init__(self, database: Database, folders: Callable[[], Mapping[str, Path]]) -> None:
        self._database = database
        self._folders = folders
        self._missing: dict[str, str] = {}
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def look(self) -> frozenset[str]:
        """The roots that this machine lacks, as far as it knows: looks at every folder."""
        folders = self._folders()
        found = missing_roots(folders)
        with self._lock:
            fallen = found.keys() - self._missing
            unknown = {name: reason for name, reason in self._missing.items() if name not in folders}
            self._missing = unknown | found
            back = self._said - self._missing.keys()
            self._said -= back
            missing = frozenset(self._missing)
        for name in sorted(back):
            log.warning("The root %s is there again: its films are read here.", name)
        if fallen:
            self.say()
        return missing

    def unknown(self, names: Collection[str]) -> frozenset[str]:
        """Those of ``names`` that this machine has never heard of; it says so once."""
        found = frozenset(names) - self._folders().keys()
        if found:
            with self._lock:
                self._missing |= dict.fromkeys(found, UNKNOWN)
                new = found - self._said
                self._said |= new
            self._warn(new)
        return found

    def say(self) -> None:
        """Say which roots are lacking that films wait under, each once until it is back."""
        with self._lock:
            unsaid = sorted(self._missing.keys() - self._said)
        if not unsaid:
            return
        waiting = in_state(JobState.READY), NO_SHADOW
        with self._database.read() as connection:
            waited_for = {
                name
                for name in unsaid
                if connection.scalar(select(exists().where(*waiting, lies_under())), {"roots": [name]})
            }
        with self._lock:
            new = waited_for - self._said
            self._said |= new
        self._warn(new)

    def _warn(self, names: Collection[str]) -> None:
        for name in sorted(names):
            log.warning(
                "Films under the root %s are left to other machines: %s. See CARINA_ROOTS.",
                name,
                self._missing.get(name, UNKNOWN),
            )
