"""What may befall a film before a network sees it, as a table.

Each row changes the film at its own size, picture and truth together, and says how the result is stored
as a DX object, so that polarity, bit depth, window, orientation and JPEG are undone by the worker's own reader.
Everything is fixed: the same film and row give the same bytes.

A film whose stored picture is mirrored comes in two rows. Where the header says so (PatientOrientation, PS3.3
C.7.6.1.1.1) the reader turns it back and nothing may change. Where it does not, nobody can tell left from right:
a network names the sides by their place, so left and right come out swapped, and only the union of the lungs
is compared with the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from trainer.evaluation.whole_films import WholeFilm
from worker.phantom import Phantom
from worker.phantom.dicom import dicom_bytes, phantom_dataset

Points = npt.NDArray[np.float64]

_FRACTION_BITS = 4  # OpenCV draws with 1/16 pixel precision


@dataclass(frozen=True)
class Storage:
    """How a film is stored as a DX object.

    Attributes
    ----------
    photometric
        ``MONOCHROME2``, or ``MONOCHROME1`` with the values inverted.
    bits_stored
        8 to 16; 8 with ``jpeg_quality``.
    jpeg_quality
        1-100 for JPEG Baseline; None for uncompressed.
    window
        Width of the header's window, as a share of the range of stored values, about its middle.
    mirrored
        Stored mirrored, with a PatientOrientation that says so.
    """

    photometric: str = "MONOCHROME2"
    bits_stored: int = 12
    jpeg_quality: int | None = None
    window: float = 1.0
    mirrored: bool = False


def _unchanged(film: WholeFilm) -> WholeFilm:
    return film


@dataclass(frozen=True)
class Perturbation:
    """A row of the stress table; ``sides_told`` is false where nobody could tell left from right."""

    name: str
    title: str
    imitates: str
    change: Callable[[WholeFilm], WholeFilm] = _unchanged
    storage: Storage = Storage()
    sides_told: bool = True


def rotated(film: WholeFilm, degrees: float) -> WholeFilm:
    """Turned about the film's centre, counter-clockwise as seen; what comes from outside is black background."""
    rows, columns = film.picture.shape
    return _moved(film, cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), degrees, 1.0))


def shifted(film: WholeFilm, right: float = 0.0, down: float = 0.0) -> WholeFilm:
    """Moved by a share of its width and height; what leaves the film is lost for picture and truth."""
    rows, columns = film.picture.shape
    return _moved(film, np.array([[1.0, 0.0, right * columns], [0.0, 1.0, down * rows]]))


def mirrored(film: WholeFilm) -> WholeFilm:
    """Left and right exchanged in the picture; the truth keeps its names, so they lie on the other side."""
    labels = None if film.labels is None else np.ascontiguousarray(film.labels[:, ::-1])
    return WholeFilm(np.ascontiguousarray(film.picture[:, ::-1]), labels)


