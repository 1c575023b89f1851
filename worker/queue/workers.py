"""Who is this worker, and is it the only one of its name?

A name belongs to one live process. A process locks a file of that name in its home folder
and writes into it under which start it is in the database. So whoever gets the lock and
finds that start there knows that its bearer is dead, and takes back at once what it held.
A bearer that had its lock elsewhere may be alive: its name is free when it stopped in good
order or was silent for a lease.
"""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from schema.database import Database
from schema.tables import lease as lease_table
from schema.tables import worker as worker_table
from schema.types import database_now, seconds_since
from worker import __version__
from worker.errors import CarinaError
from worker.queue.leases import expire
from worker.settings import Settings

_ELSEWHERE = (
    "Another worker named {name} is running on another machine or with another home folder. "
    "Stop it, or choose another name."
)


class _NameLock:
    """An exclusive lock on a name until it is closed or the process ends, and who had it last."""

    def __init__(self, home: Path, name: str) -> None:
        folder = home / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"{quote(name, safe='')}.lock").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise CarinaError(
                f"Another worker named {name} is running on this machine. Stop it, or choose another name."
            ) from None

    def starts(self) -> frozenset[str]:
        """The starts that may be in the database; all of them are over."""
        self._file.seek(0)
        return frozenset(self._file.read().split())

    def add(self, boot_id: str) -> None:
        """Note one more start."""
        self._file.write(f"{boot_id}\n")
        self._file.flush()

    def keep_only(self, boot_id: str) -> None:
        """Forget the starts before this one."""
        self._file.truncate(0)
        self.add(boot_id)

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()


@dataclass(frozen=True)
class WorkerIdentity:
    """A registered worker: its row, its name, and the UUID of this start of it."""

    id: int
    name: str
    boot_id: str
    _lock: _NameLock = field(repr=False, compare=False)

    def release_name(self) -> None:
        """Let another process take the name."""
        self._lock.close()


def register_worker(
    database: Database, settings: Settings, name: str, device: str = "", *, bundle_id: int | None = None
) -> WorkerIdentity:
    """Take ``name`` for this process, and take back at once what its last bearer held.

    Raises
    ------
    CarinaError
        Another live process has the name, on this machine or on another one.
    """
    lock = _NameLock(settings.home, name)
    try:
        with database.write() as connection:
            boot_id = str(uuid.uuid4())
            worker_id = _upsert_worker(
                connection, settings, name, device, bundle_id, boot_id=boot_id, ours=lock.starts()
            )
            # Before the commit: if its answer is lost, the next start must know this one.
            lock.add(boot_id)
            older = select(lease_table.c.id).where(
                lease_table.c.worker_id == worker_id, lease_table.c.boot_id != boot_id
            )
            expire(connection, connection.scalars(older.with_for_update()).all())
    except IntegrityError:
        lock.close()
        # It was registered between our look and our insert.
        raise CarinaError(_ELSEWHERE.format(name=name)) from None
    except BaseException:
        lock.close()
        raise
    lock.keep_only(boot_id)
    return WorkerIdentity(worker_id, name, boot_id, lock)


def deregister_worker(database: Database, worker: WorkerIdentity) -> None:
    """Note that a worker stopped in good order and give its name back."""
    with database.write() as connection:
        connection.execute(
            update(worker_table)
            .where(worker_table.c.id == worker.id, worker_table.c.boot_id == worker.boot_id)
            .values(stopped_at=database_now())
        )
    worker.release_name()


def _upsert_worker(
    connection: Connection,
    settings: Settings,
    name: str,
    device: str,
    bundle_id: int | None,
    *,
    boot_id: str,
    ours: Collection[str],
) -> int:
    found = connection.execute(
        select(
            worker_table.c.id,
            worker_table.c.boot_id,
            worker_table.c.stopped_at,
            seconds_since(worker_table.c.seen_at).label("silent"),
        )
        .where(worker_table.c.name == name)
        .with_for_update()
    ).first()
    values: dict[str, Any] = {
        "host": socket.gethostname(),
        "process_id": os.getpid(),
        "boot_id": boot_id,
        "device": device,
        "version": __version__,
        "bundle_id": bundle_id,
        "home_free_bytes": None,
        "started_at": database_now(),
        "seen_at": database_now(),
        "stopped_at": None,
    }
    if found is None:
        added = connection.execute(insert(worker_table).values(name=name, **values))
        assert added.inserted_primary_key is not None
        return int(added.inserted_primary_key[0])
    if found.boot_id not in ours and found.stopped_at is None and found.silent < settings.lease_seconds:
        raise CarinaError(_ELSEWHERE.format(name=name))
    connection.execute(update(worker_table).where(worker_table.c.id == found.id).values(**values))
    return int(found.id)
