"""Can this object be a radiograph at all?

The header is asked only for what it cannot get wrong: the SOP class of an object that is no
projection radiograph, more than one frame, colour, raw detector data. A wrong view position,
body part or modality is common, so these go on: after segmentation the picture decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from worker.film.reader import FilmHeader

_STANDARD = "1.2.840.10008."
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_SECONDARY_CAPTURE = _STORAGE + "7"
_FOR_PROCESSING = frozenset({_STORAGE + "1.1.1", _STORAGE + "1.2.1", _STORAGE + "1.3.1"})

#: SOP classes (PS3.4 table B.5-1) that cannot be a chest radiograph: the UID below the storage
#: root, with everything under it → what it is.
OTHER_OBJECTS: dict[str, str] = {
    "1.2": "mammography",
    "1.3": "intra-oral radiography",
    "2": "CT",
    "3": "ultrasound",
    "4": "MR",
    "5": "nuclear medicine",
    "6": "ultrasound",
    "8": "overlay",
    "9": "waveform or curve",
    "10": "lookup table",
    "11": "presentation state",
    "12.1": "X-ray angiography",
    "12.3": "X-ray angiography",
    "12.77": "a retired object",
    "13.1": "X-ray tomosynthesis or volume",
    "14": "intravascular tomography",
    "20": "nuclear medicine",
    "30": "parametric map",
    "40": "MR",
    "66": "raw data, registration or segmentation",
    "67": "real world value mapping",
    "68": "surface scan",
    "77": "visible light or ophthalmic image",
    "78": "ophthalmic measurement",
    "79": "ophthalmic report",
    "80": "ophthalmic map",
    "81": "ophthalmic map",
    "82": "ophthalmic map",
    "88": "structured report",
    "90": "content assessment",
    "91": "microscopy annotation",
    "104": "encapsulated document",
    "128": "PET",
    "129": "PET curve",
    "130": "PET",
    "131": "structured display",
    "200": "protocol",
    "201": "inventory",
    "481": "radiotherapy",
    "501": "security screening",
    "601": "non-destructive testing",
}


class Refusal(NamedTuple):
    """Why an object is ineligible: a code of :data:`worker.errors.CODES`, and words for a person."""

    code: str
    detail: str


def refusal(header: FilmHeader) -> Refusal | None:
    """Why ``header`` cannot be that of a chest radiograph; None for everything that may be one."""
    for rule in RULES:
        found = rule(header)
        if found is not None:
            return found
    return None


def other_object(sop_class_uid: str) -> str | None:
    """What the object is instead of a radiograph, or None: also for private and unknown classes."""
    if not sop_class_uid.startswith(_STANDARD):
        return None
    if not sop_class_uid.startswith(_STORAGE):
        return "not an image"
    parts = sop_class_uid.removeprefix(_STORAGE).split(".")
    return OTHER_OBJECTS.get(parts[0]) or OTHER_OBJECTS.get(".".join(parts[:2]))


def is_secondary_capture(sop_class_uid: str) -> bool:
    """Whether the object is a secondary capture: a picture of anything, in grey or in R=G=B."""
    return sop_class_uid == _SECONDARY_CAPTURE or sop_class_uid.startswith(_SECONDARY_CAPTURE + ".")


def _raw_data(header: FilmHeader) -> Refusal | None:
    if header.presentation_intent == "FOR PROCESSING" or header.sop_class_uid in _FOR_PROCESSING:
        return Refusal("FOR_PROCESSING", "")
    return None


def _wrong_class(header: FilmHeader) -> Refusal | None:
    what = other_object(header.sop_class_uid)
    return Refusal("NOT_A_RADIOGRAPH", what) if what else None


def _many_frames(header: FilmHeader) -> Refusal | None:
    if header.number_of_frames > 1:
        return Refusal("MULTI_FRAME", f"{header.number_of_frames} frames")
    return None


def _coloured(header: FilmHeader) -> Refusal | None:
    photometric = header.photometric_interpretation
    if header.samples_per_pixel < 3 or not photometric.startswith(("RGB", "YBR")):
        return None
    # A film captured from a screen is often stored as R=G=B: only its pixels tell.
    return None if is_secondary_capture(header.sop_class_uid) else Refusal("COLOUR", photometric)


#: Asked in this order; the first refusal counts.
RULES: tuple[Callable[[FilmHeader], Refusal | None], ...] = (_wrong_class, _raw_data, _many_frames, _coloured)
