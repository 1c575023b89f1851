"""What our names mean in the coded terms other systems read (PS3.16).

A term stands here under SNOMED CT (``SCT``) or DICOM (``DCM``) only if PS3.16 itself prints that code with
that meaning (and pneumonia, which only SNOMED CT does); everything else has a code of the private scheme
:data:`PRIVATE_SCHEME`. "Other opacity" is
private on purpose: coded as the broader "Opacity", its absence would deny the opacities that are present.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from schema.findings import Finding, title
from schema.regions import REGION_BY_NAME, Region

#: Coding Scheme Designator of our own codes (PS3.3 8.2: private designators begin with 99).
PRIVATE_SCHEME = "99CARINA"
PRIVATE_SCHEME_NAME = "Carina private codes"


class Code(NamedTuple):
    """Code Value (at most 16 characters), Coding Scheme Designator and Code Meaning (PS3.3 section 8)."""

    value: str
    scheme: str
    meaning: str


class RegionCode(NamedTuple):
    """A structure, and its side where the code does not say it."""

    structure: Code
    laterality: Code | None = None


def _private(value: str, meaning: str) -> Code:
    return Code(value, PRIVATE_SCHEME, meaning)


#: CID 244.
LEFT, RIGHT = Code("7771000", "SCT", "Left"), Code("24028007", "SCT", "Right")
BOTH_SIDES = Code("51440002", "SCT", "Bilateral")
#: CID 7150: the category of every region.
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")

_LUNG = Code("39607008", "SCT", "Lung")
_CLAVICLE = Code("51299004", "SCT", "Clavicle")

REGION_CODES: dict[str, RegionCode] = {
    Region.LEFT_LUNG: RegionCode(_LUNG, LEFT),
    Region.RIGHT_LUNG: RegionCode(_LUNG, RIGHT),
    Region.LEFT_SUBDIAPHRAGM: RegionCode(Code("86367003", "SCT", "Left upper quadrant of abdomen")),
    Region.RIGHT_SUBDIAPHRAGM: RegionCode(Code("50519007", "SCT", "Right upper quadrant of abdomen")),
    Region.SPINE: RegionCode(Code("421060004", "SCT", "Spine")),
    Region.MEDIASTINUM: RegionCode(Code("72410000", "SCT", "Mediastinum")),
    Region.CARINA: RegionCode(Code("28700002", "SCT", "Carina")),
    Region.HEART: RegionCode(Code("80891009", "SCT", "Heart")),
    Region.LEFT_CLAVICLE: RegionCode(_CLAVICLE, LEFT),
    Region.RIGHT_CLAVICLE: RegionCode(_CLAVICLE, RIGHT),
    Region.LUNGS: RegionCode(_LUNG, BOTH_SIDES),
    Region.CLAVICLES: RegionCode(_CLAVICLE, BOTH_SIDES),
}

FINDING_CODES: dict[str, Code] = {
    Finding.RETICULONODULAR_OPACITY: _private("F-RETICNOD", "Reticulonodular opacity"),
    Finding.PERIBRONCHOVASCULAR_INTERSTITIAL_OPACITY: _private(
        "F-PERIBRONCH", "Peribronchovascular interstitial opacity"
    ),
    Finding.OTHER_OPACITY: _private("F-OTHEROPACITY", "Other opacity"),
    Finding.BRONCHIAL_THICKENING: _private("F-BRONCHTHICK", "Bronchial thickening"),
    Finding.BRONCHITIS: _private("F-BRONCHITIS", "Bronchitis"),
    Finding.BRONCHOPNEUMONIA: _private("F-BRONCHOPNEUM", "Bronchopneumonia"),
    Finding.BRONCHIOLITIS: _private("F-BRONCHIOLITIS", "Bronchiolitis"),
    Finding.PNEUMONIA: Code("233604007", "SCT", "Pneumonia"),
    Finding.OTHER_DISEASE: _private("F-OTHERDISEASE", "Other disease"),
    Finding.NO_FINDING: _private("F-NOFINDING", "No finding"),
    # Observations that adult bundles know.
    "pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
    "pleural_effusion": Code("60046008", "SCT", "Pleural effusion"),
}

AREA = Code("42798000", "SCT", "Area")
AREA_FRACTION = _private("M-AREAFRACTION", "Area as share of the film")
MEAN_PROBABILITY = _private("M-MEANPROB", "Mean probability inside the region")
#: CID 6048, in percent.
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
DECISION_THRESHOLD = _private("M-THRESHOLD", "Decision threshold")
PRESENCE = _private("Q-PRESENCE", "Presence at the decision threshold")
#: CID 240.
PRESENT, ABSENT = Code("52101004", "SCT", "Present"), Code("272519000", "SCT", "Absent")
FAILURE_FLAG = _private("T-FLAG", "Failure flag")
INTENDED_USE = _private("T-USE", "Intended use")

PERCENT = Code("%", "UCUM", "Percent")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "Square millimeter")

PLAIN_RADIOGRAPHY = Code("168537006", "SCT", "Plain radiography")
#: CID 7162: the family of our algorithms.
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
#: CID 7202.
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
#: CID 7050: what was done to remove identity.
BASIC_CONFIDENTIALITY_PROFILE = Code("113100", "DCM", "Basic Application Confidentiality Profile")
RETAIN_PATIENT_CHARACTERISTICS = Code("113108", "DCM", "Retain Patient Characteristics Option")


def region_code(name: str) -> RegionCode:
    """A region's codes; a name that is not in :data:`REGION_CODES` has a private one made of the name."""
    known = REGION_BY_NAME.get(name)
    return REGION_CODES.get(name) or RegionCode(_made("R", name, known.title if known else title(name)))


def finding_code(slug: str) -> Code:
    """A finding's code; a slug that is not in :data:`FINDING_CODES` has a private one made of the slug."""
    return FINDING_CODES.get(slug) or _made("F", slug, title(slug))


def _made(kind: str, name: str, meaning: str) -> Code:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12].upper()
    return _private(f"{kind}-{digest}", meaning[:64])
