"""The loss of Maga, section 2.3: focal Tversky, and the Tversky loss that it is made of.

With TP, FN and FP summed over a film's pixels, TI_c = (TP + e) / (TP + alpha FN + beta FP + e), and the loss is the sum
over the classes of (1 - TI_c) to the power of ``exponent``. The paper works with alpha = 0.6, which weighs *false
negatives*, beta = 0.4 and gamma^-1 = 0.675, "gamma1" in its text: the exponent itself is 0.675. What it leaves open,
decided here:

- **Classes.** Those "we would like to segment": all regions but the background, under softmax as under sigmoid.
- **Films.** Sums are taken film by film, and a batch's loss is the mean over its films.
- **e** is one pixel. A film without the class then costs what is found there by mistake.
- **Where all is right** the gradient of a power below 1 is infinite: 1 - TI counts as 1e-6 at least.
- **Mixed films** (mixup): FN and FP are the printed sums of products, with a truth between 0 and 1.
"""

from __future__ import annotations

import torch

from trainer.losses.class_frequency import PIXEL
from trainer.losses.precision import full_precision
from trainer.losses.truth import Activation, foreground, measure_of

_LEAST = 1e-6


class Tversky:
    """Focal Tversky loss; the plain one with ``exponent`` 1.

    Parameters
    ----------
    activation
        Of the network.
    alpha, beta
        Weights of false negatives and of false positives, 0 or more. (MONAI's ``TverskyLoss`` names them the other way
        round.)
    exponent
        Of 1 - TI, above 0.
    """

    def __init__(self, activation: Activation, *, alpha: float = 0.6, beta: float = 0.4, exponent: float = 1.0) -> None:
        self.activation, self.alpha, self.beta, self.exponent = activation, alpha, beta, exponent

    def __call__(self, logits: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar from 0 to R - 1; arguments as in :func:`trainer.losses.truth.foreground`."""
        predicted, channels = foreground(full_precision(logits), truth, self.activation)
        measure = measure_of(weights, predicted)
        both, missed, added = (
            (measure * pixels).sum((2, 3))
            for pixels in (predicted * channels, (1 - predicted) * channels, predicted * (1 - channels))
        )
        wrong = self.alpha * missed + self.beta * added
        return (wrong / (both + wrong + PIXEL)).clamp_min(_LEAST).pow(self.exponent).sum(1).mean()
