"""The DICOM objects a result goes back to the hospital as."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from schema.database import Database
from schema.outputs import OutputKind
from worker.errors import CarinaError
from worker.film.pictures import PictureReader
from worker.intake.sources import resolve
from worker.results.masks import DamagedMaskError
from worker.results.outputs.identifiers import ResultIdentifiers
from worker.results.outputs.source import Source, identified_source, pseudonymous_source, read_source_header
from worker.results.outputs.stored import StoredResult, load_result
from worker.settings import Settings, site_key

#: What needs the film's pixels.
PICTURES = frozenset({OutputKind.OVERLAY, OutputKind.HEATMAP})


@dataclass(frozen=True)
class Naming:
    """Whose objects they are: the hospital's own film (``identified``), or a film without identity.

    ``age_and_sex`` keeps these two in objects without identity.
    """

    identified: bool = True
    age_and_sex: bool = False


def build_objects(
    database: Database,
    settings: Settings,
    job_id: int,
    kinds: Collection[OutputKind],
    *,
    naming: Naming | None = None,
    pictures: PictureReader | None = None,
) -> dict[OutputKind, list[Dataset]]:
    """Make the objects of ``kinds`` for the published result of a job.

    Building twice gives the same bytes: UIDs, dates and times come from the result. Objects carry the film's
    identifiers and belong to its study, each kind in a series of its own.

    Parameters
    ----------
    kinds
        What to make; the report refers to the segmentation whether it is among them or not.
    naming
        How the film is named; by default under its own identifiers.
    pictures
        Reader of :data:`worker.results.outputs.capture.LONGEST_SIDE` pixels, opened for this call where None;
        for many films pass one.

    Returns
    -------
    dict
        Kind → complete data sets with file meta information; an empty list where the result has nothing of a kind.

    Raises
    ------
    worker.errors.FilmError
        The film's file is gone, changed or cannot be read (``SOURCE_MISSING``, ``SOURCE_CHANGED``, ...).
    worker.errors.CarinaError
        The job has no published result, a stored map is damaged, or the extra ``pacs`` is not installed.
    """
    require_highdicom()
    key = site_key(settings)
    try:
        result = load_result(database, job_id)
    except DamagedMaskError as error:
        raise CarinaError(f"Job {job_id}: {error}") from None
    source = _source(settings, key, result, naming or Naming())
    identifiers = ResultIdentifiers(
        key, source.sop_instance_uid, result.content_hash, result.bundle_sha256, result.revision
    )
    made: dict[OutputKind, list[Dataset]] = {}
    if {OutputKind.SEGMENTATION, OutputKind.REPORT} & set(kinds):
        made |= _structured(result, source, identifiers, kinds)
    if PICTURES & set(kinds):
        with _opened(settings, pictures) as reader:
            made |= _pictures(settings, result, source, identifiers, kinds=kinds, reader=reader)
    return made


def require_highdicom() -> None:
    """Make highdicom usable; raises CarinaError, with what to install, where the extra ``pacs`` is missing."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise CarinaError("DICOM objects need the extra pacs: pip install 'carina-cxr[pacs]'") from None
    # What it tells below warnings names films by their UIDs.
    logging.getLogger("highdicom").setLevel(logging.WARNING)


def _source(settings: Settings, key: bytes, result: StoredResult, naming: Naming) -> Source:
    elements = read_source_header(settings, result.source)
    uid = result.sop_instance_uid
    if naming.identified:
        return identified_source(elements, key, uid, result.finished_at)
    return pseudonymous_source(elements, key, uid, result.patient_key, age_and_sex=naming.age_and_sex)


def _structured(
    result: StoredResult, source: Source, identifiers: ResultIdentifiers, kinds: Collection[OutputKind]
) -> dict[OutputKind, list[Dataset]]:
    from worker.results.outputs.report import build_report
    from worker.results.outputs.segmentation import build_segmentation

    segmentation = build_segmentation(result, source, identifiers)
    made: dict[OutputKind, list[Dataset]] = {}
    if OutputKind.SEGMENTATION in kinds:
        made[OutputKind.SEGMENTATION] = [] if segmentation is None else [segmentation]
    if OutputKind.REPORT in kinds:
        made[OutputKind.REPORT] = [build_report(result, source, identifiers, segmentation)]
    return made


def _pictures(
    settings: Settings,
    result: StoredResult,
    source: Source,
    identifiers: ResultIdentifiers,
    *,
    kinds: Collection[OutputKind],
    reader: PictureReader,
) -> dict[OutputKind, list[Dataset]]:
    from worker.results.outputs.capture import build_heatmaps, build_overlay

    picture = reader.picture(resolve(settings, result.source), result.source.member or None)
    builders = {OutputKind.OVERLAY: build_overlay, OutputKind.HEATMAP: build_heatmaps}
    return {kind: build(result, source, identifiers, picture) for kind, build in builders.items() if kind in kinds}


@contextlib.contextmanager
def _opened(settings: Settings, pictures: PictureReader | None) -> Iterator[PictureReader]:
    from worker.results.outputs.capture import LONGEST_SIDE

    if pictures is not None:
        yield pictures
        return
    with PictureReader(settings, LONGEST_SIDE) as reader:
        yield reader
