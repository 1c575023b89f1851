"""A ledger with films in files, and supervised pass-through workers on it."""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ledger_rows import add_bundle, register_films
from passthrough_worker import command
from sqlalchemy import func, make_url, select

from schema import tables
from schema.database import Database


def make_films(folder: Path, count: int, special: dict[int, str]) -> list[str]:
    """Files named by number; returns their paths below the root."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04d}").write_text(special.get(number, "film"))
    return [str(folder / f"{number:04d}").lstrip("/") for number in range(count)]


@dataclass
class Site:
    """A ledger with films, and the supervised workers on it."""

    database: Database
    home: Path
    jobs: list[int]
    settings: dict[str, Any]
    seconds_per_film: float = 0.005
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(
        self, name: str, mode: str = "supervise", *, program: Path | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a worker, of the ``program`` in another folder if one is named."""
        options = {
            "home": str(self.home),
            "name": name,
            "settings": self.settings,
            "seconds_per_film": self.seconds_per_film,
            **more,
        }
        words = command(mode, options)
        if program is not None:
            words[1] = str(program / "tests" / Path(words[1]).name)
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=log)
        return self.processes[name]

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def states(self) -> Counter[str]:
        with self.database.read() as connection:
            rows = connection.execute(select(tables.job.c.state, func.count()).group_by(tables.job.c.state)).all()
        return Counter(dict(rows))

    def open(self) -> int:
        states = self.states()
        return states["ready"] + states["leased"] + states["delayed"]

    def count(self, table: str) -> int:
        with self.database.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(tables.metadata.tables[table])) or 0)


@contextlib.contextmanager
def make_site(folder: Path, url: str, count: int, special: dict[int, str], **settings: Any) -> Iterator[Site]:
    database = Database(url)
    add_bundle(database)
    jobs = register_films(database, make_films(folder / "films", count, special))
    home = folder / "home"
    home.mkdir()
    site = Site(database, home, jobs, {"database_url": soon_unlocked(url), **settings})
    try:
        yield site
    finally:
        for process in site.processes.values():
            for victim in [*descendants(process.pid), process]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    victim.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        database.close()


def soon_unlocked(url: str) -> str:
    """``url``; whoever is frozen in the middle of a transaction on PostgreSQL soon loses its locks."""
    if not url.startswith("postgresql"):
        return url
    limits = {"options": "-c idle_in_transaction_session_timeout=2s"}
    return make_url(url).update_query_dict(limits).render_as_string(hide_password=False)


def descendants(process_id: int) -> list[psutil.Process]:
    try:
        return psutil.Process(process_id).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
