"""Films with a DICOM file and a stored result, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from dicom_files import chest_pixels, make_dataset, save
from sqlalchemy import select, update
from stored_films import Films, digest, fresh_database, result

from schema import tables
from schema.database import Database
from schema.keys import uid_key
from schema.outputs import OutputKind
from worker.film.pictures import PictureReader
from worker.results.outputs.objects import Naming, build_objects
from worker.results.result import FilmResult
from worker.settings import Settings, load_settings, site_key


@dataclass
class Site:
    """A database, settings with a site key, and films."""

    database: Database
    settings: Settings
    films: Films
    folder: Path
    pictures: PictureReader | None = None

    def build(self, job: int, kinds: Collection[OutputKind], **naming: bool) -> dict[OutputKind, list[Any]]:
        """The objects of a job."""
        return build_objects(self.database, self.settings, job, kinds, naming=Naming(**naming), pictures=self.pictures)

    def add(self, path: Path, stored: FilmResult | None = None, **instance: Any) -> int:
        """Register a file with a result, by default one of a fitting size; returns the job."""
        header = pydicom.dcmread(path, stop_before_pixels=True)
        uid = str(header.SOPInstanceUID)
        job = self.films.film(uid=uid, stored=stored or result(film=(int(header.Rows), int(header.Columns))))
        status = path.stat()
        place = {"path": str(path.absolute()).lstrip("/"), "size": status.st_size, "modified_ns": status.st_mtime_ns}
        with self.database.write() as connection:
            row = connection.execute(select(tables.job).where(tables.job.c.id == job)).one()
            connection.execute(
                update(tables.identity).where(tables.identity.c.arrival_id == row.arrival_id).values(**place)
            )
            # Several files may call themselves alike: each is a film of its own here.
            values = {"content_hash": digest(f"{path} content"), "modality": "DX", **instance}
            connection.execute(update(tables.instance).where(tables.instance.c.id == row.instance_id).values(**values))
        return job

    def film(self, name: str = "film.dcm", stored: FilmResult | None = None, **attributes: Any) -> int:
        """A drawn chest with ``attributes``, registered with a result; returns the job."""
        dataset = make_dataset(chest_pixels(), **attributes)
        path = save(dataset, self.folder / name)
        key = uid_key(site_key(self.settings), str(dataset.SOPInstanceUID))
        return self.add(path, stored, key=key)

    def update(self, table: Any, job: int, **values: Any) -> None:
        """Change the result of a job."""
        with self.database.write() as connection:
            connection.execute(update(table).where(table.c.job_id == job).values(**values))


@contextmanager
def output_site(folder: Path, pictures: PictureReader | None = None) -> Iterator[Site]:
    """A site without films in ``folder``; a reader of ``pictures`` may be shared, for starting one takes longest."""
    settings = load_settings({"CARINA_HOME": str(folder / "home")})
    settings.home.mkdir()
    # Always the same UIDs: by chance, one could hold the digits a test looks for.
    (settings.home / "site.key").write_text("5a" * 32)
    with fresh_database("sqlite", folder / "home") as database:
        (folder / "films").mkdir()
        yield Site(database, settings, Films(database), folder / "films", pictures)


def without(stored: FilmResult, *parts: str) -> FilmResult:
    """A result that lacks ``segmentation`` or ``heatmap``."""
    return replace(stored, **dict.fromkeys(parts))
