"""The loss of Wang et al.: "BCE+JCD: binary crossentropy and jaccard loss", the sum of the two.

The poster prints no more. Decided here: both are taken film by film and averaged over films, and over regions where a
network has several; cross-entropy is the mean over pixels, in nats; the Jaccard loss is 1 - sum(p g) /
sum(p + g - p g), with one pixel that is right added above and below, so that a film without the region costs what is
found there by mistake; the two count alike, as in the library that was most likely used, unless ``jaccard_weight``
says otherwise.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from trainer.losses.class_frequency import PIXEL
from trainer.losses.precision import full_precision
from trainer.losses.truth import foreground, measure_of


class BinaryCrossEntropyJaccard:
    """Binary cross-entropy plus ``jaccard_weight`` (0 or more) times the Jaccard loss, for sigmoid networks."""

    def __init__(self, *, jaccard_weight: float = 1.0) -> None:
        self.jaccard_weight = jaccard_weight

    def __call__(self, logits: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar of 0 or more; arguments as in :func:`trainer.losses.truth.foreground`."""
        logits = full_precision(logits)
        predicted, channels = foreground(logits, truth, "sigmoid")
        measure = measure_of(weights, predicted)
        losses = functional.binary_cross_entropy_with_logits(logits, channels, reduction="none")
        entropy = (measure * losses).sum((2, 3)) / measure.sum((2, 3))
        both = channels * predicted
        wrong = (measure * (channels + predicted - 2 * both)).sum((2, 3))
        union = (measure * (channels + predicted - both)).sum((2, 3)) + PIXEL
        return (entropy + self.jaccard_weight * wrong / union).mean()