def resized(film: WholeFilm, factor: float) -> WholeFilm:
    """Sampled anew at ``factor`` times the resolution: area means when smaller, bilinear when larger."""
    rows, columns = film.picture.shape
    size = (max(32, round(columns * factor)), max(32, round(rows * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    labels = film.labels
    if labels is not None:
        labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    return WholeFilm(np.asarray(cv2.resize(film.picture, size, interpolation=how), np.float32), labels)


def bordered(film: WholeFilm, share: float) -> WholeFilm:
    """With a black border of a share of width and height on every side; the film grows."""
    rows, columns = film.picture.shape
    margin = ((round(share * rows),) * 2, (round(share * columns),) * 2)
    return WholeFilm(np.pad(film.picture, margin), None if film.labels is None else np.pad(film.labels, margin))


def with_tube(film: WholeFilm) -> WholeFilm:
    """An endotracheal tube from the upper edge down the midline, with its radiopaque line."""
    t = np.linspace(0.0, 1.0, 24)
    path = np.stack([0.505 + 0.02 * np.sin(2.0 * t), 0.40 * t], axis=1)
    picture = _laid(film.picture, path, width=0.022, density=0.10)
    return WholeFilm(_laid(picture, path + np.array([0.006, 0.0]), width=0.004, density=0.45), film.labels)


def with_lead(film: WholeFilm) -> WholeFilm:
    """Three ECG electrodes with their leads, which meet below the film's edge."""
    picture = film.picture
    t = np.linspace(0.0, 1.0, 24)[:, None]
    foot = np.array([0.62, 1.05])
    for electrode, bend in (((0.24, 0.24), (0.30, 0.75)), ((0.77, 0.22), (0.86, 0.70)), ((0.74, 0.68), (0.60, 0.80))):
        start, middle = np.array(electrode), np.array(bend)
        path = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * foot
        picture = _laid(picture, path, width=0.004, density=0.35)
        picture = _laid(picture, start[None], width=0.035, density=0.35)
    return WholeFilm(picture, film.labels)


#: The film as it came, stored like all others: what every row is compared with.
AS_IT_IS = Perturbation("as_it_is", "as it is", "the film itself, stored with 12 bits")

#: The stress table's rows. Geometry is of the size that badly positioned children have; a film that
#: is more askew would be taken again.
PERTURBATIONS: tuple[Perturbation, ...] = (
    Perturbation("rotated_left", "turned 15° left", "a child that lies askew", partial(rotated, degrees=15.0)),
    Perturbation("rotated_right", "turned 15° right", "a child that lies askew", partial(rotated, degrees=-15.0)),
    Perturbation("shifted_right", "shifted 10 % right", "a child beside the centre", partial(shifted, right=0.1)),
    Perturbation("shifted_down", "shifted 10 % down", "a detector placed too high", partial(shifted, down=0.1)),
    Perturbation(
        "mirrored", "mirrored, header says so", "a detector read from its back", storage=Storage(mirrored=True)
    ),
    Perturbation(
        "mirrored_untold", "mirrored, header silent", "the same, with a wrong header", mirrored, sides_told=False
    ),
    Perturbation(
        "window_narrow", "window of 70 %", "a hard window in the header", storage=Storage(window=0.7)
    ),
    Perturbation("window_wide", "window of 160 %", "a flat window in the header", storage=Storage(window=1.6)),
    Perturbation(
        "monochrome1", "MONOCHROME1", "the same film stored inverted", storage=Storage(photometric="MONOCHROME1")
    ),
    Perturbation("bits_8", "8 bits", "an archive that kept 8 of 12 bits", storage=Storage(bits_stored=8)),
    Perturbation(
        "jpeg_75", "JPEG quality 75", "an archive with lossy compression",
        storage=Storage(bits_stored=8, jpeg_quality=75),
    ),
    Perturbation("half_size", "half the resolution", "a coarse detector or a copy", partial(resized, factor=0.5)),
    Perturbation("double_size", "twice the resolution", "a finer detector", partial(resized, factor=2.0)),
    Perturbation("borders", "black borders of 10 %", "a collimated or padded film", partial(bordered, share=0.1)),
    Perturbation("tube", "endotracheal tube", "an intubated child", with_tube),
    Perturbation("ecg", "ECG leads", "a monitored child", with_lead),
)  # fmt: skip


def as_dicom(film: WholeFilm, storage: Storage, *, key: int, age_days: float | None) -> bytes:
    """The film as a DX object of an invented patient.

    Parameters
    ----------
    film
        Its picture.
    storage
        How it is stored.
    key
        Makes the UIDs: equal keys, equal UIDs.
    age_days
        Told in the header where known; else the header is silent about age. It never tells a pixel spacing.
    """
    empty = np.zeros((0, 0), np.float32)
    # An age must be given; it is taken out again below where none is known.
    days = 0 if age_days is None else int(age_days)
    stand_in = Phantom(film.picture, np.zeros((0, 0), np.uint8), empty, frozenset(), days, "O", key)
    dataset = phantom_dataset(
        stand_in, photometric=storage.photometric, bits_stored=storage.bits_stored, mirrored=storage.mirrored
    )
    del dataset.ImagerPixelSpacing
    if age_days is None:
        del dataset.PatientAge, dataset.PatientBirthDate
    dataset.WindowWidth = str(round(storage.window * (1 << storage.bits_stored)))
    if storage.jpeg_quality is not None:
        stored = dataset.pixel_array
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate([bytes(imagecodecs.jpeg8_encode(stored, level=storage.jpeg_quality))])
        dataset["PixelData"].is_undefined_length = True
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
    return dicom_bytes(dataset)


def _moved(film: WholeFilm, matrix: npt.NDArray[Any]) -> WholeFilm:
    """Picture and truth through one affine matrix from old to new places."""
    size = film.picture.shape[::-1]
    picture = cv2.warpAffine(film.picture, matrix, size, flags=cv2.INTER_LINEAR)
    labels = film.labels
    if labels is not None:
        labels = np.asarray(cv2.warpAffine(labels, matrix, size, flags=cv2.INTER_NEAREST), np.uint8)
    return WholeFilm(np.asarray(picture, np.float32), labels)


def _laid(picture: npt.NDArray[np.float32], path: Points, *, width: float, density: float) -> npt.NDArray[np.float32]:
    """A line, or a disc where ``path`` is one point, laid on the film.

    ``path`` (points, 2) holds x and y as shares of width and height, ``width`` is a share of the longer side,
    ``density`` how much brighter the film becomes under it.
    """
    rows, columns = picture.shape
    layer = np.zeros(picture.shape, np.uint8)
    points = np.round(path * (columns, rows) * (1 << _FRACTION_BITS)).astype(np.int32)
    thickness = max(1, round(width * max(rows, columns)))
    if len(points) == 1:
        radius = round(width * max(rows, columns) / 2 * (1 << _FRACTION_BITS))
        cv2.circle(layer, points[0].tolist(), radius, 255, -1, cv2.LINE_AA, _FRACTION_BITS)
    else:
        cv2.polylines(layer, [points], False, 255, thickness, cv2.LINE_AA, _FRACTION_BITS)
    return np.asarray(np.clip(picture + layer * np.float32(density / 255), 0, 1), np.float32)
