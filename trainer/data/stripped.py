"""De-identified films whose headers lost the UIDs that the worker asks for, as VinDr-PCXR's did.

The night refuses a film without SOP Class and SOP Instance UID, for it could not tell it from another one. Here the
file tells them apart, so such a film is completed and then read like every other.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.uid import DigitalXRayImageStorageForPresentation

from worker.errors import FilmError
from worker.phantom.dicom import phantom_uid

_UIDS = ("SOPClassUID", "SOPInstanceUID")


def is_stripped(error: FilmError) -> bool:
    """Whether all that is wrong with a film is that a UID was taken out or replaced by something else."""
    return error.code in ("MISSING_TAG", "BAD_VALUE") and error.detail.split(" ")[0] in _UIDS


def completed(path: Path, *, pixels: bool) -> bytes:
    """A film's bytes with a DX class and an invented instance UID that depends on the file's name only.

    Parameters
    ----------
    path
        The film's file.
    pixels
        False leaves the picture out, which saves reading it.

    Raises
    ------
    FilmError
        ``BAD_HEADER``.
    OSError
        The file cannot be read.
    """
    written = BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):  # that what stands for a UID is none
            film = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
            film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
            film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = phantom_uid("stripped", path.name)
            film.save_as(written, enforce_file_format=True)
    except OSError:
        raise
    except Exception as error:  # pydicom raises whatever a damaged header makes it stumble over
        raise FilmError("BAD_HEADER", type(error).__name__) from None
    return written.getvalue()


@contextmanager
def completed_copy(path: Path) -> Iterator[Path]:
    """A completed film as a temporary file."""
    with tempfile.NamedTemporaryFile(suffix=".dcm") as copy:
        copy.write(completed(path, pixels=True))
        copy.flush()
        yield Path(copy.name)
