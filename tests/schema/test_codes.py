from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.sr._concepts_dict import concepts

from schema import codes
from schema.codes import PRIVATE_SCHEME, Code, finding_code, region_code
from schema.findings import CHEXPERT_OBSERVATIONS, Finding
from schema.regions import REGIONS, Region

ALL: list[Code] = [
    *(value for value in vars(codes).values() if isinstance(value, Code)),
    *codes.FINDING_CODES.values(),
    *(part for region in codes.REGION_CODES.values() for part in region if part is not None),
]

#: SNOMED CT, International Edition: Pneumonia (disorder).
NOT_IN_PS3_16 = {Code("233604007", "SCT", "Pneumonia")}


def known(scheme: str, value: str) -> set[str]:
    """Meanings that PS3.16 prints for a code."""
    return {
        entry[value][0].lower()
        for entry in concepts[scheme].values()
        if value in entry and isinstance(entry[value], tuple)
    }


@pytest.mark.parametrize("code", [code for code in ALL if code.scheme in ("SCT", "DCM")], ids=str)
def test_a_standard_code_means_what_the_standard_says(code: Code) -> None:
    assert code in NOT_IN_PS3_16 or code.meaning.lower() in known(code.scheme, code.value)


def test_every_region_and_finding_has_a_code_of_its_own() -> None:
    named = [region_code(region.name) for region in REGIONS if region.name != Region.BACKGROUND]
    assert len(set(named)) == len(named)
    found = [finding_code(finding) for finding in Finding]
    assert len({code.value for code in found}) == len(Finding) == len(set(found))
    assert set(codes.FINDING_CODES) >= {str(finding) for finding in Finding}


@pytest.mark.parametrize("name", [*CHEXPERT_OBSERVATIONS, "ärmel", "x" * 200])
def test_a_name_from_elsewhere_has_a_private_code_that_fits(name: str) -> None:
    for code in (finding_code(name), region_code(name).structure):
        assert 0 < len(code.value) <= 16
        assert 0 < len(code.meaning) <= 64
        assert code == (finding_code(name) if code.value.startswith("F") else code)
    assert region_code(name).structure.scheme == PRIVATE_SCHEME
    assert region_code(name) != region_code(name + "2")


def test_private_codes_differ_and_fit() -> None:
    private = {code for code in ALL if code.scheme == PRIVATE_SCHEME}
    assert len({code.value for code in private}) == len(private) > 10
    assert all(len(code.value) <= 16 for code in private)


def test_the_documentation_lists_every_code() -> None:
    told = (Path(__file__).parents[2] / "docs" / "codes.md").read_text("utf-8")
    regions = [part for region in codes.REGION_CODES.values() for part in region if part is not None]
    said = [codes.AREA_FRACTION, codes.AREA, codes.MEAN_PROBABILITY, codes.CERTAINTY, codes.DECISION_THRESHOLD]
    said += [codes.PRESENCE, codes.PRESENT, codes.ABSENT, codes.FAILURE_FLAG, codes.INTENDED_USE]
    for code in (*codes.FINDING_CODES.values(), *regions, *said, codes.ARTIFICIAL_INTELLIGENCE):
        assert code.value in told, code


def test_sides_are_told_by_the_modifier_or_by_the_structure() -> None:
    assert region_code(Region.LEFT_LUNG) == (Code("39607008", "SCT", "Lung"), codes.LEFT)
    assert region_code(Region.RIGHT_LUNG).laterality == codes.RIGHT
    assert "Left" in region_code(Region.LEFT_SUBDIAPHRAGM).structure.meaning
    assert region_code(Region.SPINE).laterality is None
    assert region_code(Region.CLAVICLES) == (region_code(Region.LEFT_CLAVICLE).structure, codes.BOTH_SIDES)
