"""The U-Net of Holste et al., "Multi-class semantic segmentation of pediatric chest radiographs", section 2.2.

Five contracting depths (32 to 512), mirrored by four expanding ones; 3 x 3 "same"
convolutions, each followed by ReLU and batch normalisation in this order. The
transposed convolutions are 3 x 3 with stride 2 and carry ReLU and batch normalisation too:
only so does the network have the paper's 8.6 million parameters (8,637,000 exactly with
one input channel and eight regions).
"""

from __future__ import annotations

import torch
from torch import nn

DEPTHS = 5


def _activated(layer: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.ReLU(inplace=True), nn.BatchNorm2d(channels))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _activated(nn.Conv2d(inputs, outputs, 3, padding=1), outputs),
        _activated(nn.Conv2d(outputs, outputs, 3, padding=1), outputs),
    )


class HolsteUNet(nn.Module):  # type: ignore[misc]
    """Pictures (N, ``channels``, H, W) to logits (N, ``regions``, H, W); H and W divisible by 16.

    Parameters
    ----------
    channels
        Input channels.
    regions
        Output classes.
    base_width
        Filters of the first depth, doubled at each further one; the paper's is 32.
    """

    def __init__(self, channels: int = 1, regions: int = 8, base_width: int = 32) -> None:
        super().__init__()
        widths = [base_width * 2**depth for depth in range(DEPTHS)]
        self.contracting = nn.ModuleList(
            _block(inputs, outputs) for inputs, outputs in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        narrowing = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.upsampling = nn.ModuleList(
            _activated(nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1), narrow)
            for wide, narrow in narrowing
        )
        self.expanding = nn.ModuleList(_block(2 * narrow, narrow) for _, narrow in narrowing)
        self.head = nn.Conv2d(base_width, regions, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Logits; softmax over axis 1 gives the regions' probabilities."""
        skips: list[torch.Tensor] = []
        features = picture
        for depth, block in enumerate(self.contracting):
            features = block(self.pool(features) if depth else features)
            skips.append(features)
        for upsample, block, skip in zip(self.upsampling, self.expanding, skips[-2::-1], strict=True):
            features = block(torch.cat([skip, upsample(features)], dim=1))
        return self.head(features)


def parameter_count(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
