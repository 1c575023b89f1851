"""Probabilities of findings against their labels: ranking, operating point, calibration.

Classifier paper, sections 3.6, 4.2 and Tables 3 and 5. What the paper leaves open, decided here:

* Thresholds maximise Youden's index on the validation part and are then fixed: neither the test
  films nor the replicates choose them. Where the validation part lacks a class there is no threshold.
* An ensemble averages probabilities (section 3.5.2); its thresholds are chosen on its own averages.
* Calibration is measured in ten bins of equally many films, in order of probability: the probabilities
  of a sure network crowd at 0 and 1, and bins of equal width would leave the others to a few films.
  Films of one and the same probability stay in one bin. The expected calibration error is the mean
  distance between a bin's mean probability and its share of positives, weighted by films (Guo et al.
  2017, section 2, for a yes-or-no answer; bins after Nixon et al. 2019, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.evaluation.subjects import Evaluation, predict
from worker.bootstrap import Bootstrap, aurocs, operations
from worker.metrics import youden_threshold

FloatArray = npt.NDArray[np.float64]

BINS = 10


@dataclass(frozen=True)
class ClassificationScores:
    """Labels and probabilities of N films.

    Attributes
    ----------
    findings
        F slugs.
    labels
        (N, F): 1 present, 0 absent, NaN not known.
    scores
        (N, F): the mean of the members, 0-1.
    members
        Member name → (N, F).
    """

    findings: tuple[str, ...]
    labels: FloatArray
    scores: FloatArray
    members: Mapping[str, FloatArray]

    @property
    def known(self) -> tuple[int, ...]:
        """The findings of which at least one film says something."""
        return tuple(int(k) for k in np.flatnonzero((~np.isnan(self.labels)).any(axis=0)))


@dataclass(frozen=True)
class Calibration:
    """Up to ten bins of one finding, by rising probability; none is empty.

    ``probability`` and ``observed`` (bins,) are a bin's mean probability and share of positives, ``films``
    (bins,) their number; ``error`` is the expected calibration error, NaN without films.
    """

    probability: FloatArray
    observed: FloatArray
    films: npt.NDArray[np.int64]
    error: float


@dataclass(frozen=True)
class Performance:
    """What is reported of one set of scores: bootstraps over the findings, and the thresholds used."""

    auroc: Bootstrap
    operation: Mapping[str, Bootstrap]
    thresholds: tuple[float, ...]


def score_films(evaluation: Evaluation, targets: npt.NDArray[np.floating]) -> ClassificationScores:
    """Predict every film; ``targets`` (films, findings) are labels in the order of the subject's findings."""
    findings = evaluation.subject.findings
    scores = np.empty((len(targets), len(findings)))
    members = {member.name: np.empty_like(scores) for member in evaluation.subject.members}
    for row, film in enumerate(predict(evaluation, range(len(targets)), f"{evaluation.part} films")):
        scores[row] = [score.probability for score in film.scores]
        for name, values in members.items():
            values[row] = [score.members[name] for score in film.scores]
    return ClassificationScores(findings, np.asarray(targets, np.float64), scores, members)


def choose_thresholds(labels: FloatArray, scores: FloatArray) -> tuple[float, ...]:
    """Youden's threshold of every finding; NaN where a class is absent."""
    thresholds = []
    for truth, values in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(truth)
        thresholds.append(youden_threshold(truth[known] == 1.0, values[known]))
    return tuple(thresholds)


def performance(
    labels: FloatArray, scores: FloatArray, thresholds: Sequence[float], *, replicates: int, seed: int
) -> Performance:
    """AUROC, and sensitivity, specificity and F1 at ``thresholds``, with their bootstraps."""
    return Performance(
        aurocs(labels, scores, replicates=replicates, seed=seed),
        operations(labels, scores, thresholds, replicates=replicates, seed=seed),
        tuple(thresholds),
    )


def calibration(labels: FloatArray, scores: FloatArray) -> Calibration:
    """Reliability of one finding: ``labels`` (films,) with NaN not known, ``scores`` (films,) 0-1."""
    known = ~np.isnan(labels)
    truth, values = labels[known], scores[known]
    if not values.size:
        return Calibration(np.empty(0), np.empty(0), np.empty(0, np.int64), float("nan"))
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    # Equal edges enclose nothing: numbering the bins that have films merges what they would split.
    _, bins = np.unique(np.searchsorted(edges, values), return_inverse=True)
    films = np.bincount(bins)
    probability, observed = np.bincount(bins, values) / films, np.bincount(bins, truth) / films
    return Calibration(probability, observed, films, float(np.abs(probability - observed) @ films / films.sum()))
