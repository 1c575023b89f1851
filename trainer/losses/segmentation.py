"""The losses of Holste et al., section 2.2: weighted cross-entropy, generalised Dice, and their sum.

The paper's two printed equations are lost in its text. What survives is that n runs over the pixels of
*one* radiograph, c over the classes, w_n > 0 is a pre-defined pixel weight, y_nc the truth and ŷ_nc the
predicted probability, and that both losses are "weighted adaptations" of categorical cross-entropy and of
the generalised Dice loss of Sudre et al. 2017 (reference 12). Decided here:

- **One radiograph at a time.** Each film has its own loss, a batch's is the mean over its films: that is
  what the surviving sentence says, and a batch split over devices or accumulated gives the same gradient.
- **Both divide by the weights.** Cross-entropy is the weighted mean over pixels,
  −Σ_n w_n Σ_c y_nc ln ŷ_nc / Σ_n w_n, not the sum divided by N. Multiplying a weight map by a number then
  changes neither loss, so the scale of a map (which the paper leaves open) cannot act as a second learning
  rate, nor shift the balance of the two terms in their sum. With equal weights this is the plain mean.
- **Pixel weights are a measure.** In generalised Dice every sum over pixels is weighted, the volumes in
  the class weights too: a pixel of weight 2 counts as two pixels. Unweighted volumes would count a class's
  rarity twice (inverse frequency in w_n and the inverse square of the volume in the class weight), and
  the carina would outweigh everything else by orders of magnitude.
- **The class weights of generalised Dice** are 1 / V_c², V_c the volume of class c in this film (Sudre et
  al.). They are used relative to that of the film's smallest class, which leaves the quotient
  as it is and keeps it far from float32's limits.
- **A class absent from a film** would get an infinite weight. It gets that of the film's smallest class,
  as in MONAI: painting something that is not there is then an error like any other.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from trainer.losses.precision import full_precision


class CrossEntropy:
    """Weighted categorical cross-entropy, L_CCE of Holste et al., section 2.2, in nats.

    Parameters
    ----------
    class_weights
        float of shape (R,), above 0: a weight per class that multiplies the pixel weights; None for none.
        Not in the paper.
    """

    def __init__(self, class_weights: torch.Tensor | None = None) -> None:
        self.class_weights = class_weights

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar of 0 or more.

        Parameters
        ----------
        logits
            (N, R, H, W), any floating type.
        labels
            int64 (N, H, W), 0 to R − 1.
        weights
            (N, H, W), above 0, any scale; None for equal weights.
        """
        logits = full_precision(logits)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        measure = torch.ones_like(losses) if weights is None else weights.to(losses)
        if self.class_weights is not None:
            measure = measure * self.class_weights.to(losses)[labels]
        return ((losses * measure).sum((1, 2)) / measure.sum((1, 2))).mean()


class GeneralisedDice:
    """Generalised Dice loss, L_GDL of Holste et al., section 2.2, after Sudre et al. 2017; between 0 and 1.

    Per film, with v_c = 1 / (Σ_n w_n y_nc)²,

        1 − 2 Σ_c v_c Σ_n w_n y_nc ŷ_nc / Σ_c v_c Σ_n w_n (y_nc + ŷ_nc).

    Computed as Σ_c v_c Σ_n w_n |y_nc − ŷ_nc| over the same denominator: equal because y is 0 or 1, never
    below 0, and exact where the prediction is nearly right.
    """

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar from 0 to 1; shapes as in :class:`CrossEntropy`."""
        predicted = full_precision(logits).softmax(1)
        truth = torch.zeros_like(predicted).scatter_(1, labels[:, None], 1.0)
        measure = torch.ones_like(predicted[:, :1]) if weights is None else weights[:, None].to(predicted)
        volumes = (measure * truth).sum((2, 3))
        errors = (measure * (truth - predicted).abs()).sum((2, 3))
        present = volumes > 0
        smallest = volumes.masked_fill(~present, torch.inf).amin(1, keepdim=True)
        class_weights = torch.where(present, smallest / volumes, 1.0).square()
        sizes = volumes + (measure * predicted).sum((2, 3))
        return ((class_weights * errors).sum(1) / (class_weights * sizes).sum(1)).mean()


class CrossEntropyDice:
    """L_CCE + L_GDL with the same pixel weights (Holste et al., section 3, "the sum of")."""

    def __init__(self, class_weights: torch.Tensor | None = None) -> None:
        self.cross_entropy = CrossEntropy(class_weights)
        self.dice = GeneralisedDice()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar of 0 or more; shapes as in :class:`CrossEntropy`."""
        return self.cross_entropy(logits, labels, weights) + self.dice(logits, labels, weights)
