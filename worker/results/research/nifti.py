"""Label maps as NIfTI-1, one file per film on the film's own grid."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.database import Database
from worker.errors import CarinaError
from worker.film.geometry import to_film_grid
from worker.film.prepared import Geometry
from worker.results.export import exported_values
from worker.results.files import whole_file, writing_to
from worker.results.masks import DamagedMaskError, decode_mask
from worker.results.outputs.objects import Naming
from worker.results.research.documents import Progress
from worker.results.research.films import count_films, pages, stem

log = logging.getLogger(__name__)


def export_nifti(
    database: Database,
    out: Path,
    naming: Naming,
    *,
    submission_id: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write ``<film>.nii.gz`` for each film with a label map, and return how many.

    Voxel (i, j, 0) is column i, row j of the stored film, with the values of
    :func:`worker.results.export.exported_values`; the affine is :func:`affine_of`.

    Raises
    ------
    worker.errors.CarinaError
        The folder cannot be written, or the extra ``research`` is not installed.
    """
    _require_nibabel()
    total, written, seen = count_films(database, submission_id), 0, 0
    with writing_to(out, "The export"):
        for page in pages(database, submission_id):
            for row in page:
                if (labels := _labels(row)) is not None:
                    with whole_file(out / f"{stem(row, naming)}.nii.gz", "wb") as stream:
                        stream.write(nifti_bytes(labels, _geometry(row)))
                    written += 1
                seen += 1
                if progress:
                    progress(seen, total)
    return written


def affine_of(geometry: Geometry) -> npt.NDArray[np.float64]:
    """Voxel to NIfTI's axes (to the patient's right, front, head), float64 (4, 4).

    Only directions and pixel size mean something: the first pixel is the origin, the film has no place in a room,
    and its spacing is that of the detector unless the header says that it was corrected. Without a spacing a pixel
    counts 1, without a unit.
    """
    rows, columns = geometry.row_spacing or 1.0, geometry.column_spacing or 1.0
    # Columns of a film run to the patient's left, rows to the feet: against NIfTI's axes.
    across = columns if geometry.flip_columns else -columns
    down = rows if geometry.flip_rows else -rows
    return np.array([[across, 0, 0, 0], [0, 0, 1, 0], [0, down, 0, 0], [0, 0, 0, 1]], np.float64)


def nifti_bytes(labels: npt.NDArray[np.uint8], geometry: Geometry) -> bytes:
    """A label map of the stored film, uint8 (rows, columns), as the bytes of a ``.nii.gz`` file."""
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(labels.T[:, :, np.newaxis]), affine_of(geometry))
    image.header.set_xyzt_units("mm" if geometry.row_spacing else "unknown")
    image.header["descrip"] = b"Carina label map, research use"
    # Without the time of writing, the same film is the same file.
    return gzip.compress(image.to_bytes(), mtime=0)


def _require_nibabel() -> None:
    try:
        import nibabel  # noqa: F401
    except ImportError:
        raise CarinaError("NIfTI needs the extra research: pip install 'carina-cxr[research]'") from None


def _labels(row: Any) -> npt.NDArray[np.uint8] | None:
    if row.mask is None:
        return None
    try:
        labels = decode_mask(row.mask, (row.height, row.width))
    except DamagedMaskError as error:
        log.error("job %d: %s", row.job_id, error)
        return None
    values = exported_values([region["name"] for region in row.manifest["regions"]])
    return to_film_grid(values[labels], _geometry(row))


def _geometry(row: Any) -> Geometry:
    return Geometry(
        row.mask_rows, row.mask_columns, row.flip_columns, row.flip_rows, row.row_spacing, row.column_spacing
    )
