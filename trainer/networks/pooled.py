"""Classifiers that end in global average pooling and one linear layer: their activation maps cost nothing.

The pediatric classifier's heat maps are Grad-CAM (eq. 11-12), with the *probability*
``y = sigmoid(z)`` differentiated. Behind global average pooling the logit is
``z_c = b_c + sum_k w_ck mean(A_k)``, so the gradient is the same at each of the HW cells and::

    alpha_ck = mean over cells of dy_c / dA_k = y_c (1 - y_c) / HW * w_ck
    Grad-CAM = y_c (1 - y_c) / HW * ReLU(sum_k w_ck A_k)

The factor is positive and one number per film and finding: divided by their maxima, Grad-CAM and
the map of Zhou et al., "Learning deep features for discriminative localization", are the
same picture. This holds on the last feature map *after* its ReLU, the only one taken here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class PooledClassifier(nn.Module):  # type: ignore[misc]
    """Pictures (N, C, H, W) to logits (N, F) and class activation maps (N, F, h, w).

    A map is ReLU(sum_k w_ck A_k) of the last post-ReLU features A: raw, unscaled, not negative; its mean plus
    the bias is the logit wherever the ReLU cut nothing off.

    Parameters
    ----------
    features
        Pictures to features (N, K, h, w), ending in a ReLU.
    channels
        K.
    findings
        F.
    dropout
        Share of the pooled features left out in training.
    """

    def __init__(self, features: nn.Module, channels: int, findings: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, findings)

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and class activation maps."""
        return self.conclude(self.features(picture))

    def conclude(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same from the last feature maps."""
        logits = self.head(self.dropout(features.mean(dim=(2, 3))))
        maps = torch.relu(functional.conv2d(features, self.head.weight[:, :, None, None]))
        return logits, maps
