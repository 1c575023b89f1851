"""Optimisers, learning-rate schedules, weight averaging and precision, as recipes name them."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from trainer.recipe import OptimiserTable, ScheduleTable

_OPTIMISERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda weights, table: torch.optim.Adam(weights, table.rate, weight_decay=table.weight_decay),
    "adamw": lambda weights, table: torch.optim.AdamW(weights, table.rate, weight_decay=table.weight_decay),
    "sgd": lambda weights, table: torch.optim.SGD(
        weights, table.rate, momentum=table.momentum, weight_decay=table.weight_decay
    ),
    "rmsprop": lambda weights, table: torch.optim.RMSprop(weights, table.rate, weight_decay=table.weight_decay),
}


def make_optimiser(weights: Iterable[nn.Parameter], table: OptimiserTable) -> torch.optim.Optimizer:
    """The recipe's optimiser; ``momentum`` is SGD's alone, everything not in the recipe is PyTorch's default."""
    return _OPTIMISERS[table.name](weights, table)


def rate_factor(table: ScheduleTable, steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate at each step as a share of the recipe's ``rate``.

    Parameters
    ----------
    table
        ``constant`` is 1 throughout. ``cosine`` rises linearly over the share ``warm_up`` of all steps and falls
        to 0 as half a cosine (Loshchilov and Hutter, "SGDR", eq. 5 without restarts). ``triangular`` is Smith,
        "Cyclical learning rates", section 3.1: from ``lowest`` linearly to 1 and back, once per ``cycle`` epochs.
    steps
        Optimiser steps of the whole training.
    steps_per_epoch
        Of one epoch.
    """
    warm_up = max(1, round(table.warm_up * steps))
    period = table.cycle * steps_per_epoch if table.cycle else steps

    def cosine(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    def triangular(step: int) -> float:
        height = 1 - abs(2 * (step % period) / period - 1)
        return table.lowest + (1 - table.lowest) * height

    return {"constant": lambda _step: 1.0, "cosine": cosine, "triangular": triangular}[table.name]


def weight_average(decay: float) -> WeightAveraging:
    """Lightning's exponential moving average of the weights and of batch normalisation's statistics.

    The average of n steps moves by 1 - min(``decay``, (1 + n) / (10 + n)): faster while young, so that the first
    epochs are not measured on weights that are mostly random.
    """
    return WeightAveraging(use_buffers=True, multi_avg_fn=_Average(decay))


class _Average:
    """The averaging rule for tensors of one type, as an object that can be sent to other processes."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, averages: list[torch.Tensor], current: list[torch.Tensor], updates: torch.Tensor | int) -> None:
        if not averages[0].is_floating_point():  # batch normalisation's counters
            torch._foreach_copy_(averages, current)
            return
        n = int(updates)
        torch._foreach_lerp_(averages, current, 1 - min(self.decay, (1 + n) / (10 + n)))


def has_bfloat16(accelerator: str) -> bool:
    """Whether this machine computes bfloat16 itself; where it is emulated it is slower than float32."""
    if accelerator == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # On x86 oneDNN also says yes where it would only emulate it.
    x86 = platform.machine() in {"x86_64", "AMD64"}
    return bool(torch.cpu._is_avx512_bf16_supported() if x86 else torch.ops.mkldnn._is_mkldnn_bf16_supported())


def lightning_precision(choice: str, accelerator: str) -> Any:
    """Lightning's name for the recipe's ``precision`` on ``accelerator`` (``cpu`` or ``cuda``).

    Weights and loss stay float32; only convolutions and matrix products run in bfloat16.
    """
    reduced = choice == "bf16" or (choice == "auto" and has_bfloat16(accelerator))
    return "bf16-mixed" if reduced else "32-true"
