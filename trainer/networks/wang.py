"""The network of Wang et al., "Deep Learning for Automatic Segmentation of Chest X-Ray": a U-Net on a ResNet-34.

The poster says "Resnet34 (pretrained on the ImageNet) as decoder", which can only be the encoder. It takes three
channels of 256 x 256 and answers a region's logit for each pixel, a model per region. What the poster leaves open,
decided here: the way up has 256, 128, 64, 32 and 16 features, enlarges by nearest neighbour and joins the encoder's
features of each size, the full one aside; as in the library it most likely used.
"""

from __future__ import annotations

import torch
from monai.networks.nets import resnet34
from torch import nn
from torch.nn import functional

#: Features of the way up and, of the same sizes, those of the encoder that join them.
_UPWARD = (256, 128, 64, 32, 16)
_SKIPS = (256, 128, 64, 64, 0)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    def step(entering: int) -> list[nn.Module]:
        return [nn.Conv2d(entering, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    return nn.Sequential(*step(inputs), *step(outputs))


class ResNet34UNet(nn.Module):  # type: ignore[misc]
    """Pictures (N, ``channels``, H, W) to logits (N, ``regions``, H, W); H and W divisible by 32."""

    def __init__(self, channels: int = 3, regions: int = 2) -> None:
        super().__init__()
        # Shortcuts by 1 x 1 convolution without bias: the published weights are of this form.
        self.encoder = resnet34(
            spatial_dims=2,
            n_input_channels=channels,
            conv1_t_stride=2,
            shortcut_type="B",
            bias_downsample=False,
            feed_forward=False,
        )
        below = [512, *_UPWARD[:-1]]
        self.expanding = nn.ModuleList(
            _pair(inputs + skip, outputs) for inputs, skip, outputs in zip(below, _SKIPS, _UPWARD, strict=True)
        )
        self.head = nn.Conv2d(_UPWARD[-1], regions, 3, padding=1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Logits."""
        encoder = self.encoder
        skips = [encoder.act(encoder.bn1(encoder.conv1(picture)))]
        features = encoder.maxpool(skips[0])
        for layer in (encoder.layer1, encoder.layer2, encoder.layer3):
            features = layer(features)
            skips.append(features)
        features = encoder.layer4(features)
        for block in self.expanding:
            features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = block(torch.cat([features, skips.pop()], dim=1) if skips else features)
        return self.head(features)
