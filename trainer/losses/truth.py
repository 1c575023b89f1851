"""A batch's truth and probabilities as channels, one for each region.

Truth comes in two forms: label maps, int64 (N, H, W) with values 0 to R - 1, or channels, float (N, R, H, W) from 0 to
1, of which channel 0 is the background. Channels say what a label map cannot: that a pixel belongs to several regions
(``data.overlapping``), or to one in part (mixup).
"""

from __future__ import annotations

from typing import Literal

import torch

Activation = Literal["softmax", "sigmoid"]


def as_channels(truth: torch.Tensor, regions: int, like: torch.Tensor) -> torch.Tensor:
    """Either form as channels (N, R, H, W), R = ``regions``, on the device and in the precision of ``like``."""
    if truth.dim() == 4:
        return truth.to(like)
    channels = like.new_zeros((truth.shape[0], regions, *truth.shape[1:]))
    return channels.scatter_(1, truth[:, None], 1.0)


def foreground(logits: torch.Tensor, truth: torch.Tensor, activation: Activation) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and truth of all regions but the background, both (N, R - 1, H, W).

    ``logits`` are those of R channels under ``softmax``, and of R - 1, without the background, under ``sigmoid``.
    """
    predicted = logits.softmax(1)[:, 1:] if activation == "softmax" else logits.sigmoid()
    return predicted, as_channels(truth, 1 + predicted.shape[1], predicted)[:, 1:]


def measure_of(weights: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Pixel weights (N, H, W) as (N, 1, H, W); ones where there are none."""
    return torch.ones_like(like[:, :1]) if weights is None else weights[:, None].to(like)
