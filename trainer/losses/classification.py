"""The five losses of the pediatric classifier's Table 6 (sections 3.2, 3.3 and 4.4.2).

All take logits z (N, F) and targets y (N, F) of 0, 1 or NaN for not known. Where the paper's text is
misprinted or silent:

- **Signs.** Eq. 1 looks as if a minus were missing. There is none missing: with p = 1 / (1 + e^−z),
  −ln p = ln(1 + e^−z) and −ln(1 − p) = ln(1 + e^z), so the printed terms already are the negative
  log-likelihood; eq. 8 and 10 likewise. Both are softplus functions, which is how they are computed: finite for
  every logit.
- **Sums over k** run over the C findings, k = 1..C; the printed lower bound 0 is a misprint.
- **Labels not known** contribute nothing: the mean over films and findings (1/N · 1/C) becomes the mean over
  the known entries of the batch, for every loss. A batch without any gives 0 with zero gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from schema.findings import Finding
from trainer.errors import DataError, RecipeError
from trainer.losses.precision import full_precision
from trainer.losses.statistics import LabelStatistics


class BinaryCrossEntropy:
    """Binary cross-entropy, eq. 1; weighted per finding when it is given weights.

    Parameters
    ----------
    positive, negative
        Weights (F,) of a finding's positive and negative terms; None for 1.
    """

    def __init__(self, positive: torch.Tensor | None = None, negative: torch.Tensor | None = None) -> None:
        self.positive = torch.ones(1) if positive is None else positive
        self.negative = torch.ones(1) if negative is None else negative

    @classmethod
    def weighted(cls, statistics: LabelStatistics) -> BinaryCrossEntropy:
        """The paper's weighted BCE (Table 6, reference 25, Rajpurkar et al. 2018).

        The paper prints no formula. This is the one of reference 25's predecessor CheXNet (Rajpurkar et
        al. 2017, section 2): |N| / (|P| + |N|) for a finding's positives and |P| / (|P| + |N|) for its
        negatives, counted over the training films, so that both sides weigh the same in all. A finding without any
        positive training film thus has weight 0 and is not learned.
        """
        positives, negatives = (
            torch.tensor(n, dtype=torch.float64) for n in (statistics.positives, statistics.negatives)
        )
        known = (positives + negatives).clamp(min=1)
        return cls(negatives / known, positives / known)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar of 0 or more, from logits and targets (N, F)."""
        logits, targets, known = _prepared(logits, targets)
        positive = targets * functional.softplus(-logits) * self.positive.to(logits)
        negative = (1 - targets) * functional.softplus(logits) * self.negative.to(logits)
        return _mean(positive + negative, known)


class Focal:
    """Focal loss (Table 6, reference 16, Lin et al. 2017, eq. 5): α_t (1 − p_t)^γ times binary cross-entropy.

    p_t is the probability given to what is true, α_t is α for positives and 1 − α for negatives. The paper
    prints neither constant; γ = 2 and α = 0.25 are Lin et al.'s. Lin et al. divide by the number of anchors that
    hold an object; a film is no anchor, so the mean over known entries is taken as for the other losses.

    Parameters
    ----------
    gamma
        0 or more; 0 leaves an α-weighted cross-entropy.
    alpha
        0 to 1.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25) -> None:
        self.gamma = gamma
        self.alpha = alpha

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar of 0 or more, from logits and targets (N, F)."""
        logits, targets, known = _prepared(logits, targets)
        positive = self.alpha * targets * self._term(logits)
        negative = (1 - self.alpha) * (1 - targets) * self._term(-logits)
        return _mean(positive + negative, known)

    def _term(self, logits: torch.Tensor) -> torch.Tensor:
        """(1 − p)^γ · −ln p with p = sigmoid(logits); the power through its logarithm, so that 0^γ has a gradient."""
        return (self.gamma * functional.logsigmoid(-logits)).exp() * functional.softplus(-logits)


