"""Phantoms as DX For Presentation objects (PS3.3 A.26), in every transfer syntax the reader knows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import date, timedelta
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from worker.phantom.anatomy import DAYS_PER_YEAR
from worker.phantom.phantom import Phantom

STUDY_DATE = date(2025, 3, 3)
_IMPLEMENTATION = "2.25.329800735698586629295641978511506172918"
_PADDING = 0  # stored value of padding; the picture keeps clear of it
_JPEG_QUALITY = 92

Stored = npt.NDArray[np.unsignedinteger[Any]]


def _rle(stored: Stored, bits: int) -> bytes:
    """PS3.5 annex G: one PackBits segment per byte, most significant first."""
    planes = [(stored >> shift).astype(np.uint8) for shift in range(8 * stored.itemsize - 8, -1, -8)]
    segments = [b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in plane) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    offsets = np.zeros(16, "<u4")
    offsets[0] = len(segments)
    offsets[1 : 1 + len(segments)] = 64 + np.cumsum([0, *map(len, segments[:-1])])
    return offsets.tobytes() + b"".join(segments)


def _baseline(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(stored, level=_JPEG_QUALITY))


def _jpeg_lossless(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(stored, lossless=True, predictor=1, bitspersample=bits))


def _jpeg_ls(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(stored))


def _jpeg_2000(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k", reversible=True, bitspersample=bits))


def _htj2k(stored: Stored, bits: int) -> bytes:
    return bytes(imagecodecs.htj2k_encode(stored, reversible=True))


#: Transfer syntax UID → one frame's codestream from stored values and bits stored.
ENCODERS: dict[str, Callable[[Stored, int], bytes]] = {
    RLELossless: _rle,
    JPEGBaseline8Bit: _baseline,
    JPEGLosslessSV1: _jpeg_lossless,
    JPEGLSLossless: _jpeg_ls,
    JPEG2000Lossless: _jpeg_2000,
    HTJ2KLossless: _htj2k,
}


def phantom_uid(*parts: object) -> str:
    """A UID that depends on ``parts`` only: ``2.25.`` and 128 bits of their hash (PS3.5 B.2)."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big') | 1 << 127}"


