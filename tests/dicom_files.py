"""Tiny DICOM radiographs for tests: any transfer syntax, any attribute, any damage."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import UID, generate_uid

IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, RLE = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
)
JPEG, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, JPEG_LS_NEAR, J2K, J2K_LOSSY = (
    f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)
)
HTJ2K, HTJ2K_RPCL, HTJ2K_ANY = (f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203))

NATIVE_SYNTAXES = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
LOSSLESS_SYNTAXES = (RLE, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, J2K, HTJ2K, HTJ2K_RPCL)
LOSSY_SYNTAXES = (JPEG, JPEG_EXTENDED, JPEG_LS_NEAR, J2K_LOSSY, HTJ2K_ANY)
SYNTAXES = (*NATIVE_SYNTAXES, *LOSSLESS_SYNTAXES, *LOSSY_SYNTAXES)

DX_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.1"


def chest_pixels(rows: int = 120, columns: int = 100, bits: int = 12, seed: int = 0) -> np.ndarray:
    """Two dark lungs in a bright body with a dense marker at the upper left; MONOCHROME2, full range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns]
    y, x = y / rows, x / columns
    picture = 0.75 - 0.2 * np.abs(x - 0.5)
    for centre in (0.3, 0.7):
        picture -= 0.45 * np.exp(-((((x - centre) / 0.13) ** 2 + ((y - 0.5) / 0.25) ** 2) ** 2))
    picture += rng.normal(0, 0.01, picture.shape)
    picture[rows // 20 : rows // 8, columns // 20 : columns // 8] = 1.0
    picture[-rows // 10 :, -columns // 10 :] = 0.0
    dtype = np.uint8 if bits <= 8 else np.uint16
    return np.clip(np.rint(picture * ((1 << bits) - 1)), 0, (1 << bits) - 1).astype(dtype)


def make_dataset(pixels: np.ndarray, **attributes: Any) -> Dataset:
    """A digital chest radiograph in Explicit VR Little Endian with ``pixels``.

    ``attributes`` are DICOM keywords that are set at the end; None removes the element.
    ``pixels`` is uint8, uint16 or int16 of shape (rows, columns), or uint8 with a third axis.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    bits = 8 if pixels.dtype.itemsize == 1 else max(12, int(np.abs(pixels.astype(int)).max()).bit_length())
    if pixels.dtype.kind == "i":
        bits = 16
    defaults: dict[str, Any] = {
        "SOPClassUID": DX_FOR_PRESENTATION,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "StudyDate": "20240301",
        "StudyTime": "101500",
        "AccessionNumber": "A1",
        "Modality": "DX",
        "PresentationIntentType": "FOR PRESENTATION",
        "Manufacturer": "Maker",
        "StationName": "ROOM1",
        "PatientName": "Test^Film",
        "PatientID": "P1",
        "PatientBirthDate": "20200301",
        "PatientSex": "F",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "SamplesPerPixel": 1 if pixels.ndim == 2 else pixels.shape[2],
        "PhotometricInterpretation": "MONOCHROME2" if pixels.ndim == 2 else "RGB",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "WindowCenter": 1 << (bits - 1),
        "WindowWidth": 1 << bits,
    }
    if pixels.ndim == 3:
        defaults["PlanarConfiguration"] = 0
    if pixels.dtype.kind == "i":
        defaults["WindowCenter"] = 0
    for keyword, value in {**defaults, **attributes}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    data = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    return dataset


def encode(dataset: Dataset, transfer_syntax: str) -> Dataset:
    """A copy of a native little-endian data set in another transfer syntax."""
    copy = pydicom.dcmread(BytesIO(to_bytes(dataset)), force=True)
    copy.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    if transfer_syntax in NATIVE_SYNTAXES:
        if transfer_syntax == BIG_ENDIAN and dataset.BitsAllocated == 16:
            copy.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        return copy
    if transfer_syntax == RLE:
        copy.file_meta.TransferSyntaxUID = UID(EXPLICIT)
        copy.compress(UID(RLE), encoding_plugin="pydicom", generate_instance_uid=False)
        return copy
    set_frame(copy, encode_frame(pixels_of(dataset), int(dataset.BitsStored), transfer_syntax))
    return copy


def encode_frame(pixels: np.ndarray, bits: int, transfer_syntax: str) -> bytes:
    """One frame's codestream; the JPEG syntaxes take uint8 or uint16 of ``bits`` bits."""
    unsigned = pixels.view(f"u{pixels.dtype.itemsize}") if pixels.dtype.kind == "i" else pixels
    if transfer_syntax == JPEG:
        return imagecodecs.jpeg8_encode(unsigned, 90)
    if transfer_syntax == JPEG_EXTENDED:
        return imagecodecs.jpeg8_encode(unsigned, 90, bitspersample=12 if unsigned.dtype.itemsize == 2 else 8)
    if transfer_syntax in (JPEG_LOSSLESS, JPEG_LOSSLESS_SV1):
        predictor = 1 if transfer_syntax == JPEG_LOSSLESS_SV1 else 4
        return imagecodecs.jpeg8_encode(unsigned, lossless=True, predictor=predictor, bitspersample=bits)
    if transfer_syntax == JPEG_LS:
        return imagecodecs.jpegls_encode(unsigned)
    if transfer_syntax == JPEG_LS_NEAR:
        return imagecodecs.jpegls_encode(unsigned, level=2)
    if transfer_syntax == J2K:
        options = {} if pixels.dtype.kind == "i" else {"bitspersample": bits}
        return imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="J2K", **options)
    if transfer_syntax == J2K_LOSSY:
        return imagecodecs.jpeg2k_encode(pixels, level=55, reversible=False, codecformat="J2K", bitspersample=bits)
    if transfer_syntax in (HTJ2K, HTJ2K_RPCL):
        return imagecodecs.htj2k_encode(pixels, reversible=True)
    if transfer_syntax == HTJ2K_ANY:
        return imagecodecs.htj2k_encode(pixels, level=0.0005, reversible=False)
    raise ValueError(f"no encoder for {transfer_syntax}")


def set_frame(dataset: Dataset, frame: bytes) -> None:
    """Make ``frame`` the encapsulated pixel data."""
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def frame_of(dataset: Dataset) -> bytes:
    """The one encoded frame of an encapsulated data set, padding included."""
    return next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))


