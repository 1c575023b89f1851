"""Phantoms as training samples: drawn from seeds, preprocessed as the worker does it at night."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from schema.findings import Finding
from worker.film.preprocess import apply
from worker.phantom import make_phantom

SIZE = 256
CELLS = 16
PREPROCESS: tuple[dict[str, Any], ...] = (
    {"step": "percentile", "low": 0.5, "high": 99.5},
    {"step": "resize", "height": SIZE, "width": SIZE, "mode": "area", "fit": "stretch"},
)
FINDINGS: tuple[Finding, ...] = (Finding.PNEUMONIA, Finding.NO_FINDING)

_CHUNK = 32
_NEGATIVES = 0.18
_ADULTS = 0.3
_DAYS_PER_YEAR = 365.25


@dataclass(frozen=True)
class Samples:
    """Pictures and their truth.

    ``pictures`` is uint8 (N, 256, 256), preprocessed, 255 is 1.0; ``labels`` uint8 (N, 256, 256);
    ``opacities`` float32 (N, 16, 16), mean consolidation of each cell, 0-1; ``targets`` float32
    (N, findings), all zero for what is no chest.
    """

    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    opacities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pictures)

    def chests(self) -> Samples:
        """Those that show a frontal chest."""
        return self._at(np.flatnonzero(self.targets.sum(axis=1) > 0))

    def strangers(self) -> Samples:
        """Those that do not."""
        return self._at(np.flatnonzero(self.targets.sum(axis=1) == 0))

    def batch(self, rng: np.random.Generator, size: int) -> Samples:
        """``size`` different samples at random."""
        return self._at(rng.choice(len(self), size, replace=len(self) < size))

    def _at(self, index: npt.NDArray[Any]) -> Samples:
        return Samples(self.pictures[index], self.labels[index], self.opacities[index], self.targets[index])


def draw_samples(seed: int, count: int, randomise: tuple[float, float] = (0.15, 1.0)) -> Samples:
    """Draw ``count`` preprocessed phantoms of mixed age, shape and quality; same seed, same samples."""
    cv2.setNumThreads(1)
    pictures = np.empty((count, SIZE, SIZE), np.uint8)
    labels = np.empty((count, SIZE, SIZE), np.uint8)
    opacities = np.empty((count, CELLS, CELLS), np.float32)
    targets = np.zeros((count, len(FINDINGS)), np.float32)
    rng = np.random.Generator(np.random.PCG64([seed, count]))
    for index in range(count):
        rows, columns = (int(n) for n in rng.integers(216, 320, 2))
        adult = rng.random() < _ADULTS
        phantom = make_phantom(
            int(rng.integers(2**48)),
            rows=rows,
            columns=columns,
            age_days=int(rng.uniform(16, 80) * _DAYS_PER_YEAR) if adult else None,
            negative=bool(rng.random() < _NEGATIVES),
            randomise=float(rng.uniform(*randomise)),
        )
        picture = apply(PREPROCESS, phantom.image, np.ones((rows, columns), np.bool_))
        pictures[index] = np.round(picture[0] * 255)
        labels[index] = cv2.resize(phantom.labels, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
        opacities[index] = cv2.resize(phantom.opacity, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        targets[index] = [finding in phantom.findings for finding in FINDINGS]
    return Samples(pictures, labels, opacities, targets)


def draw_many(seed: int, count: int, workers: int) -> Samples:
    """Like :func:`draw_samples`, in ``workers`` processes; what comes out does not depend on how many."""
    seeds = [(seed + chunk, min(_CHUNK, count - chunk * _CHUNK)) for chunk in range(-(-count // _CHUNK))]
    if workers < 2:
        parts = [draw_samples(*arguments) for arguments in seeds]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            parts = pool.starmap(draw_samples, seeds, chunksize=1)
    return Samples(
        np.concatenate([part.pictures for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.opacities for part in parts]),
        np.concatenate([part.targets for part in parts]),
    )
