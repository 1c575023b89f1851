"""How fast are bootstrap intervals of AUROC, beside a loop over scikit-learn?

    python benchmarks/bootstrap.py
    python benchmarks/bootstrap.py --replicates 1000 --rounds 3

Ten findings on 777 films, as many as the classifier paper tests on. Both compute the same replicates
from the same draws and are timed in turns, in one process on one thread, at the same number of
replicates; ours also at the paper's 10,000, and there once more with all that is tracked at night:
patients drawn with all their films, average precision, sensitivity, specificity, F1. Target: at least
100 times as fast. The replicates of both must agree, or nothing is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score

from worker.bootstrap import REPLICATES, aurocs, draw, performances

TARGET = 100.0
FILMS, FINDINGS = 777, 10
PREVALENCE = 0.18  # the mean over the paper's ten findings, its Table 1


def make_films(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random((FILMS, FINDINGS)) < PREVALENCE
    return labels, rng.normal(0, 1, labels.shape) + 0.8 * labels


def scikit_learn(labels: np.ndarray, scores: np.ndarray, replicates: int) -> np.ndarray:
    return np.array(
        [[roc_auc_score(labels[row, k], scores[row, k]) for k in range(FINDINGS)] for row in draw(FILMS, replicates)]
    )


def ours(labels: np.ndarray, scores: np.ndarray, replicates: int) -> np.ndarray:
    return aurocs(labels, scores, replicates=replicates).replicates


def tracked(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    patients = np.random.default_rng(2).integers(0, FILMS * 3 // 4, FILMS)
    return performances(labels, scores, [0.5] * FINDINGS, clusters=patients)["auroc"].replicates


def seconds(function: Callable[..., np.ndarray], *arguments: object) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=200, help="for both")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    labels, scores = make_films()
    few = arguments.replicates
    difference = np.abs(ours(labels, scores, few) - scikit_learn(labels, scores, few)).max()
    if difference > 1e-12:
        print(f"the replicates differ by {difference:.1e}")
        return 1
    rounds = [
        (
            seconds(scikit_learn, labels, scores, few),
            seconds(ours, labels, scores, few),
            seconds(ours, labels, scores, REPLICATES),
            seconds(tracked, labels, scores),
        )
        for _ in range(arguments.rounds)
    ]
    ratios = [loop / fast for loop, fast, *_ in rounds]
    loop, fast, whole, night = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(ratios)
    print(
        f"{FINDINGS} findings x {FILMS} films, medians of {arguments.rounds} runs; replicates agree to {difference:.0e}"
    )
    print(f"scikit-learn {sklearn.__version__} loop  {few:6d} replicates  {loop:9.4f} s")
    print(f"worker.bootstrap        {few:6d} replicates  {fast:9.4f} s")
    print(f"worker.bootstrap        {REPLICATES:6d} replicates  {whole:9.4f} s")
    print(f"  all that is tracked   {REPLICATES:6d} replicates  {night:9.4f} s")
    print(
        f"ratio at {few} replicates: {ratio:.0f}, runs {min(ratios):.0f} to {max(ratios):.0f}  "
        f"(target {TARGET:.0f}: {'met' if ratio >= TARGET else 'missed'})"
    )
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
