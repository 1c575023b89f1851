"""Attention BCDU-Net of Maga, "Chest X-ray lung and heart segmentation based on minimal training sets", section 2.2.

The Attention U-Net of Oktay et al. (2018) with one change: where its attention gates add the gating signal to
the skip connection's features, a bidirectional ConvLSTM (Song et al. 2018, as BCDU-Net of Azad et al. 2019 uses it)
reads the two as a sequence, W_g(g) first and W_x(x) second. What the gate makes of it is as before: ReLU, a 1 x 1
convolution, sigmoid, brought to the skip connection's size and multiplied with it; the gated features are
concatenated plainly. Four downsampling steps, which the paper's tests preferred.

Left open by the paper and decided here: W_x comes down to the gating signal's size by a stride of 2, as in Oktay's own
code (the paper saw no difference); widths of 64 to 1024 with batch normalisation; a gate has half as
many features as its skip connection; 3 x 3 convolutions in the ConvLSTM; the two directions' last states are
joined by BCDU-Net's tanh(W_f h_f + W_b h_b + b), its equation 7.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

DEPTHS = 5


class ConvLstm(nn.Module):  # type: ignore[misc]
    """A convolutional LSTM (Shi et al. 2015, without peepholes); its hidden state after the last of a sequence."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, sequence: list[torch.Tensor]) -> torch.Tensor:
        """A sequence of (N, inputs, H, W) to (N, hidden, H, W)."""
        batch, _, height, width = sequence[0].shape
        state = sequence[0].new_zeros((batch, self.hidden, height, width))
        memory = state
        for features in sequence:
            enter, forget, leave, candidate = self.gates(torch.cat([features, state], dim=1)).chunk(4, dim=1)
            memory = torch.sigmoid(forget) * memory + torch.sigmoid(enter) * torch.tanh(candidate)
            state = torch.sigmoid(leave) * torch.tanh(memory)
        return state


class BidirectionalConvLstm(nn.Module):  # type: ignore[misc]
    """Two ConvLSTMs that read a sequence from either end, joined by tanh(W_f h_f + W_b h_b + b)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.onward, self.backward_ = ConvLstm(inputs, hidden), ConvLstm(inputs, hidden)
        self.join = nn.Conv2d(2 * hidden, hidden, 1)

    def forward(self, sequence: list[torch.Tensor]) -> torch.Tensor:
        """A sequence of (N, inputs, H, W) to (N, hidden, H, W)."""
        both = torch.cat([self.onward(sequence), self.backward_(sequence[::-1])], dim=1)
        return torch.tanh(self.join(both))


class AttentionGate(nn.Module):  # type: ignore[misc]
    """Weighs a skip connection's features by where the coarser features below it look.

    Parameters
    ----------
    skip, gating
        Channels of the skip connection and of the gating signal, which has half its height and width.
    """

    def __init__(self, skip: int, gating: int) -> None:
        super().__init__()
        between = max(1, skip // 2)
        self.of_gating = nn.Conv2d(gating, between, 1)
        self.of_skip = nn.Conv2d(skip, between, 2, stride=2, bias=False)
        self.merge = BidirectionalConvLstm(between, between)
        self.weigh = nn.Conv2d(between, 1, 1)

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """(N, skip, 2h, 2w) and (N, gating, h, w) to (N, skip, 2h, 2w)."""
        merged = self.merge([self.of_gating(gating), self.of_skip(skip)])
        weights = torch.sigmoid(self.weigh(torch.relu(merged)))
        return skip * functional.interpolate(weights, scale_factor=2.0, mode="bilinear", align_corners=False)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    def step(entering: int) -> list[nn.Module]:
        return [nn.Conv2d(entering, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    return nn.Sequential(*step(inputs), *step(outputs))


class AttentionBcduNet(nn.Module):  # type: ignore[misc]
    """Pictures (N, ``channels``, H, W) to logits (N, ``regions``, H, W); H and W divisible by 16.

    Parameters
    ----------
    base_width
        Filters of the first depth, doubled at each further one.
    """

    def __init__(self, channels: int = 1, regions: int = 3, base_width: int = 64) -> None:
        super().__init__()
        widths = [base_width * 2**depth for depth in range(DEPTHS)]
        self.contracting = nn.ModuleList(
            _pair(inputs, outputs) for inputs, outputs in zip([channels, *widths[:-1]], widths, strict=True)
        )
        narrowing = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.gates = nn.ModuleList(AttentionGate(narrow, wide) for wide, narrow in narrowing)
        self.upsampling = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in narrowing)
        self.expanding = nn.ModuleList(_pair(2 * narrow, narrow) for _, narrow in narrowing)
        self.head = nn.Conv2d(base_width, regions, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Logits."""
        skips: list[torch.Tensor] = []
        features = picture
        for depth, block in enumerate(self.contracting):
            features = block(functional.max_pool2d(features, 2) if depth else features)
            skips.append(features)
        for gate, up, block, skip in zip(self.gates, self.upsampling, self.expanding, skips[-2::-1], strict=True):
            features = block(torch.cat([gate(skip, features), up(features)], dim=1))
        return self.head(features)
