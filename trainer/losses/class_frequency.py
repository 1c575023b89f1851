"""The losses of Novikov et al., section II-B, "Training strategies": distances divided by the class's frequency.

For a film I of the minibatch K, eq. 3 and 4: Lambda = - sum over classes l of d_l / r_l, with r_l = c_l / c_K, the
share of the minibatch's pixels that belong to class l. d_l is the cross-entropy of eq. 7, over a softmax (eq. 5), or
the Dice coefficient of eq. 8, over a sigmoid (eq. 6). What the paper leaves open, decided here:

- **Classes.** Cross-entropy has four, background among them; Dice has the organs alone (section III-C), under softmax
  as under sigmoid.
- **Cross-entropy of a sigmoid.** The paper's own networks are trained so ("relaxed domain restrictions on cross
  entropy [...] will still work on a sigmoid output"), but eq. 7 only counts pixels that belong to the class: with
  channels that do not compete its least value is the answer 1 everywhere. Each channel therefore has two classes, its
  own and the complement, with 1 - p for p, and eq. 3, 4 and 7 are those of both, each with its own frequency. The
  background's channel takes part in the loss and in nothing else: what is scored (eq. 9), and what goes into a label
  map, are the organs' channels.
- **Over the minibatch.** Eq. 7 divides by all pixels of the minibatch, so the films' cross-entropies are added up: with
  weights this is, class by class, the mean over the class's pixels in the minibatch. Eq. 8 divides within a film, so
  the films' losses are averaged.
- **Zero.** Dice is best at - sum of 1 / r_l; that constant is added, so that a perfect answer costs nothing and the
  gradient is the printed one.
- **A class that is absent.** From the minibatch (less than one pixel of it): its weight is infinite; it gets that of
  the rarest class that is there, as in :mod:`trainer.losses.segmentation`. From one film: eq. 8 is 0 whatever the
  network says, and 0 / 0 if it says the right thing; a pixel that is right is added to numerator and denominator, which
  a film with the class does not notice.
- **Not weighted** (Table IV): r_l = 1.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from trainer.losses.precision import full_precision
from trainer.losses.truth import Activation, as_channels, foreground, measure_of

#: The pixel that is always right.
PIXEL = 1.0


class ClassFrequencyCrossEntropy:
    """Novikov's loss with the distance of eq. 7, in nats.

    Parameters
    ----------
    activation
        Of the network; under either it has R channels.
    weighted
        False for r_l = 1.
    """

    def __init__(self, activation: Activation, *, weighted: bool = True) -> None:
        self.activation, self.weighted = activation, weighted

    def __call__(self, logits: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar of 0 or more.

        Parameters
        ----------
        logits
            (N, R, H, W), any floating type.
        truth
            int64 (N, H, W), 0 to R - 1, or float (N, R, H, W): see :mod:`trainer.losses.truth`.
        weights
            (N, H, W), above 0: a pixel of weight 2 counts as two. None for equal weights.
        """
        logits = full_precision(logits)
        channels, measure = as_channels(truth, logits.shape[1], logits), measure_of(weights, logits)
        if self.activation == "softmax":
            return self._loss(functional.log_softmax(logits, 1), channels, measure)
        own = self._loss(functional.logsigmoid(logits), channels, measure)
        return own + self._loss(functional.logsigmoid(-logits), 1 - channels, measure)

    def _loss(self, logarithms: torch.Tensor, channels: torch.Tensor, measure: torch.Tensor) -> torch.Tensor:
        distances = (measure * channels * logarithms).sum((0, 2, 3)) / measure.sum()
        return -(_weights(channels, measure, self.weighted) * distances).sum()


class ClassFrequencyDice:
    """Novikov's loss with the distance of eq. 8; parameters as for :class:`ClassFrequencyCrossEntropy`."""

    def __init__(self, activation: Activation, *, weighted: bool = True) -> None:
        self.activation, self.weighted = activation, weighted

    def __call__(self, logits: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar from 0 to the sum of 1 / r_l; arguments as in :func:`trainer.losses.truth.foreground`."""
        predicted, channels = foreground(full_precision(logits), truth, self.activation)
        measure = measure_of(weights, predicted)
        # 1 - Dice without the difference of nearly equal numbers.
        errors = (measure * (channels + predicted - 2 * channels * predicted)).sum((2, 3))
        sizes = (measure * (channels + predicted)).sum((2, 3)) + PIXEL
        return (_weights(channels, measure, self.weighted) * errors / sizes).sum(1).mean()


def _weights(channels: torch.Tensor, measure: torch.Tensor, weighted: bool) -> torch.Tensor:
    """1 / r_l of each channel, (channels,)."""
    if not weighted:
        return channels.new_ones(channels.shape[1])
    volumes, total = (measure * channels).sum((0, 2, 3)), measure.sum()
    present = volumes >= PIXEL
    rarest = volumes.masked_fill(~present, torch.inf).amin().clamp(max=total)
    return total / torch.where(present, volumes, rarest)
