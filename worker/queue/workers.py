"""Who is this worker, and is it the only one of its name?

A name belongs to one live process. So whoever has the lock on a name knows that all
earlier holders of it are dead, and takes back at once what they held.
"""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO
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

_ELSEWHERE = "Another worker named {name} is running on another machine. Choose another name."


@dataclass(frozen=True)
class WorkerIdentity:
    """A registered worker: its row, its name, and the UUID of this start of it."""

    id: int
    name: str
    boot_id: str
    _lock: TextIO = field(repr=False, compare=False)

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
    lock = _lock_name(settings.home, name)
    try:
        with database.write() as connection:
            worker_id, boot_id = _upsert_worker(connection, settings, name, device, bundle_id)
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
    return WorkerIdentity(worker_id, name, boot_id, lock)


def deregister_worker(database: Database, worker: WorkerIdentity) -> None:
    """Note that a worker stopped in good order and give its name back."""
    with database.write() as connection:
        connection.execute(update(worker_table).where(worker_table.c.id == worker.id).values(stopped_at=database_now()))
    worker.release_name()


def _lock_name(home: Path, name: str) -> TextIO:
    """Hold an exclusive lock on ``name`` until the file is closed or the process ends."""
    folder = home / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / f"{quote(name, safe='')}.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise CarinaError(
            f"Another worker named {name} is running on this machine. Stop it, or choose another name."
        ) from None
    return lock


def _upsert_worker(
    connection: Connection, settings: Settings, name: str, device: str, bundle_id: int | None
) -> tuple[int, str]:
    host, boot_id = socket.gethostname(), str(uuid.uuid4())
    found = connection.execute(
        select(
            worker_table.c.id,
            worker_table.c.host,
            worker_table.c.stopped_at,
            seconds_since(worker_table.c.seen_at).label("silent"),
        )
        .where(worker_table.c.name == name)
        .with_for_update()
    ).first()
    values: dict[str, Any] = {
        "host": host,
        "process_id": os.getpid(),
        "boot_id": boot_id,
        "device": device,
        "version": __version__,
        "bundle_id": bundle_id,
        "started_at": database_now(),
        "seen_at": database_now(),
        "stopped_at": None,
    }
    if found is None:
        added = connection.execute(insert(worker_table).values(name=name, **values))
        assert added.inserted_primary_key is not None
        return int(added.inserted_primary_key[0]), boot_id
    if found.host != host and found.stopped_at is None and found.silent < settings.lease_seconds:
        raise CarinaError(_ELSEWHERE.format(name=name))
    connection.execute(update(worker_table).where(worker_table.c.id == found.id).values(**values))
    return int(found.id), boot_id
