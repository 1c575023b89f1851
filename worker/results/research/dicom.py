"""Results as DICOM files: ``<film>-<output>.dcm``, several of one output numbered from 1."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from schema.database import Database
from schema.outputs import OutputKind
from worker.errors import CarinaError, FilmError
from worker.film.pictures import PictureReader
from worker.results.files import whole_file, writing_to
from worker.results.outputs.objects import PICTURES, Naming, build_objects, require_highdicom
from worker.results.research.documents import Progress
from worker.results.research.films import count_films, pages, stem
from worker.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """How many files were written, and how many films were left out because they could not be read any more."""

    files: int
    films_left_out: int


def export_dicom(
    database: Database,
    settings: Settings,
    out: Path,
    kinds: Collection[OutputKind],
    naming: Naming,
    *,
    submission_id: int | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write the objects of ``kinds`` of each film with a published result.

    A film whose file is gone or changed is logged by its job and left out.

    Raises
    ------
    worker.errors.CarinaError
        The folder cannot be written, or the extra ``pacs`` is not installed.
    """
    require_highdicom()
    total, files, left_out, seen = count_films(database, submission_id), 0, 0, 0
    with writing_to(out, "The export"), ExitStack() as opened:
        reader = None
        if PICTURES & set(kinds):
            from worker.results.outputs.capture import LONGEST_SIDE

            reader = opened.enter_context(PictureReader(settings, LONGEST_SIDE))
        for page in pages(database, submission_id):
            for row in page:
                try:
                    objects = build_objects(database, settings, row.job_id, kinds, naming=naming, pictures=reader)
                except (FilmError, CarinaError) as error:
                    log.error("job %d: %s", row.job_id, error)
                    left_out += 1
                    continue
                finally:
                    seen += 1
                    if progress:
                        progress(seen, total)
                for kind, datasets in objects.items():
                    for number, dataset in enumerate(datasets, start=1):
                        several = f"-{number}" if len(datasets) > 1 else ""
                        with whole_file(out / f"{stem(row, naming)}-{kind}{several}.dcm", "wb") as stream:
                            dataset.save_as(stream, enforce_file_format=True)
                        files += 1
    return Written(files, left_out)
