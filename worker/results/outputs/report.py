"""A result's numbers as Comprehensive SR, TID 1500 (PS3.3 A.35.2, PS3.16).

A measurement group per region (TID 1410: the segment, area, mean probability) and per finding (TID 1501:
probability in percent, present or absent at the bundle's threshold), the flags and the statement of use
as text. Groups of regions refer to the segmentation of the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from schema import codes
from schema.codes import Code
from schema.outputs import OutputKind
from worker import __version__
from worker.findings import flags as flag_rules
from worker.results.outputs.coding import concept
from worker.results.outputs.equipment import EQUIPMENT, MANUFACTURER, MODEL_NAME, SERIES, STATEMENT, engine_words
from worker.results.outputs.identifiers import ResultIdentifiers, keyed_uid
from worker.results.outputs.segmentation import segment_number
from worker.results.outputs.source import Source
from worker.results.outputs.stored import RegionMeasurement, StoredResult
from worker.results.result import FindingScore

KIND = OutputKind.REPORT


def build_report(
    result: StoredResult, source: Source, identifiers: ResultIdentifiers, segmentation: Dataset | None
) -> Dataset:
    """The report; ``segmentation`` is that of the same result, None where there is none."""
    from highdicom.sr import ComprehensiveSR, MeasurementReport

    reference = source.reference(result.geometry)
    groups = [_finding_group(score, result, source, identifiers) for score in result.scores]
    if segmentation is not None:
        known = {region.name for region in result.foreground}
        groups[:0] = [
            _region_group(item, result, identifiers, segmentation)
            for item in result.measurements
            if item.region in known
        ]
    document = MeasurementReport(
        observation_context=_observation_context(identifiers),
        procedure_reported=concept(codes.PLAIN_RADIOGRAPHY),
        imaging_measurements=groups,
    )
    texts = [(codes.FAILURE_FLAG, flag_rules.describe(flag)) for flag in result.flags]
    _add_texts(document, [*texts, (codes.INTENDED_USE, STATEMENT)])
    _drop_frame_numbers(document[0])
    number, description = SERIES[KIND]
    dataset = ComprehensiveSR(
        evidence=[reference, *([segmentation] if segmentation is not None else [])],
        content=document[0],
        series_instance_uid=identifiers.series(KIND),
        series_number=number,
        series_description=description,
        sop_instance_uid=identifiers.instance(KIND),
        instance_number=1,
        is_complete=True,
        device_serial_number=__version__,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **EQUIPMENT,
    )
    source.stamp(dataset)
    return dataset


def _observation_context(identifiers: ResultIdentifiers) -> Any:
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObservationContext, ObserverContext
    from pydicom.sr.codedict import codes as dictionary

    device = DeviceObserverIdentifyingAttributes(
        uid=keyed_uid(identifiers.site_key, "device"),
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=dictionary.DCM.Device, observer_identifying_attributes=device
        )
    )


def _region_group(
    item: RegionMeasurement, result: StoredResult, identifiers: ResultIdentifiers, segmentation: Dataset
) -> Any:
    from highdicom.sr import (
        FindingSite,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        ReferencedSegmentationFrame,
        TrackingIdentifier,
    )

    number = segment_number(result, item.region)
    code = codes.region_code(item.region)
    side = concept(code.laterality) if code.laterality else None
    measurements = [_measurement(codes.AREA_FRACTION, 100.0 * item.area_fraction, codes.PERCENT)]
    if item.area_mm2 is not None:
        measurements.append(_measurement(codes.AREA, item.area_mm2, codes.SQUARE_MILLIMETRE))
    if item.mean_probability is not None:
        measurements.append(_measurement(codes.MEAN_PROBABILITY, 100.0 * item.mean_probability, codes.PERCENT))
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=identifiers.inner(OutputKind.SEGMENTATION, item.region), identifier=item.region
        ),
        referenced_segment=ReferencedSegmentationFrame.from_segmentation(
            segmentation, frame_number=number, segment_number=number
        ),
        finding_type=concept(code.structure),
        finding_sites=[FindingSite(concept(code.structure), laterality=side)],
        algorithm_id=_algorithm(result),
        measurements=measurements,
    )


def _finding_group(score: FindingScore, result: StoredResult, source: Source, identifiers: ResultIdentifiers) -> Any:
    from highdicom.sr import (
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )

    presence = codes.PRESENT if score.positive else codes.ABSENT
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=identifiers.inner(KIND, f"finding {score.finding}"), identifier=score.finding
        ),
        finding_type=concept(codes.finding_code(score.finding)),
        algorithm_id=_algorithm(result),
        measurements=[
            _measurement(codes.CERTAINTY, 100.0 * score.probability, codes.PERCENT),
            _measurement(codes.DECISION_THRESHOLD, 100.0 * score.threshold, codes.PERCENT),
        ],
        qualitative_evaluations=[QualitativeEvaluation(concept(codes.PRESENCE), concept(presence))],
        source_images=[SourceImageForMeasurementGroup(source.sop_class_uid, source.sop_instance_uid)],
    )


def _measurement(name: Code, value: float, unit: Code) -> Any:
    from highdicom.sr import Measurement

    # DS holds 16 characters, and nothing here is known to more than six digits.
    return Measurement(name=concept(name), value=float(f"{value:.6g}"), unit=concept(unit))


def _algorithm(result: StoredResult) -> Any:
    from highdicom.sr import AlgorithmIdentification

    words = {**engine_words(result.engine), "revision": str(result.revision)}
    return AlgorithmIdentification(
        name=result.bundle,
        version=result.bundle_version,
        family=concept(codes.ARTIFICIAL_INTELLIGENCE),
        manufacturer=MANUFACTURER,
        parameters=[f"{name}={value}" for name, value in words.items()],
    )


def _add_texts(document: Sequence[Any], texts: Sequence[tuple[Code, str]]) -> None:
    from highdicom.sr import RelationshipTypeValues, TextContentItem

    for name, words in texts:
        document[0].ContentSequence.append(
            TextContentItem(concept(name), words, relationship_type=RelationshipTypeValues.CONTAINS)
        )


def _drop_frame_numbers(item: Dataset) -> None:
    """A reference names frames or segments, not both, and a film has no frames (PS3.3 table 10-3)."""
    if "ReferencedFrameNumber" in item:
        del item.ReferencedFrameNumber
    for element in item:
        if element.VR == "SQ":
            for child in element.value:
                _drop_frame_numbers(child)
