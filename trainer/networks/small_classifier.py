"""A small classifier whose class activation map costs nothing, and a second head that is taught places."""

from __future__ import annotations

import torch
from torch import nn

from trainer.networks.pooled import PooledClassifier


def _step(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class SmallClassifier(PooledClassifier):
    """Pictures (N, ``channels``, H, W) to logits (N, ``findings``) and maps (N, ``findings``, H/16, W/16)."""

    def __init__(self, channels: int = 1, findings: int = 2, base_width: int = 16) -> None:
        width = base_width
        features = nn.Sequential(
            _step(channels, width, 2),
            _step(width, 2 * width, 1),
            _step(2 * width, 2 * width, 2),
            _step(2 * width, 4 * width, 1),
            _step(4 * width, 4 * width, 2),
            _step(4 * width, 8 * width, 1),
            _step(8 * width, 8 * width, 2),
            _step(8 * width, 8 * width, 1),
        )
        super().__init__(features, 8 * width, findings, dropout=0.2)
        self.channels = 8 * width


class GuidedClassifier(SmallClassifier):
    """The small classifier with a head that is taught where the opacities are.

    From a film's label alone a small network needs far more films to notice small opacities.
    The head takes part in training only: :meth:`forward` leaves it out, and so does an export.
    """

    def __init__(self, channels: int = 1, findings: int = 2, base_width: int = 16) -> None:
        super().__init__(channels, findings, base_width)
        self.place = nn.Conv2d(self.channels, 1, 1)

    def forward_guided(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, maps, and the logit of an opacity in each cell (N, h, w)."""
        features = self.features(picture)
        return *self.conclude(features), self.place(features)[:, 0]
