"""Networks of Novikov et al., "Fully Convolutional Architectures for Multi-Class Segmentation in Chest Radiographs".

Four of them (Fig. 3): the U-Net of Ronneberger et al. as it was, and three that follow from it:

* **All-Dropout** (section II-B a): a Gaussian dropout after every activated convolution. Its 31,377,988
  parameters (one input channel, four outputs) say that features are enlarged without weights and then
  concatenated; the U-Net's 31,030,788 that it enlarges by 2 x 2 transposed convolutions.
* **All-Convolutional** (b): strided convolutions instead of pooling. The text gives them "filter size equal to the
  pooling size" (32,771,588 parameters); the printed total of 34,512,388 asks for 3 x 3, which is built.
* **InvertedNet** (c): many features at high resolution and few at low, and delayed subsampling: after the first
  pooling the convolution has stride 1; the further poolings have stride 1 and the convolutions after them
  stride 2. 3,140,771 parameters with three outputs. Evaluated with ReLU and with ELU.

Convolutions are padded, so that the answer has the picture's size. Left open by the paper and decided here: the
dropout rate; and whether its noise is added, as the text says, or multiplied, as in Srivastava et al. (2014, section
10), whom it follows: multiplied, with mean 1 and the paper's standard deviation sqrt(d / (1 - d)).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from trainer.errors import RecipeError

DEPTHS = 5


class GaussianDropout(nn.Module):  # type: ignore[misc]
    """Multiplies with noise of mean 1 and standard deviation sqrt(rate / (1 - rate)) while training; else nothing."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a dropout rate is 0 or more and below 1, not {rate}")
        self.deviation = (rate / (1 - rate)) ** 0.5

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features of any shape."""
        if not self.training or not self.deviation:
            return features
        return features * (1 + self.deviation * torch.randn_like(features))


class DelayedPool(nn.Module):  # type: ignore[misc]
    """Maximum over 2 x 2 pixels at stride 1; the last row and column are maxima of what there is."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        return functional.max_pool2d(features, 2, stride=1, padding=1)[:, :, 1:, 1:]


class _Step:
    """Makes convolutions with what follows each: activation, and dropout where there is any."""

    def __init__(self, *, elu: bool, dropout: float) -> None:
        self._elu, self._dropout = elu, dropout

    def __call__(self, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        activation = nn.ELU(inplace=True) if self._elu else nn.ReLU(inplace=True)
        layers = [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), activation]
        return nn.Sequential(*layers, *([GaussianDropout(self._dropout)] if self._dropout else []))

    def pair(self, inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        """Two of them; the first has the stride."""
        return nn.Sequential(self(inputs, outputs, stride), self(outputs, outputs))


class _Segmenter(nn.Module):  # type: ignore[misc]
    """Blocks with a passage down between them, a way up, and a 1 x 1 convolution at the end."""

    def __init__(
        self,
        contracting: list[nn.Module],
        downward: list[nn.Module],
        upward: list[nn.Module],
        expanding: list[nn.Module],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.contracting, self.downward = nn.ModuleList(contracting), nn.ModuleList(downward)
        self.upward, self.expanding = nn.ModuleList(upward), nn.ModuleList(expanding)
        self.head = head

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Pictures (N, C, H, W), H and W divisible by 16, to logits (N, R, H, W)."""
        features, skips = self.contracting[0](picture), []
        for down, block in zip(self.downward, self.contracting[1:], strict=True):
            skips.append(features)
            features = block(down(features))
        for up, block, skip in zip(self.upward, self.expanding, reversed(skips), strict=True):
            features = block(torch.cat([skip, up(features)], dim=1))
        return self.head(features)


def original_unet(channels: int, regions: int, *, base_width: int = 64) -> nn.Module:
    """The U-Net of Ronneberger et al. (2015, Fig. 1) with padded convolutions; 31,030,788 parameters with 4 outputs."""
    step = _Step(elu=False, dropout=0.0)
    widths = [base_width * 2**depth for depth in range(DEPTHS)]
    pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
    return _Segmenter(
        _contracting(step, channels, widths),
        [nn.MaxPool2d(2) for _ in widths[1:]],
        [nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairs],
        [step.pair(2 * narrow, narrow) for _, narrow in pairs],
        nn.Conv2d(base_width, regions, 1),
    )


def all_dropout(
    channels: int, regions: int, *, base_width: int = 64, dropout: float = 0.2, elu: bool = False
) -> nn.Module:
    """All-Dropout, Fig. 3b; 31,377,988 parameters with one input channel and 4 outputs."""
    step = _Step(elu=elu, dropout=dropout)
    widths = [base_width * 2**depth for depth in range(DEPTHS)]
    return _enlarging(
        step, _contracting(step, channels, widths), [nn.MaxPool2d(2) for _ in widths[1:]], widths, regions
    )


def all_convolutional(
    channels: int, regions: int, *, base_width: int = 64, dropout: float = 0.2, elu: bool = False
) -> nn.Module:
    """All-Convolutional, Fig. 3c; 34,512,388 parameters with one input channel and 4 outputs."""
    step = _Step(elu=elu, dropout=dropout)
    widths = [base_width * 2**depth for depth in range(DEPTHS)]
    downward = [step(width, width, stride=2) for width in widths[:-1]]
    return _enlarging(step, _contracting(step, channels, widths), downward, widths, regions)


def inverted_net(
    channels: int, regions: int, *, base_width: int = 256, dropout: float = 0.2, elu: bool = False
) -> nn.Module:
    """InvertedNet, Fig. 3d; 3,140,771 parameters with one input channel and 3 outputs.

    ``base_width`` is that of the first block, a multiple of 16; each further one has half.
    """
    if base_width % 2 ** (DEPTHS - 1):
        raise RecipeError(f"network.options.base_width of inverted_net must be a multiple of 16, not {base_width}.")
    step = _Step(elu=elu, dropout=dropout)
    widths = [base_width // 2**depth for depth in range(DEPTHS)]
    first, *others = pairwise(widths)
    contracting = [step.pair(channels, widths[0]), step.pair(*first)]
    contracting += [step.pair(wide, narrow, stride=2) for wide, narrow in others]
    downward = [nn.MaxPool2d(2), *(DelayedPool() for _ in others)]
    return _enlarging(step, contracting, downward, widths, regions)


def _contracting(step: _Step, channels: int, widths: list[int]) -> list[nn.Module]:
    return [step.pair(inputs, outputs) for inputs, outputs in zip([channels, *widths[:-1]], widths, strict=True)]


def _enlarging(
    step: _Step, contracting: list[nn.Module], downward: list[nn.Module], widths: list[int], regions: int
) -> nn.Module:
    """With a way up that enlarges without weights, as all three that follow from the U-Net have."""
    pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
    return _Segmenter(
        contracting,
        downward,
        [nn.Upsample(scale_factor=2, mode="nearest") for _ in pairs],
        [step.pair(below + width, width) for below, width in pairs],
        nn.Conv2d(widths[0], regions, 1),
    )
