"""A small classifier whose class activation map costs nothing.

Global average pooling before one linear layer makes the map of Zhou et al., "Learning deep
features for discriminative localization", a weighted sum of the last feature maps.
"""

from __future__ import annotations

import torch
from torch import nn


def _step(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class SmallClassifier(nn.Module):  # type: ignore[misc]
    """Pictures (N, ``channels``, H, W) to logits (N, ``findings``) and maps (N, ``findings``, H/16, W/16).

    A map is the finding's weights times the last post-ReLU features, then ReLU: raw, unscaled,
    its mean plus bias is the logit wherever nothing was cut off.
    """

    def __init__(self, channels: int = 1, findings: int = 2, base_width: int = 16) -> None:
        super().__init__()
        width = base_width
        self.channels = 8 * width
        self.features = nn.Sequential(
            _step(channels, width, 2),
            _step(width, 2 * width, 1),
            _step(2 * width, 2 * width, 2),
            _step(2 * width, 4 * width, 1),
            _step(4 * width, 4 * width, 2),
            _step(4 * width, 8 * width, 1),
            _step(8 * width, 8 * width, 2),
            _step(8 * width, 8 * width, 1),
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8 * width, findings)

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and class activation maps."""
        return self.conclude(self.features(picture))

    def conclude(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from the last feature maps."""
        logits = self.head(self.dropout(features.mean(dim=(2, 3))))
        maps = torch.relu(torch.einsum("fc,nchw->nfhw", self.head.weight, features))
        return logits, maps
