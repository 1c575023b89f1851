"""The ten pediatric findings (VinDr-PCXR classifier paper, section 3.1, in its order)."""

from __future__ import annotations

from enum import StrEnum


class Finding(StrEnum):
    """Slug of a finding: column name in exports, value in ``finding_score.finding``."""

    RETICULONODULAR_OPACITY = "reticulonodular_opacity"
    PERIBRONCHOVASCULAR_INTERSTITIAL_OPACITY = "peribronchovascular_interstitial_opacity"
    OTHER_OPACITY = "other_opacity"
    BRONCHIAL_THICKENING = "bronchial_thickening"
    BRONCHITIS = "bronchitis"
    BRONCHOPNEUMONIA = "bronchopneumonia"
    BRONCHIOLITIS = "bronchiolitis"
    PNEUMONIA = "pneumonia"
    OTHER_DISEASE = "other_disease"
    NO_FINDING = "no_finding"


#: The fourteen observations of CheXpert (Irvin et al. 2019, Table 1), in its order: what an adult
#: pre-training learns (classifier paper, section 3.5.1). Two of them are also pediatric findings.
CHEXPERT_OBSERVATIONS: tuple[str, ...] = (
    "no_finding",
    "enlarged_cardiomediastinum",
    "cardiomegaly",
    "lung_opacity",
    "lung_lesion",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "pleural_other",
    "fracture",
    "support_devices",
)


def title(slug: str) -> str:
    """The finding as a person reads it: ``"no_finding"`` becomes ``"No finding"``."""
    return slug.replace("_", " ").capitalize()
