"""What a training makes small: losses on logits, for regions and for findings."""

from __future__ import annotations

from trainer.losses.registry import (
    CLASSIFICATION_LOSSES,
    SEGMENTATION_LOSSES,
    ClassificationLoss,
    SegmentationLoss,
    check_targets,
    classification_loss,
    segmentation_loss,
)
from trainer.losses.statistics import LabelStatistics

__all__ = [
    "CLASSIFICATION_LOSSES",
    "SEGMENTATION_LOSSES",
    "ClassificationLoss",
    "LabelStatistics",
    "SegmentationLoss",
    "check_targets",
    "classification_loss",
    "segmentation_loss",
]
