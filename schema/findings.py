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


def title(slug: str) -> str:
    """The finding as a person reads it: ``"no_finding"`` becomes ``"No finding"``."""
    return slug.replace("_", " ").capitalize()
