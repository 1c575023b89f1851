"""Bootstrap intervals over films or patients: AUROC, average precision, rates and means, many at a time.

The classifier paper (section 4.2) gives 95 % intervals from 10,000 replications. A replicate is
as many films as there are, drawn with replacement; it is the same draw for every finding, so
that the macro mean of a replicate is the mean of numbers from one and the same set of films.
Films count as independent, which makes the interval of several films per patient too narrow. With
``clusters`` a replicate is as many patients as there are, each with all its films.

What the paper leaves open, decided here:

* Intervals are the 2.5th and 97.5th percentile of the replicates.
* A replicate in which a number cannot be computed (one class absent, nothing called positive)
  is NaN and left out of that number's interval; :attr:`Interval.replicates` says how many remain.
* A finding that cannot be computed on the films themselves is left out of the macro mean. Of the
  others all must be there: a replicate that lacks one is left out of the macro mean, because a mean
  over fewer findings would be another quantity.
* Labels that are NaN are not known: the film takes part in the draw, but not in that finding.

No replicate is ever sorted: scores are sorted once, a replicate is how often each film was drawn,
and the area is a sum over cumulative counts, exact in integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

REPLICATES = 10_000

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int32]
#: How often each film was drawn: (films, replicates), integers.
CountArray = npt.NDArray[np.signedinteger]

#: Counts worked on at a time: they stay in a core's cache.
_CHUNK_ELEMENTS = 1 << 16
#: Sums of products of counts stay below the square of the films: int32 holds this many.
_INT32_FILMS = 1 << 15


@dataclass(frozen=True)
class Interval:
    """A number on the films themselves with its 95 % interval; NaN where it cannot be computed.

    ``replicates`` is how many replicates the interval rests on.
    """

    value: float
    low: float
    high: float
    replicates: int


@dataclass(frozen=True)
class Bootstrap:
    """K numbers on the films themselves and on each replicate.

    Attributes
    ----------
    values
        (K,): on the films themselves.
    replicates
        (replicates, K); NaN where a replicate does not give the number.
    """

    values: FloatArray
    replicates: FloatArray

    def intervals(self) -> tuple[Interval, ...]:
        """One interval per number."""
        return tuple(
            _interval(float(value), column) for value, column in zip(self.values, self.replicates.T, strict=True)
        )

    def macro(self) -> Interval:
        """The mean over the numbers that can be computed on the films themselves."""
        return _interval(*self._macro())

    def macro_above(self, other: Bootstrap) -> Interval:
        """By how much this macro mean exceeds that of ``other``, replicate by replicate.

        Both must rest on the same films, number of replicates and seed: only then is the
        difference of a replicate that of one set of films.
        """
        (value, replicates), (theirs, their_replicates) = self._macro(), other._macro()
        return _interval(value - theirs, replicates - their_replicates)

    def _macro(self) -> tuple[float, FloatArray]:
        known = ~np.isnan(self.values)
        if not known.any():
            return float("nan"), np.full(len(self.replicates), np.nan)
        return float(self.values[known].mean()), self.replicates[:, known].mean(axis=1)


def draw(films: int, replicates: int = REPLICATES, seed: int = 1) -> IndexArray:
    """The films of each replicate: (replicates, films), values 0 to ``films`` - 1.

    The functions below draw the same ones for the same seed, a few at a time.
    """
    return _generator(seed).integers(0, films, (replicates, films), np.int32)


def aurocs(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 1,
) -> Bootstrap:
    """Area under the ROC curve of every finding (ties count one half).

    Parameters
    ----------
    labels
        (films, findings): 1 or True positive, 0 or False negative, NaN not known.
    scores
        (films, findings), finite, higher for positive.
    clusters
        (films,): whose film each is, any values that can be told apart; None: every film stands for itself.

    Raises
    ------
    ValueError
        Shapes differ, a label is something else, a score is not finite.
    """
    truth, values = _pair(labels, scores)
    statistic = _auroc_statistic(truth, values)
    return _resample(len(truth), truth.shape[1], statistic, replicates=replicates, seed=seed, clusters=clusters)


def aurocs_of(labels: npt.ArrayLike, scores: npt.ArrayLike, indices: npt.NDArray[np.integer]) -> FloatArray:
    """Areas on explicit replicates: ``indices`` (replicates, drawn) of films; returns (replicates, findings).

    ``labels`` and ``scores`` as for :func:`aurocs`.
    """
    truth, values = _pair(labels, scores)
    statistic = _auroc_statistic(truth, values)
    step = _chunk(len(truth))
    parts = [statistic(_counts(indices[start : start + step], len(truth))) for start in range(0, len(indices), step)]
    return np.concatenate(parts) if parts else np.empty((0, truth.shape[1]))


def average_precisions(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 1,
) -> Bootstrap:
    """Average precision of every finding: precision, weighted by the recall that each distinct score adds.

    Parameters and errors as for :func:`aurocs`.
    """
    truth, values = _pair(labels, scores)
    statistic = _precision_statistic(truth, values)
    return _resample(len(truth), truth.shape[1], statistic, replicates=replicates, seed=seed, clusters=clusters)


def operations(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    thresholds: Sequence[float],
    *,
    clusters: npt.ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 1,
) -> dict[str, Bootstrap]:
    """``"sensitivity"``, ``"specificity"`` and ``"f1"`` of every finding at fixed thresholds.

    ``labels``, ``scores`` and ``clusters`` as for :func:`aurocs`; a film is positive from its finding's threshold on.
    A threshold that is NaN gives NaN. The thresholds are not chosen anew in each replicate: they come
    from other films (the validation part).
    """
    truth, values = _pair(labels, scores)
    statistic = _operation_statistic(truth, values, thresholds)
    every = _resample(len(truth), 3 * truth.shape[1], statistic, replicates=replicates, seed=seed, clusters=clusters)
    return _parts(every, _RATES)


def performances(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    thresholds: Sequence[float],
    *,
    clusters: npt.ArrayLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 1,
) -> dict[str, Bootstrap]:
    """``"auroc"``, ``"average_precision"`` and the rates of :func:`operations`, all from the same draws."""
    truth, values = _pair(labels, scores)
    statistics = (
        _auroc_statistic(truth, values),
        _precision_statistic(truth, values),
        _operation_statistic(truth, values, thresholds),
    )

    def statistic(counts: CountArray) -> FloatArray:
        return np.concatenate([each(counts) for each in statistics], axis=1)

    names = ("auroc", "average_precision", *_RATES)
    return _parts(
        _resample(
            len(truth), len(names) * truth.shape[1], statistic, replicates=replicates, seed=seed, clusters=clusters
        ),
        names,
    )


def means(
    values: npt.ArrayLike, *, clusters: npt.ArrayLike | None = None, replicates: int = REPLICATES, seed: int = 1
) -> Bootstrap:
    """The mean over films of each of K quantities, such as the Dice of every region.

    ``values`` has shape (films, K); NaN where a film does not have the quantity. ``clusters`` as for :func:`aurocs`.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 2:
        raise ValueError(f"values must have the shape (films, quantities), they have {array.shape}")
    known = ~np.isnan(array)
    members = np.concatenate([np.where(known, array, 0.0), known], axis=1)

    def statistic(counts: CountArray) -> FloatArray:
        total, number = np.split(counts.T.astype(np.float64) @ members, 2, axis=1)
        return _ratio(total, number)

    return _resample(len(array), array.shape[1], statistic, replicates=replicates, seed=seed, clusters=clusters)


