"""Folders of phantom films: the demo night with its hazards, and many small films for load tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from worker.phantom.dicom import dicom_bytes, phantom_dataset, phantom_uid
from worker.phantom.phantom import Phantom, make_phantom

_ROWS, _COLUMNS = 1000, 900
_YEAR = 365.25
_FAST_SIZE = 96
_FAST_SHAPES = 8


@dataclass(frozen=True)
class DemoFilm:
    """One film of the demo: its file name, age in years, illness, and how it is stored."""

    name: str
    years: float
    pneumonia: bool = False
    kind: str | None = None
    stored: dict[str, Any] = field(default_factory=dict)


#: Every transfer syntax, both polarities, newborn to grown-up, and headers that lead astray.
DEMO_FILMS: tuple[DemoFilm, ...] = (
    DemoFilm("01-explicit", 3, stored={"transfer_syntax": ExplicitVRLittleEndian}),
    DemoFilm("02-implicit", 0.1, stored={"transfer_syntax": ImplicitVRLittleEndian}),
    DemoFilm("03-big-endian", 1.5, True, stored={"transfer_syntax": ExplicitVRBigEndian}),
    DemoFilm("04-deflated", 5, stored={"transfer_syntax": DeflatedExplicitVRLittleEndian}),
    DemoFilm("05-rle", 2, True, stored={"transfer_syntax": RLELossless}),
    DemoFilm("06-jpeg-lossless", 8, stored={"transfer_syntax": JPEGLosslessSV1, "bits_stored": 14}),
    DemoFilm("07-jpeg-ls", 0.5, True, stored={"transfer_syntax": JPEGLSLossless}),
    DemoFilm("08-jpeg-2000", 4, stored={"transfer_syntax": JPEG2000Lossless}),
    DemoFilm("09-htj2k", 11, True, stored={"transfer_syntax": HTJ2KLossless}),
    DemoFilm("10-jpeg-baseline", 6, stored={"transfer_syntax": JPEGBaseline8Bit, "bits_stored": 8}),
    DemoFilm("11-monochrome1", 2.5, True, stored={"photometric": "MONOCHROME1"}),
    DemoFilm("12-monochrome1-jpeg-ls", 1, stored={"photometric": "MONOCHROME1", "transfer_syntax": JPEGLSLossless}),
    DemoFilm("13-mirrored", 3.5, True, stored={"mirrored": True}),
    DemoFilm("14-padded", 7, stored={"padding": 60}),
    DemoFilm("15-high-bit-15", 1.2, stored={"high_bit": 15}),
    DemoFilm("16-ten-bits-pa", 15, stored={"bits_stored": 10, "view": "PA"}),
    DemoFilm("17-eight-bits", 0.02, True, stored={"bits_stored": 8}),
    DemoFilm("18-sixteen-bits", 9, stored={"bits_stored": 16, "transfer_syntax": JPEGLosslessSV1}),
)
_LATERAL = DemoFilm("22-lateral", 4, kind="lateral", stored={"view": "LL"})
_LIMB = DemoFilm("23-leg", 10, kind="limb", stored={"body_part": "LEG"})


def write_demo_set(directory: Path, seed: int = 2024) -> list[Path]:
    """Write the demo night: 24 DICOM files of about 1000 x 900 pixels, in name order.

    Eighteen are ordinary chests in many encodings; then an exact duplicate, another picture
    under a known SOP Instance UID, a known picture under another UID, a lateral view, a leg and
    a film whose pixel data ends early.
    """
    directory.mkdir(parents=True, exist_ok=True)
    phantoms = [_draw(film, seed + index) for index, film in enumerate(DEMO_FILMS)]
    files = {
        film.name: dicom_bytes(phantom_dataset(phantom, **film.stored))
        for film, phantom in zip(DEMO_FILMS, phantoms, strict=True)
    }
    files["19-duplicate-of-01"] = files["01-explicit"]
    other = _draw(DemoFilm("", 2), seed + 100)
    claimed = phantom_uid("instance", phantoms[1].seed)
    files["20-conflict-with-02"] = dicom_bytes(phantom_dataset(other, sop_instance_uid=claimed))
    alias = {**DEMO_FILMS[2].stored, "sop_instance_uid": phantom_uid("alias", phantoms[2].seed)}
    files["21-alias-of-03"] = dicom_bytes(phantom_dataset(phantoms[2], **alias))
    for offset, film in enumerate((_LATERAL, _LIMB)):
        files[film.name] = dicom_bytes(phantom_dataset(_draw(film, seed + 200 + offset), **film.stored))
    whole = dicom_bytes(phantom_dataset(_draw(DemoFilm("", 3), seed + 300)))
    files["24-truncated"] = whole[: round(0.6 * len(whole))]
    paths = []
    for name, content in files.items():
        path = directory / f"{name}.dcm"
        path.write_bytes(content)
        paths.append(path)
    return sorted(paths)


def _draw(film: DemoFilm, seed: int) -> Phantom:
    return make_phantom(
        seed,
        rows=_ROWS,
        columns=_COLUMNS,
        age_days=round(film.years * _YEAR) + 2,
        pneumonia=film.pneumonia,
        negative=film.kind is not None,
        kind=film.kind,
        randomise=0.3,
    )


def write_fast_set(directory: Path, count: int, seed: int = 1) -> list[Path]:
    """Write ``count`` valid films of 96 x 96 pixels, each of its own patient and content.

    Eight chests are drawn; the films differ from them in identifiers and in the lowest bits of
    the pixels, so that thousands take seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    makers = [_fast_maker(seed * _FAST_SHAPES + shape) for shape in range(min(count, _FAST_SHAPES))]
    paths = []
    for index in range(count):
        path = directory / f"film-{index:07d}.dcm"
        path.write_bytes(makers[index % _FAST_SHAPES](f"{seed}.{index}"))
        paths.append(path)
    return paths


def _fast_maker(seed: int) -> Callable[[str], bytes]:
    """A function from a film's name to its bytes; all identifiers of the template have fixed length."""
    phantom = make_phantom(seed, rows=_FAST_SIZE, columns=_FAST_SIZE, randomise=0.3)
    dataset = phantom_dataset(phantom)
    dataset.PatientID = "PHANTOM-" + 16 * "#"
    kinds = ("instance", "study", "series")
    template = {kind: phantom_uid("template", kind) for kind in kinds}
    width = max(len(uid) for uid in template.values())
    template = {kind: uid.ljust(width, "9")[:width] for kind, uid in template.items()}
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = template["instance"]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = template["study"], template["series"]
    content = dicom_bytes(dataset)
    size = len(dataset.PixelData)
    head, pixels = content[:-size], np.frombuffer(content[-size:], "<u2")

    def make(name: str) -> bytes:
        header = head
        for kind, placeholder in template.items():
            header = header.replace(placeholder.encode(), _fixed_uid(width, kind, name))
        header = header.replace(16 * b"#", f"{name:0>16}"[-16:].encode())
        noise = np.random.Generator(np.random.PCG64(int(phantom_uid(name)[5:]))).integers(0, 4, pixels.size, np.uint16)
        return header + np.minimum(pixels + noise, 4095).astype("<u2").tobytes()

    return make


def _fixed_uid(width: int, *parts: object) -> bytes:
    """A UID of exactly ``width`` characters, 42 to 44."""
    digits = phantom_uid(*parts)[5:].ljust(width - 5, "0")
    return f"2.25.{digits[: width - 5]}".encode()