def phantom_dataset(
    phantom: Phantom,
    *,
    photometric: str = "MONOCHROME2",
    bits_stored: int = 12,
    transfer_syntax: str = ExplicitVRLittleEndian,
    high_bit: int | None = None,
    mirrored: bool = False,
    padding: int = 0,
    body_part: str = "CHEST",
    view: str = "AP",
    sop_instance_uid: str | None = None,
) -> FileDataset:
    """Wrap a phantom as a complete DX object of an invented patient.

    Parameters
    ----------
    phantom
        The picture; its seed makes PatientID ``PHANTOM-<seed>`` and all UIDs.
    photometric
        ``MONOCHROME2`` or ``MONOCHROME1``; the latter stores the values inverted.
    bits_stored
        8 to 16; JPEG baseline needs 8.
    transfer_syntax
        An uncompressed transfer syntax or a key of :data:`ENCODERS`.
    high_bit
        Where the most significant stored bit lies, ``bits_stored - 1`` when None; native
        transfer syntaxes only.
    mirrored
        Store the picture mirrored and say so (PatientOrientation ``R\\F``).
    padding
        Width in pixels of a border of padding value (PixelPaddingValue) around the picture.
    body_part, view
        BodyPartExamined and ViewPosition.
    sop_instance_uid
        Instead of the one the seed gives.

    Raises
    ------
    ValueError
        The combination cannot be stored.
    """
    highest = bits_stored - 1 if high_bit is None else high_bit
    _refuse_impossible(photometric, bits_stored, highest, transfer_syntax)
    stored = _stored(phantom, photometric, bits_stored, mirrored, padding)
    stored = np.left_shift(stored, highest + 1 - bits_stored, dtype=stored.dtype)
    dataset = _header(phantom, transfer_syntax, sop_instance_uid)
    _describe_view(dataset, body_part, view, mirrored)
    _describe_pixels(dataset, stored, photometric, bits_stored, highest, padded=padding > 0)
    millimetres = (210.0 + 160.0 * min(phantom.age_days / DAYS_PER_YEAR / 18.0, 1.0)) / stored.shape[1]
    dataset.ImagerPixelSpacing = [f"{millimetres:.5f}"] * 2
    if transfer_syntax in ENCODERS:
        dataset.PixelData = encapsulate([ENCODERS[transfer_syntax](stored, bits_stored)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        wire = stored.dtype.newbyteorder(">" if transfer_syntax == ExplicitVRBigEndian else "<")
        data = stored.astype(wire).tobytes()
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        # As OW, single bytes would be swapped in pairs by a big endian reader.
        dataset["PixelData"].VR = "OB" if stored.itemsize == 1 else "OW"
    return dataset


def dicom_bytes(dataset: FileDataset) -> bytes:
    """The object as a DICOM file's bytes."""
    stream = BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _refuse_impossible(photometric: str, bits_stored: int, high_bit: int, transfer_syntax: str) -> None:
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"photometric must be MONOCHROME1 or MONOCHROME2, not {photometric}")
    if not 8 <= bits_stored <= 16:
        raise ValueError(f"bits_stored must lie between 8 and 16, not {bits_stored}")
    if not bits_stored - 1 <= high_bit <= (7 if bits_stored == 8 else 15):
        raise ValueError(f"high_bit {high_bit} does not suit {bits_stored} bits stored")
    if transfer_syntax == JPEGBaseline8Bit and bits_stored != 8:
        raise ValueError("JPEG baseline holds 8 bits: pass bits_stored=8")
    if transfer_syntax in ENCODERS and high_bit != bits_stored - 1:
        raise ValueError("high_bit can be moved in native transfer syntaxes only")


def _stored(phantom: Phantom, photometric: str, bits: int, mirrored: bool, padding: int) -> Stored:
    top = (1 << bits) - 1
    values = np.rint(phantom.image.astype(np.float64) * (top - 1)).astype(np.uint16) + 1
    if photometric == "MONOCHROME1":
        values = (top + 1 - values).astype(np.uint16)
    if mirrored:
        values = values[:, ::-1]
    if padding:
        values = np.pad(values, padding, constant_values=_PADDING)
    return np.ascontiguousarray(values, np.uint8 if bits == 8 else np.uint16)


def _header(phantom: Phantom, transfer_syntax: str, sop_instance_uid: str | None) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = sop_instance_uid or phantom_uid("instance", phantom.seed)
    meta.TransferSyntaxUID = transfer_syntax
    meta.ImplementationClassUID = _IMPLEMENTATION
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    syntax = UID(transfer_syntax)
    dataset.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = phantom_uid("study", phantom.seed)
    dataset.SeriesInstanceUID = phantom_uid("series", phantom.seed)
    dataset.PatientName = f"Phantom^{phantom.seed}"
    dataset.PatientID = f"PHANTOM-{phantom.seed}"
    dataset.PatientBirthDate = (STUDY_DATE - timedelta(days=phantom.age_days)).strftime("%Y%m%d")
    dataset.PatientSex = phantom.sex
    dataset.PatientAge = _age_string(phantom.age_days)
    for stem in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{stem}Date", STUDY_DATE.strftime("%Y%m%d"))
        setattr(dataset, f"{stem}Time", "080000")
    dataset.AccessionNumber = f"P{phantom.seed % 10**12}"
    dataset.StudyID = "1"
    dataset.StudyDescription = "Synthetic radiograph, no patient"
    dataset.ReferringPhysicianName = ""
    dataset.Modality = "DX"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Manufacturer = "Carina"
    dataset.ManufacturerModelName = "Phantom"
    dataset.StationName = "PHANTOM"
    dataset.DetectorType = "SCINTILLATOR"
    dataset.AcquisitionContextSequence = Sequence()
    return dataset


def _age_string(days: int) -> str:
    """PS3.5 6.2, AS: the finest unit people use at this age."""
    if days < 60:
        return f"{days:03d}D"
    if days < 2 * DAYS_PER_YEAR:
        return f"{int(days / 30.44):03d}M"
    return f"{int(days / DAYS_PER_YEAR):03d}Y"


def _code(value: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return Sequence([item])


_REGION_CODES = {"CHEST": ("51185008", "Chest"), "LEG": ("30021000", "Lower leg")}
_VIEW_CODES = {
    "AP": ("399348003", "antero-posterior"),
    "PA": ("272479007", "postero-anterior"),
    "LL": ("399173006", "left lateral"),
}


def _describe_view(dataset: Dataset, body_part: str, view: str, mirrored: bool) -> None:
    dataset.BodyPartExamined = body_part
    dataset.ViewPosition = view
    rows_towards = "PA" if view == "LL" else "RL"
    dataset.PatientOrientation = [rows_towards[0] if mirrored else rows_towards[1], "F"]
    dataset.ImageLaterality = "U"
    if body_part in _REGION_CODES:
        dataset.AnatomicRegionSequence = _code(*_REGION_CODES[body_part])
    if view in _VIEW_CODES:
        dataset.ViewCodeSequence = _code(*_VIEW_CODES[view])


def _describe_pixels(
    dataset: Dataset, stored: Stored, photometric: str, bits: int, high_bit: int, *, padded: bool
) -> None:
    inverted = photometric == "MONOCHROME1"
    values: dict[str, Any] = {
        "ImageType": ["DERIVED", "PRIMARY"],
        "DerivationDescription": "Drawn by a program",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": photometric,
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 8 * stored.itemsize,
        "BitsStored": bits,
        "HighBit": high_bit,
        "PixelRepresentation": 0,
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": 1 if inverted else -1,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "RescaleType": "US",
        "WindowCenter": str(1 << (bits - 1)),
        "WindowWidth": str(1 << bits),
        "PresentationLUTShape": "INVERSE" if inverted else "IDENTITY",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
    }
    if padded:
        values["PixelPaddingValue"] = _PADDING
    if dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:
        values["LossyImageCompression"] = "01"
        values["LossyImageCompressionRatio"] = "10"
        values["LossyImageCompressionMethod"] = "ISO_10918_1"
    for name, value in values.items():
        setattr(dataset, name, value)
