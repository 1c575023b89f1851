"""What each loss for regions can be used with: known to recipes without loading PyTorch.

The losses themselves are in :mod:`trainer.losses.segmentation` (Holste et al.), :mod:`trainer.losses.class_frequency`
(Novikov et al.), :mod:`trainer.losses.tversky` (Maga) and :mod:`trainer.losses.jaccard` (Wang et al.).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RegionLoss:
    """One loss.

    ``activations`` of the network it is for; ``soft`` says whether a pixel may belong to several regions, or to one in
    part, as with ``data.overlapping`` and ``augmentation.mixup``; ``background`` whether a sigmoid head has a channel
    for the background too.
    """

    activations: tuple[str, ...] = ("softmax",)
    soft: bool = False
    background: bool = False


_BOTH = ("softmax", "sigmoid")

#: Name → what it can be used with.
REGION_LOSSES: Mapping[str, RegionLoss] = {
    "cross_entropy": RegionLoss(),
    "generalised_dice": RegionLoss(),
    "cross_entropy_dice": RegionLoss(),
    "class_frequency_cross_entropy": RegionLoss(_BOTH, soft=True, background=True),
    "class_frequency_dice": RegionLoss(_BOTH, soft=True),
    "tversky": RegionLoss(_BOTH, soft=True),
    "focal_tversky": RegionLoss(_BOTH, soft=True),
    "binary_cross_entropy_jaccard": RegionLoss(("sigmoid",), soft=True),
}
