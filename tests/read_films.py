"""A home folder whose films lie in files, came in through the front door and have results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicom_files import chest_pixels, make_dataset
from ledger_rows import settings_for
from pydicom import Dataset, dcmread
from sqlalchemy import insert, select, update
from stored_films import MANIFEST, digest, result

from schema import tables
from schema.database import Database
from schema.types import database_now
from worker import REVISION
from worker.intake.scan import submit
from worker.results.write import write_results
from worker.settings import Settings

ROWS, COLUMNS = 64, 48


@dataclass
class ReadFilms:
    """Films in ``folder``; each has a result of the tests' own, as if a worker had read it."""

    database: Database
    settings: Settings
    folder: Path
    jobs: list[int] = field(default_factory=list)
    bundle: int = 0

    @classmethod
    def at(cls, folder: Path, **settings: Any) -> ReadFilms:
        home, films = folder / "home", folder / "films"
        home.mkdir()
        films.mkdir()
        chosen = settings_for(home, backoff_seconds=0.05, **settings)
        database = Database(chosen.url)
        database.upgrade()
        made = cls(database, chosen, films)
        with database.write() as connection:
            added = connection.execute(
                insert(tables.bundle).values(name="phantom", version="1", sha256=digest("1"), manifest=MANIFEST)
            )
            made.bundle = int(added.inserted_primary_key[0])
            connection.execute(insert(tables.bundle_alias).values(alias="champion", bundle_id=made.bundle))
        return made

    def add(self, count: int = 1, *, size: tuple[int, int] = (ROWS, COLUMNS), **stored: Any) -> list[int]:
        """``count`` more films with results; returns their jobs."""
        for number in range(len(self.jobs), len(self.jobs) + count):
            self.film(number, size).save_as(self.folder / f"{number}.dcm", enforce_file_format=True)
        submit(self.database, self.settings, [self.folder])
        with self.database.write() as connection:
            new = list(
                connection.scalars(
                    select(tables.job.c.id).where(tables.job.c.state == "ready").order_by(tables.job.c.id)
                )
            )
            for job in new:
                connection.execute(
                    update(tables.job)
                    .where(tables.job.c.id == job)
                    .values(state="done", bundle_id=self.bundle, revision=REVISION, finished_at=database_now())
                )
            write_results(connection, [(job, result(film=size, **stored)) for job in new])
            # Each film's content is its own.
            for job in new:
                film = select(tables.job.c.instance_id).where(tables.job.c.id == job).scalar_subquery()
                connection.execute(
                    update(tables.instance).where(tables.instance.c.id == film).values(content_hash=digest(f"{job}"))
                )
        self.jobs += new
        return new

    @staticmethod
    def film(number: int, size: tuple[int, int] = (ROWS, COLUMNS)) -> Dataset:
        """A small film in a study of its own."""
        return make_dataset(chest_pixels(*size, seed=number), AccessionNumber=f"A{number}")

    def studies(self) -> set[str]:
        return {str(dcmread(file).StudyInstanceUID) for file in self.folder.iterdir()}
