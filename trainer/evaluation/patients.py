"""Bootstrap intervals that draw patients, not films.

Films of one patient are alike, so an interval that draws films one by one is too narrow. Here a replicate is as
many patients as there are, drawn with replacement, each with all its films. Where every patient has one film
this is the bootstrap of :mod:`worker.bootstrap`, whose areas and percentiles are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from worker.bootstrap import Bootstrap, aurocs_of, draw

FloatArray = npt.NDArray[np.float64]

_CHUNK = 500  # replicates at a time: their films' places stay below some ten megabytes


def patient_aurocs(
    labels: npt.ArrayLike, scores: npt.ArrayLike, patients: Sequence[str], *, replicates: int, seed: int
) -> Bootstrap:
    """Area under the ROC curve of each column; ``labels`` and ``scores`` (films, columns) as for
    :func:`worker.bootstrap.aurocs`, ``patients`` of each film.

    Films of equal ``patients``, ``replicates`` and ``seed`` are drawn alike, so replicates can be subtracted.
    """
    truth, values = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    films = len(truth)
    if not films:
        return Bootstrap(np.full(truth.shape[1], np.nan), np.full((replicates, truth.shape[1]), np.nan))
    # Replicates have unequal numbers of films: a film that says nothing fills the shorter ones up.
    truth = np.concatenate([truth, np.full((1, truth.shape[1]), np.nan)])
    values = np.concatenate([values, np.zeros((1, values.shape[1]))])
    parts = [aurocs_of(truth, values, np.arange(films)[None])]
    parts += [aurocs_of(truth, values, _places(counts)) for counts in _film_counts(patients, replicates, seed)]
    areas = np.concatenate(parts)
    return Bootstrap(areas[0], areas[1:])


def patient_means(values: npt.ArrayLike, patients: Sequence[str], *, replicates: int, seed: int) -> Bootstrap:
    """The mean over films of each column of ``values`` (films, columns), NaN where a film does not have it."""
    array = np.asarray(values, np.float64)
    known = ~np.isnan(array)
    members = np.concatenate([np.where(known, array, 0.0), known], axis=1)
    everything = np.ones((1, len(array)), np.int16)
    drawn = _film_counts(patients, replicates, seed) if len(array) else ()
    total, number = np.split(np.concatenate([counts @ members for counts in (everything, *drawn)]), 2, axis=1)
    means = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return Bootstrap(means[0], means[1:])


def _film_counts(patients: Sequence[str], replicates: int, seed: int) -> Iterator[npt.NDArray[np.int16]]:
    """How often each film is in each replicate: (replicates, films), a few replicates at a time."""
    named, owner = np.unique(np.asarray(patients, np.str_), return_inverse=True)
    drawn = draw(len(named), replicates, seed)
    for start in range(0, replicates, _CHUNK):
        counts = [np.bincount(row, minlength=len(named)) for row in drawn[start : start + _CHUNK]]
        yield np.asarray(counts, np.int16)[:, owner]


def _places(counts: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Counts as places of films, rows filled up with the place after the last film."""
    replicates, films = counts.shape
    lengths = counts.sum(axis=1, dtype=np.int64)
    places = np.full((replicates, int(lengths.max())), films, np.int64)
    places[np.arange(places.shape[1]) < lengths[:, None]] = np.repeat(
        np.tile(np.arange(films), replicates), counts.ravel()
    )
    return places