_RATES = ("sensitivity", "specificity", "f1")

Statistic = Callable[[CountArray], FloatArray]


@dataclass(frozen=True)
class _Ranked:
    """One finding, sorted once.

    ``positives`` and ``negatives`` are films, the negatives by rising score; ``below`` and
    ``not_above`` count, per positive, the negatives that score less and that score no more.
    """

    positives: npt.NDArray[np.intp]
    negatives: npt.NDArray[np.intp]
    below: npt.NDArray[np.intp]
    not_above: npt.NDArray[np.intp]


def _ranked(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], films: npt.NDArray[np.intp]) -> _Ranked:
    positive = labels.astype(bool)
    order = np.argsort(scores[~positive], kind="stable")
    ordered = scores[~positive][order]
    return _Ranked(
        films[positive],
        films[~positive][order],
        np.searchsorted(ordered, scores[positive], side="left"),
        np.searchsorted(ordered, scores[positive], side="right"),
    )


def _area(ranked: _Ranked, counts: CountArray) -> FloatArray:
    cumulative = np.zeros((len(ranked.negatives) + 1, counts.shape[1]), counts.dtype)
    np.cumsum(counts[ranked.negatives], axis=0, out=cumulative[1:], dtype=counts.dtype)
    positives = counts[ranked.positives]
    twice = cumulative[ranked.below]
    twice += cumulative[ranked.not_above]
    ordered_pairs = np.einsum("ij,ij->j", positives, twice).astype(np.float64)
    pairs = positives.sum(axis=0, dtype=np.float64) * cumulative[-1]
    return _ratio(ordered_pairs, 2.0 * pairs)


