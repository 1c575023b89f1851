from __future__ import annotations

from io import BytesIO
from typing import Any

import pydicom
import pytest
from output_films import Site, without
from stored_films import result

from schema import tables
from schema.codes import ABSENT, PRESENCE, PRESENT
from schema.outputs import OutputKind

KIND = OutputKind.REPORT


def built(site: Site, job: int) -> tuple[Any, Any]:
    """The report as a receiver reads it, and the segmentation of the same result."""
    made = site.build(job, [KIND, OutputKind.SEGMENTATION])
    stream = BytesIO()
    made[KIND][0].save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return pydicom.dcmread(stream), (made[OutputKind.SEGMENTATION] or [None])[0]


def texts(dataset: Any, name: str) -> list[str]:
    return [
        str(item.TextValue)
        for item in dataset.ContentSequence
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeMeaning == name
    ]


def numbers(group: Any) -> dict[str, tuple[float, str]]:
    return {
        measurement.name.meaning: (measurement.value, measurement.unit.value)
        for measurement in group.get_measurements()
    }


def test_highdicom_reads_regions_and_findings_back(site: Site) -> None:
    from highdicom.sr import ComprehensiveSR

    job = site.film(stored=result(film=(120, 100), pneumonia=0.625))
    site.update(tables.region_measurement, job, area_mm2=1234.5)
    dataset, segmentation = built(site, job)
    content = ComprehensiveSR.from_dataset(dataset).content
    regions = {group.tracking_identifier: group for group in content.get_planar_roi_measurement_groups()}
    assert list(regions) == [
        "left_lung", "right_lung", "left_subdiaphragm", "right_subdiaphragm", "spine", "mediastinum", "carina",
    ]  # fmt: skip
    carina = regions["carina"]
    assert carina.finding_type.value == "28700002"
    assert carina.referenced_segmentation_frame.referenced_sop_instance_uid == segmentation.SOPInstanceUID
    (reference,) = carina.referenced_segmentation_frame[0].ReferencedSOPSequence
    assert reference.ReferencedSegmentNumber == 7
    assert numbers(carina)["Mean probability inside the region"] == (pytest.approx(90.0), "%")
    assert numbers(carina)["Area"] == (pytest.approx(1234.5), "mm2")
    assert numbers(carina)["Area as share of the film"][0] == pytest.approx(4.6875)
    site_of = regions["left_lung"].finding_sites[0]
    assert (site_of.value.value, site_of.laterality.meaning) == ("39607008", "Left")
    findings = {group.tracking_identifier: group for group in content.get_image_measurement_groups()}
    assert list(findings) == ["pneumonia", "no_finding"]
    pneumonia = findings["pneumonia"]
    assert pneumonia.finding_type.value == "233604007"
    assert numbers(pneumonia)["Certainty of Finding"] == (pytest.approx(62.5), "%")
    assert numbers(pneumonia)["Decision threshold"] == (pytest.approx(40.0), "%")
    said = {item.name.value: item.value.value for item in pneumonia.get_qualitative_evaluations()}
    assert said[PRESENCE.value] == PRESENT.value


def test_below_the_threshold_a_finding_is_absent(site: Site) -> None:
    dataset, _ = built(site, site.film(stored=result(film=(120, 100), pneumonia=0.1)))
    assert f"'{ABSENT.value}'" in str(dataset)


def test_flags_statement_and_algorithm_are_said(site: Site) -> None:
    job = site.film(stored=result(film=(120, 100), flags=("missing_region", "holste_failure")))
    dataset, _ = built(site, job)
    assert texts(dataset, "Intended use") == ["Research use, not a medical device."]
    assert len(texts(dataset, "Failure flag")) == 2
    assert "Carina" in " ".join(texts(dataset, "Failure flag"))
    said = str(dataset)
    for words in ("phantom", "backend=openvino", "precision=fp32", "revision=1"):
        assert words in said


def test_without_trusted_spacing_there_is_no_area_in_mm2(site: Site) -> None:
    dataset, _ = built(site, site.film(PixelSpacing=[0.2, 0.2]))
    assert "Square millimeter" not in str(dataset)
    assert "Area as share of the film" in str(dataset)


def test_without_masks_the_findings_remain(site: Site) -> None:
    dataset, segmentation = built(site, site.film(stored=without(result(film=(120, 100)), "segmentation")))
    assert segmentation is None
    assert "Certainty of Finding" in str(dataset)
    assert "Area as share" not in str(dataset)


def test_it_names_the_film_and_the_segmentation_as_evidence(site: Site) -> None:
    dataset, segmentation = built(site, site.film(StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4"))
    (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == "1.2.3"
    referenced = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert segmentation.SOPInstanceUID in referenced
    assert len(referenced) == 2
    assert "ReferencedFrameNumber" not in str(dataset)
    assert dataset.CompletionFlag == "COMPLETE"
    assert dataset.VerificationFlag == "UNVERIFIED"
