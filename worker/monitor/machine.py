"""What doctor and info look at: one machine, its settings, its database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from schema.database import Database, head_revision
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import Backend
from worker.settings import Settings


class Machine:
    """What the checks look at, each part opened once and only if a check asks for it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database_url = make_url(settings.url)

    @property
    def on_sqlite(self) -> bool:
        """Whether the database is a file of this machine."""
        return self.database_url.get_backend_name() == "sqlite"

    @property
    def has_database(self) -> bool:
        """Whether there is something to connect to: a SQLite file is not made by looking."""
        name = self.database_url.database
        return not self.on_sqlite or (name is not None and Path(name).is_file())

    @cached_property
    def database(self) -> Database:
        """The database, connected when it is first used."""
        return Database(self.settings.url)

    @cached_property
    def ready(self) -> bool:
        """Whether the database answers and has this program's tables."""
        try:
            return self.has_database and self.database.version() == head_revision()
        except SQLAlchemyError:
            return False

    @cached_property
    def backend(self) -> Backend:
        """The engine backend of the settings; raises EngineBuildError."""
        return open_backend(self.settings.backend)

    def close(self) -> None:
        """Give the database's connections back."""
        if "database" in self.__dict__:
            self.database.close()


@contextmanager
def opened(settings: Settings) -> Iterator[Machine]:
    """The machine for a while."""
    machine = Machine(settings)
    try:
        yield machine
    finally:
        machine.close()
