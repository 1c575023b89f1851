"""How often each finding occurs among the training films."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class LabelStatistics:
    """Counts over the training films that weigh a classification loss.

    Attributes
    ----------
    findings
        Slugs, in the order of the logits.
    positives
        n_k, the training films positive for each finding.
    films
        N, the training films.
    known
        Films whose label of each finding is known; empty when all are. A rate is taken over these: a film
        that says nothing about a finding is no negative of it.

    Raises
    ------
    ValueError
        The counts are not one per finding, or more films are positive than known, or known than there are.
    """

    findings: tuple[str, ...]
    positives: tuple[int, ...]
    films: int
    known: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.findings or not len(self.findings) == len(self.positives) == len(self.known_films):
            raise ValueError(f"{len(self.findings)} findings need as many counts, not {len(self.positives)}")
        for finding, positive, known in zip(self.findings, self.positives, self.known_films, strict=True):
            if not 0 <= positive <= known <= self.films:
                raise ValueError(f"{finding}: {positive} positive of {known} known of {self.films} films cannot be")

    @property
    def known_films(self) -> tuple[int, ...]:
        """Films whose label is known, per finding."""
        return self.known or (self.films,) * len(self.findings)

    @property
    def negatives(self) -> tuple[int, ...]:
        """Films known to be without each finding."""
        return tuple(known - positive for known, positive in zip(self.known_films, self.positives, strict=True))

    @classmethod
    def count(cls, findings: Sequence[str], targets: npt.NDArray[np.floating]) -> LabelStatistics:
        """Count the training films' targets, (N, F) of 0, 1 and NaN for not known."""
        positives = tuple(int(n) for n in (targets > 0.5).sum(0))
        known = tuple(int(n) for n in (~np.isnan(targets)).sum(0))
        return cls(tuple(findings), positives, len(targets), known)
