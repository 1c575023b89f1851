"""A film's picture as the network sees it, by the worker's own steps.

DICOM goes the whole way of the night (:func:`worker.film.prepare.prepare`): decoding, polarity, VOI and turning
back what is stored mirrored; only its UIDs may be missing (:mod:`trainer.data.stripped`). PNG, JPEG and TIFF are
taken as they are, white dense, the patient's right on the image's left. Which of the two a file is, its first bytes
say, not its name. Raw pictures have no such bytes: what they are, the data set's description says
(:mod:`trainer.data.raw`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from trainer.data.raw import RawPictures, read_raw
from trainer.data.stripped import completed_copy, is_stripped
from trainer.errors import DataError
from worker.errors import FilmError
from worker.film import preprocess
from worker.film.prepare import prepare
from worker.film.prepared import Geometry
from worker.film.source import FilmSource

Steps = Sequence[Mapping[str, Any]]
FloatArray = npt.NDArray[np.float32]

#: First bytes of the picture formats that are read (PNG, JPEG, TIFF of both byte orders).
_PICTURES: tuple[bytes, ...] = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}


@dataclass(frozen=True)
class NetworkPicture:
    """What a network is shown, and how the film lies under it.

    ``plane`` is float32 (height, width): one channel, since all channels of a preprocessed film are equal.
    ``geometry`` holds the stored picture's rows and columns and whether it was turned.
    """

    plane: FloatArray
    geometry: Geometry


def is_dicom(path: Path) -> bool:
    """Whether a file is to be read as DICOM: it is not one of the picture formats.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    with path.open("rb") as stream:
        return not stream.read(8).startswith(_PICTURES)


def read_picture(path: Path, steps: Steps, raw: RawPictures | None = None) -> NetworkPicture:
    """Read one film and preprocess it; ``raw`` says how it is stored if it is a raw picture.

    Raises
    ------
    DataError
        The file is missing, unreadable, in colour, or neither a picture nor DICOM; the message has no file name,
        for the caller knows which film it is.
    """
    try:
        if raw is not None:
            film = read_raw(path, raw)
        elif is_dicom(path):
            return _dicom(path, steps)
        else:
            film = grey(path)
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror or type(error).__name__}") from None
    plane = preprocess.apply(steps, film, None)[0]
    return NetworkPicture(plane, Geometry(*film.shape))


def grey(path: Path) -> FloatArray:
    """A PNG, JPEG or TIFF as float32 (rows, columns) in 0-1: its values over the format's highest.

    Raises
    ------
    DataError
        As :func:`stored_grey`.
    OSError
        The file cannot be read.
    """
    stored = stored_grey(path)
    return np.asarray(stored, np.float32) / np.float32(_FULL_SCALE[stored.dtype])


def stored_grey(path: Path) -> npt.NDArray[Any]:
    """A picture's own values, uint8 or uint16 (rows, columns).

    Three equal channels are one grey one; anything else in colour is refused, since a palette's colours or a
    coloured overlay would pass for densities. A second or fourth channel (opacity) must be opaque.

    Raises
    ------
    DataError
        Damaged, in colour, partly transparent, or not of 8 or 16 bits.
    OSError
        The file cannot be read.
    """
    data = np.fromfile(path, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if picture is None:
        raise DataError("the picture is damaged or of an unknown kind")
    if picture.dtype not in _FULL_SCALE:
        raise DataError(f"the picture holds {picture.dtype} values, not 8 or 16 bit grey")
    if picture.ndim == 2:
        return picture
    channels = picture.shape[2]
    if channels in (2, 4):
        if int(picture[..., -1].min()) < int(_FULL_SCALE[picture.dtype]):
            raise DataError("the picture is partly transparent; save it as plain grey")
        picture = picture[..., :-1]
    if any(not np.array_equal(picture[..., 0], picture[..., i]) for i in range(1, picture.shape[2])):
        raise DataError("the picture is in colour (or has a palette); save it as plain grey")
    return np.ascontiguousarray(picture[..., 0])


def _dicom(path: Path, steps: Steps) -> NetworkPicture:
    try:
        try:
            prepared = prepare(FilmSource(path), {"network": steps})
        except FilmError as error:
            if not is_stripped(error):
                raise
            with completed_copy(path) as copy:
                prepared = prepare(FilmSource(copy), {"network": steps})
    except FilmError as error:
        raise DataError(str(error).rstrip(".")) from None
    return NetworkPicture(prepared.tensors["network"][0], prepared.geometry)