def pixels_of(dataset: Dataset) -> np.ndarray:
    """Pixels of a native little-endian data set as they are stored."""
    kind = "i" if dataset.PixelRepresentation else "u"
    dtype = np.dtype(f"<{kind}{dataset.BitsAllocated // 8}")
    shape = (dataset.Rows, dataset.Columns)
    if dataset.SamplesPerPixel > 1:
        shape += (dataset.SamplesPerPixel,)
    count = int(np.prod(shape))
    return np.frombuffer(dataset.PixelData, dtype, count).reshape(shape).astype(dtype.newbyteorder("="))


def to_bytes(dataset: Dataset, **raw: tuple[str, bytes]) -> bytes:
    """The file's bytes; ``raw`` gives keywords a VR and bytes pydicom would refuse to write.

    ``raw`` needs an explicit little-endian syntax and VRs with a 16 bit length.
    """
    for keyword, (_, value) in raw.items():
        dataset.add_new(Tag(keyword), "OB", value)
    stream = BytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(
        stream, dataset, enforce_file_format=True, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG_ENDIAN
    )
    data = stream.getvalue()
    for keyword, (vr, value) in raw.items():
        tag = Tag(keyword)
        place = struct.pack("<HH", tag.group, tag.element)
        # pydicom pads OB to an even length; here odd lengths are wanted.
        start = data.index(place + b"OB\0\0")
        (length,) = struct.unpack_from("<L", data, start + 8)
        end = start + 12 + length
        data = data[:start] + place + vr.encode() + struct.pack("<H", len(value)) + value + data[end:]
    return data


def save(dataset: Dataset, path: Path, **raw: tuple[str, bytes]) -> Path:
    """Write a data set to ``path`` (see :func:`to_bytes`) and return the path."""
    path.write_bytes(to_bytes(dataset, **raw))
    return path
