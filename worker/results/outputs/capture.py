"""Pictures for viewers that show neither segmentations nor reports: Secondary Capture (PS3.3 A.8.1).

The film is shown as the networks saw it, the patient's right at the picture's left, with what it says burnt
in below the picture, never on it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from schema.codes import SOURCE_IMAGE
from schema.findings import Finding, title
from schema.outputs import OutputKind
from worker import __version__
from worker.results.outputs.coding import item_of
from worker.results.outputs.equipment import EQUIPMENT, SERIES, STATEMENT
from worker.results.outputs.identifiers import ResultIdentifiers
from worker.results.outputs.source import Source
from worker.results.outputs.stored import StoredResult
from worker.results.overlay import draw_heatmap, draw_regions, labels_on

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

#: Longest side of the shown film in pixels.
LONGEST_SIDE = 1024
_WHITE: Colour = (235, 235, 235)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LINE_PIXELS = 22
_FONT_SCALE = 0.5
_CHARACTER_PIXELS = 10
_SMALLEST_WIDTH = 320


def build_overlay(
    result: StoredResult, source: Source, identifiers: ResultIdentifiers, picture: Picture
) -> list[Dataset]:
    """The film with its regions: one object, none for a result without a segmentation."""
    if result.labels is None:
        return []
    drawn = draw_regions(picture, labels_on(picture.shape, result.labels), result.foreground)
    lines: list[tuple[str, Colour]] = [(_caption(result), _WHITE), (STATEMENT, _WHITE)]
    lines += [(region.title, region.colour) for region in result.foreground]
    return [_capture(OutputKind.OVERLAY, _with_text(drawn, lines), result, source, identifiers)]


def build_heatmaps(
    result: StoredResult, source: Source, identifiers: ResultIdentifiers, picture: Picture
) -> list[Dataset]:
    """The film with each finding's class activation map: one object per finding but "no finding"."""
    if result.heatmap is None:
        return []
    scores = {score.finding: score for score in result.scores}
    objects: list[Dataset] = []
    for finding, activation in zip(result.heatmap.findings, result.heatmap.maps, strict=True):
        if finding == Finding.NO_FINDING:
            continue
        words = f"{title(finding)}: where the classifier looked"
        if (score := scores.get(finding)) is not None:
            words += f", probability {score.probability:.0%}, threshold {score.threshold:.0%}"
        lines = [(words, _WHITE), (_caption(result), _WHITE), (STATEMENT, _WHITE)]
        shown = _with_text(draw_heatmap(picture, activation), lines)
        number = len(objects) + 1
        objects.append(_capture(OutputKind.HEATMAP, shown, result, source, identifiers, part=finding, number=number))
    return objects


def _caption(result: StoredResult) -> str:
    return f"Carina {__version__}, bundle {result.bundle} {result.bundle_version}"


def _with_text(picture: Picture, lines: Sequence[tuple[str, Colour]]) -> Picture:
    """The picture with a black strip below it, in which each line stands in its colour."""
    columns = max(picture.shape[1], _SMALLEST_WIDTH)
    side = columns - picture.shape[1]
    shown = cv2.copyMakeBorder(picture, 0, 0, side // 2, side - side // 2, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    width = (columns - 16) // _CHARACTER_PIXELS
    # The font has no other letters.
    plain = [(words.encode("ascii", "replace").decode("ascii"), colour) for words, colour in lines]
    wrapped = [(part, colour) for words, colour in plain for part in textwrap.wrap(words, width)]
    strip = np.zeros((len(wrapped) * _LINE_PIXELS + 10, columns, 3), np.uint8)
    for place, (words, colour) in enumerate(wrapped, start=1):
        cv2.putText(strip, words, (8, place * _LINE_PIXELS), _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)
    return np.ascontiguousarray(np.vstack([shown, strip]), np.uint8)


def _capture(
    kind: OutputKind,
    picture: Picture,
    result: StoredResult,
    source: Source,
    identifiers: ResultIdentifiers,
    *,
    part: str = "",
    number: int = 1,
) -> Dataset:
    from highdicom.sc import SCImage

    series_number, description = SERIES[kind]
    dataset: Any = SCImage.from_ref_dataset(
        source.reference(result.geometry),
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        series_instance_uid=identifiers.series(kind),
        series_number=series_number,
        series_description=description,
        sop_instance_uid=identifiers.instance(kind, part),
        instance_number=number,
        device_serial_number=__version__,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **EQUIPMENT,
    )
    dataset.PatientOrientation = list(source.shown_orientation(result.geometry))
    dataset.BodyPartExamined = "CHEST"
    dataset.BurnedInAnnotation = "YES"
    dataset.RecognizableVisualFeatures = "NO"
    dataset.DerivationDescription = "Film reduced to 8 bits with results drawn on it; research use"
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.sop_class_uid, source.sop_instance_uid
    image.PurposeOfReferenceCodeSequence = [item_of(SOURCE_IMAGE)]
    dataset.SourceImageSequence = [image]
    source.stamp(dataset)
    return dataset
