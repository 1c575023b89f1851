"""In which precision losses are computed."""

from __future__ import annotations

import torch


def full_precision(logits: torch.Tensor) -> torch.Tensor:
    """Logits as a loss computes with them: float64 stays, float32, bfloat16 and float16 become float32.

    A sum over 65,536 pixels, or a product of probabilities, is lost in bfloat16's eight bits.
    """
    return logits if logits.dtype == torch.float64 else logits.float()
