"""What the decoder child hands back for one film."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Geometry:
    """How a network's grid lies on the film.

    ``film_rows`` and ``film_columns`` are the stored picture's size in pixels.
    ``flip_columns``/``flip_rows`` say whether the stored picture was mirrored to bring
    the patient's right to the image's left before the network saw it.
    ``row_spacing``/``column_spacing`` are millimetres at the stored size, or None where the
    header gives none that can be trusted; ``spacing_source`` is one of ``"corrected"``,
    ``"uncalibrated"``, ``"undeterminable"``, ``"detector"``, ``"none"``
    (PS3.3 10.7.1.1).
    """

    film_rows: int
    film_columns: int
    flip_columns: bool = False
    flip_rows: bool = False
    row_spacing: float | None = None
    column_spacing: float | None = None
    spacing_source: str = "none"


@dataclass(frozen=True)
class Observation:
    """Something odd but survivable seen while reading; becomes a failure flag.

    ``rule`` is a flag rule's name (``"bad_rescale"``, ``"decode_damage_suspected"``, ...),
    ``value`` a number for the flag row, ``detail`` words for a person without identity.
    """

    rule: str
    value: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class FilmFacts:
    """Header facts that may leave the child: no names, no record numbers, no dates.

    ``age_days`` is the patient's age at the study in days (0-47,450) or None. ``grey_mean`` and
    ``grey_spread`` are mean and standard deviation of the stored values in the valid area, before any
    windowing, as shares of the range of BitsStored (0-1); None where they were not measured.
    """

    sop_class_uid: str
    transfer_syntax_uid: str
    photometric_interpretation: str
    modality: str
    body_part: str
    view_position: str
    bits_stored: int
    age_days: int | None
    voi_policy: str
    grey_mean: float | None = None
    grey_spread: float | None = None


@dataclass(frozen=True)
class PreparedFilm:
    """One film, ready for the engines.

    Attributes
    ----------
    tensors
        Member name → float32 array of shape (channels, height, width).
    geometry
        How the network's grid lies on the film.
    facts
        Header facts for eligibility and flags.
    file_hash
        SHA-256 of the file's bytes, hex.
    content_hash
        SHA-256 of the canonical content, hex: see :mod:`worker.film.content`.
    observations
        What becomes input flags.
    seconds
        Stage name → seconds spent in the child.
    """

    tensors: dict[str, FloatArray]
    geometry: Geometry
    facts: FilmFacts
    file_hash: str
    content_hash: str
    observations: list[Observation] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