class DistributionBalanced:
    """Distribution-Balanced loss, eq. 2-5 and 8-10, and the paper's modification of it, eq. 6-7.

    Per film and finding, with r̂ of eq. 5 and the margin v of eq. 9,

        r̂_k [ y_k ln(1 + e^−(z_k − v_k)) + (1/λ) (1 − y_k) ln(1 + e^λ(z_k − v_k)) ].

    - r̂_k multiplies the positive *and* the negative term (section 3.3, "can be adopted to both"; the bracket
      of eq. 10). For k without the finding r_k is eq. 2 all the same, with the film's other positives below.
    - ĉ of eq. 6 enters r of *no finding* only (eq. 7), in every film: eq. 7 knows no case.
    - v is of the training only; the network's logits, as exported, know nothing of it. It is eq. 9 as
      printed: the published code of the original loss (Wu et al. 2020) divides it by λ.
    - N in eq. 9 and n_k count the training films; a finding's N those where its label is known.
    - Neither focal term nor renormalisation of the weights: eq. 10 has none.
    - α = 0.1, β = 10, µ = 0.2, λ = 2 and κ = 0.05 are not printed; these are Wu et al.'s published settings (for COCO).
    - A film without any positive label has P^I = 0 (eq. 4) and no weight: it is refused here by
      ValueError, before the training by :func:`check_targets`. Labels not known are no positives: they
      enter neither eq. 4 nor the mean.

    Parameters
    ----------
    statistics
        Counts of the training films.
    modified
        Whether eq. 7 replaces eq. 2 for *no finding*.

    Raises
    ------
    DataError
        A finding is positive in no training film (1/n_k), or in all of them (v = −∞).
    RecipeError
        ``modified`` without the finding *no finding*.
    """

    def __init__(
        self,
        statistics: LabelStatistics,
        *,
        modified: bool,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.2,
        lambda_: float = 2.0,
        kappa: float = 0.05,
    ) -> None:
        _check_counts(statistics)
        self.alpha, self.beta, self.mu, self.lambda_ = alpha, beta, mu, lambda_
        positives = torch.tensor(statistics.positives, dtype=torch.float64)
        known = torch.tensor(statistics.known_films, dtype=torch.float64)
        self.rarity = 1 / positives
        self.margins = kappa * torch.log(known / positives - 1)
        self.added = torch.zeros_like(self.rarity)
        if modified:
            if Finding.NO_FINDING not in statistics.findings:
                raise RecipeError(
                    "loss.name modified_distribution_balanced needs the finding no_finding: "
                    "add it to data.findings, or use distribution_balanced."
                )
            # C · ĉ: the common factor 1/C of eq. 3 and 4 is cancelled throughout.
            self.added[statistics.findings.index(Finding.NO_FINDING)] = self.rarity.mean()

    def ratios(self, targets: torch.Tensor) -> torch.Tensor:
        """r of eq. 2, and 7 where modified: (N, F), from targets (N, F) of 0, 1 or NaN.

        Raises
        ------
        ValueError
            A film has no positive label.
        """
        rarity = self.rarity.to(targets)
        instance = ((targets > 0.5) * rarity).sum(1, keepdim=True)
        if (instance == 0).any():
            rows = (instance[:, 0] == 0).nonzero()[:, 0].tolist()
            raise ValueError(f"films {rows} of the batch have no positive label: their weight is undefined (eq. 4)")
        return rarity / (instance + self.added.to(targets))

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar of 0 or more, from logits and targets (N, F).

        Raises
        ------
        ValueError
            A film has no positive label.
        """
        logits, targets, known = _prepared(logits, targets)
        weights = self.alpha + torch.sigmoid(self.beta * (self.ratios(targets) - self.mu))
        shifted = logits - self.margins.to(logits)
        positive = targets * functional.softplus(-shifted)
        negative = (1 - targets) * functional.softplus(self.lambda_ * shifted) / self.lambda_
        return _mean(weights * (positive + negative), known)


def check_labels(targets: npt.NDArray[np.floating], names: Sequence[str], statistics: LabelStatistics) -> None:
    """Refuse films and findings that a Distribution-Balanced loss has no weight for.

    Parameters
    ----------
    targets
        (N, F) of 0, 1 and NaN for not known.
    names
        The films' names.

    Raises
    ------
    DataError
        Naming the first film without any positive label, or the finding that no training film (or every one) has.
    """
    without = np.flatnonzero(~(targets > 0.5).any(1))
    if len(without):
        raise DataError(
            f"Film {names[without[0]]} has no positive label ({len(without)} of {len(names)} films have none), so a "
            "Distribution-Balanced loss has no weight for it: label it no_finding or another finding, leave it "
            "out, or choose another loss."
        )
    _check_counts(statistics)


def _check_counts(statistics: LabelStatistics) -> None:
    for finding, positive, negative in zip(
        statistics.findings, statistics.positives, statistics.negatives, strict=True
    ):
        if not positive or not negative:
            raise DataError(
                f"The finding {finding} is positive in {'every' if positive else 'no'} training film, so a "
                "Distribution-Balanced loss cannot weigh it: add films, take it out of data.findings, or "
                "choose another loss."
            )


def _prepared(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits in full precision, targets with 0 for not known, and which are known."""
    logits = full_precision(logits)
    return logits, targets.nan_to_num(0.0).to(logits), ~targets.isnan()


def _mean(terms: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)