def _auroc_statistic(truth: FloatArray, scores: FloatArray) -> Statistic:
    ranked = []
    for column in range(truth.shape[1]):
        known = np.flatnonzero(~np.isnan(truth[:, column]))
        ranked.append(_ranked(truth[known, column] == 1.0, scores[known, column], known))

    def statistic(counts: CountArray) -> FloatArray:
        return np.stack([_area(finding, counts) for finding in ranked], axis=1)

    return statistic


def _precision_statistic(truth: FloatArray, scores: FloatArray) -> Statistic:
    ranked = []
    for column in range(truth.shape[1]):
        known = np.flatnonzero(~np.isnan(truth[:, column]))
        films = known[np.argsort(-scores[known, column], kind="stable")]
        falling, positive = scores[films, column], truth[films, column] == 1.0
        # Films of one score are called positive together, and only a score with a positive adds to the sum.
        ends = np.searchsorted(-falling, -np.unique(falling[positive])[::-1], side="right") - 1
        ranked.append((films, films[positive], ends, np.cumsum(positive)[ends] - 1))

    def statistic(counts: CountArray) -> FloatArray:
        return np.stack([_precision(*finding, counts) for finding in ranked], axis=1)

    return statistic


def _precision(
    films: npt.NDArray[np.intp],
    positives: npt.NDArray[np.intp],
    ends: npt.NDArray[np.intp],
    positive_ends: npt.NDArray[np.intp],
    counts: CountArray,
) -> FloatArray:
    if not positives.size:
        return np.full(counts.shape[1], np.nan)
    called = np.cumsum(counts[films], axis=0, dtype=counts.dtype)[ends].astype(np.float64)
    found = np.cumsum(counts[positives], axis=0, dtype=counts.dtype)[positive_ends].astype(np.float64)
    gained = np.diff(found, axis=0, prepend=0.0)
    # Nothing was drawn yet where nothing is called: then nothing was gained either.
    np.divide(found, np.maximum(called, 1.0, out=called), out=called)
    return _ratio(np.einsum("ij,ij->j", gained, called), found[-1])


