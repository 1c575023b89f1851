"""Networks that look at pictures of half the size.

Trained on phantoms the U-Net agreed better with people's drawings on real films so than at full
size, where it leans on texture that phantoms have and patients have not; and it costs a quarter.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class HalfSizeSegmenter(nn.Module):  # type: ignore[misc]
    """A segmentation network on 2 x 2 means; its logits are brought back to the full grid bilinearly."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Pictures (N, C, H, W) to logits (N, R, H, W)."""
        logits = self.network(functional.avg_pool2d(picture, 2))
        return functional.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)


class HalfSizeClassifier(nn.Module):  # type: ignore[misc]
    """A classifier on 2 x 2 means; its maps have half the cells each way."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (N, C, H, W) to logits (N, F) and maps (N, F, h, w)."""
        logits, maps = self.network(functional.avg_pool2d(picture, 2))
        return logits, maps

    def forward_guided(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, maps and places (N, h, w); the classifier within must be a guided one."""
        logits, maps, places = self.network.forward_guided(functional.avg_pool2d(picture, 2))
        return logits, maps, places