def _operation_statistic(truth: FloatArray, scores: FloatArray, thresholds: Sequence[float]) -> Statistic:
    if len(thresholds) != truth.shape[1]:
        raise ValueError(f"{truth.shape[1]} findings need as many thresholds, got {len(thresholds)}")
    positive, negative = truth == 1.0, truth == 0.0
    called = scores >= np.asarray(thresholds, np.float64)
    # Columns: found, positives, cleared, negatives, called positive among the known.
    members = np.concatenate(
        [positive & called, positive, negative & ~called, negative, called & (positive | negative)], axis=1
    ).astype(np.float64)

    def statistic(counts: CountArray) -> FloatArray:
        sums = counts.T.astype(np.float64) @ members
        found, positives, cleared, negatives, alarms = np.split(sums, 5, axis=1)
        rates = [_ratio(found, positives), _ratio(cleared, negatives), _ratio(2.0 * found, positives + alarms)]
        joined = np.concatenate(rates, axis=1)
        joined[:, np.tile(np.isnan(thresholds), len(_RATES))] = np.nan
        return joined

    return statistic


def _parts(every: Bootstrap, names: Sequence[str]) -> dict[str, Bootstrap]:
    """Columns that stand name by name, each with all findings, under their names."""
    values = np.split(every.values, len(names))
    replicates = np.split(every.replicates, len(names), axis=1)
    return {name: Bootstrap(*part) for name, *part in zip(names, values, replicates, strict=True)}


def _resample(
    films: int,
    quantities: int,
    statistic: Statistic,
    *,
    replicates: int,
    seed: int,
    clusters: npt.ArrayLike | None,
) -> Bootstrap:
    if not films:
        return Bootstrap(np.full(quantities, np.nan), np.full((replicates, quantities), np.nan))
    members = None if clusters is None else _numbered(clusters, films)
    units = films if members is None else int(members.max()) + 1
    most = films if members is None else units * int(np.bincount(members).max())
    values = statistic(np.ones((films, 1), _count_type(most)))[0]
    generator = _generator(seed)
    result = np.empty((replicates, quantities))
    step = _chunk(films)
    for start in range(0, replicates, step):
        count = min(step, replicates - start)
        counts = _counts(generator.integers(0, units, (count, units), np.int32), units)
        if members is not None:
            counts = counts.astype(_count_type(most), copy=False)[members]
        result[start : start + count] = statistic(counts)
    return Bootstrap(values, result)


def _numbered(clusters: npt.ArrayLike, films: int) -> npt.NDArray[np.intp]:
    """Clusters as 0, 1, 2, ... in the order in which they first occur: films of their own are drawn as without any."""
    names = np.asarray(clusters)
    if names.shape != (films,):
        raise ValueError(f"clusters of shape {names.shape} do not name the patient of each of {films} films")
    _, first, places = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[places]


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _chunk(films: int) -> int:
    return max(1, _CHUNK_ELEMENTS // films)


def _counts(indices: npt.NDArray[np.integer], films: int) -> CountArray:
    """(replicates, drawn) of films to how often each film was drawn, (films, replicates)."""
    replicates = len(indices)
    places = indices.T.astype(np.int64) * replicates + np.arange(replicates)
    counts = np.bincount(places.ravel(), minlength=films * replicates)
    return counts.reshape(films, replicates).astype(_count_type(indices.shape[1]))


def _count_type(drawn: int) -> np.dtype[np.signedinteger]:
    return np.dtype(np.int32 if drawn <= _INT32_FILMS else np.int64)


def _pair(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    truth, values = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if truth.ndim != 2 or truth.shape != values.shape:
        raise ValueError(f"labels of shape {truth.shape} and scores of shape {values.shape} are not (films, findings)")
    if not (np.isnan(truth) | (truth == 0.0) | (truth == 1.0)).all():
        raise ValueError("a label is neither 0 nor 1 nor NaN")
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    return truth, values


def _interval(value: float, replicates: FloatArray) -> Interval:
    usable = replicates[~np.isnan(replicates)]
    if not usable.size or np.isnan(value):
        return Interval(value, float("nan"), float("nan"), 0)
    low, high = np.percentile(usable, (2.5, 97.5))
    return Interval(value, float(low), float(high), int(usable.size))


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
