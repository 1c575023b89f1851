"""Is tonight like the nights it is compared with? Control charts and distances of distributions.

Night after night a number scatters, by the number of films and by itself. The first
:data:`BASELINE_NIGHTS` nights say how much; every later night gets its distance from what was expected, in units of
that scatter. One strange night is nothing: a rule of :data:`PERSISTENCE` must hold.

References
----------
D. B. Laney, "Improved control charts for attributes", Quality Engineering 14(4), 2002: limits of a p-chart widened by
the scatter between nights. D. C. Montgomery, "Introduction to Statistical Quality Control": 20-25 samples for limits,
moving range / 1.128. Western Electric, "Statistical Quality Control Handbook", 1956: runs beyond one, two and three
sigma. N. Siddiqi, "Credit Risk Scorecards", 2006: a population stability index above 0.25 is a shift. B. Yurdakul and
J. Naranjo, "Statistical properties of the population stability index", Journal of Risk Model Validation 14(4), 2020:
without a shift it is (1/n + 1/N) times chi-square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: Nights that say what is usual, with films enough.
BASELINE_NIGHTS = 20
#: A night with fewer films in a group says nothing about it.
LEAST_FILMS = 10
#: Distance from which a population stability index is called a shift.
PSI_LIMIT = 0.25
#: Chance that a night's distance is called large by sampling alone: one in a thousand.
_TAIL = 0.001
#: Kolmogorov-Smirnov: sqrt(-ln(0.001 / 2) / 2).
_KS_FACTOR = 1.949
#: Mean moving range of two standard normal numbers.
_MOVING_RANGE = 1.128
#: What twenty nights say of the scatter is uncertain by a fifth: the upper end of it counts.
_UNCERTAIN = 1.25
#: A share of less than this is counted together with another one.
_LEAST_SHARE = 0.05
_NORMAL = NormalDist()
_SURE = 1e-15


@dataclass(frozen=True)
class Persistence:
    """``nights`` of the last ``of`` nights lie beyond ``sigma`` on the same side."""

    sigma: float
    nights: int
    of: int


#: What makes a signal. Stricter than Western Electric's runs (one beyond 3, two of three beyond 2, four of five beyond
#: 1), which were made for one chart: here are hundreds, and all together may alert once in 60 quiet nights.
PERSISTENCE = (Persistence(3.0, 3, 5), Persistence(2.0, 7, 8))
#: A signal is over when none of so many nights lies beyond three sigma any more.
QUIET_NIGHTS = 5
_FAR = 3.0


def means(
    sums: FloatArray, squares: FloatArray | None, films: FloatArray, baseline: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A chart of nightly means, corrected for the mix of films.

    Each film is expected to be what films of its cell (a station and age band, say) were in the first ``baseline``
    nights, so that more films of one cell are no change.

    Parameters
    ----------
    sums, squares, films
        (nights, cells). Without ``squares`` only the scatter between nights counts.

    Returns
    -------
    (nights,) each: what was seen, what was expected, and the distance in sigma; NaN where there are too few films.
    """
    known, films = _known(films, baseline)
    sums = np.where(known, sums, 0.0)
    usual = _share(sums[:baseline].sum(0), films[:baseline].sum(0))
    total = films.sum(1)
    enough = total >= LEAST_FILMS
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.where(enough, sums.sum(1) / total, np.nan)
        expected = np.where(enough, films @ usual / total, np.nan)
    distance = (seen - expected) * np.sqrt(total)
    within = 0.0
    if squares is not None:
        squared = np.where(known, squares, 0.0)[:baseline].sum(0)
        within = math.sqrt(
            max(0.0, float(squared.sum() - (films[:baseline].sum(0) * usual**2).sum())) / _one(films[:baseline].sum())
        )
    # What never changes still does so in the last digits.
    sigma = max(_between(distance[:baseline]), within, 1e-6 * float(np.abs(usual).max(initial=0.0)), 1e-12)
    return seen, expected, distance / (sigma * np.sqrt(1 + total / _one(films[:baseline].sum())))


def shares(counts: FloatArray, films: FloatArray, baseline: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A p-chart corrected for the mix of films, exact for rare events (binomial), as :func:`means`.

    Parameters
    ----------
    counts, films
        (nights, cells): how many of the films have it.
    """
    known, films = _known(films, baseline)
    counts = np.where(known, counts, 0.0)
    before, of = counts[:baseline].sum(0), films[:baseline].sum(0)
    overall = (before.sum() + 0.5) / (of.sum() + 1.0)
    # A cell of few films leans on the others.
    usual = (before + LEAST_FILMS * overall) / (of + LEAST_FILMS)
    total, having = films.sum(1), counts.sum(1)
    enough = total >= LEAST_FILMS
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.where(enough, having / total, np.nan)
        expected = np.where(enough, films @ usual / total, np.nan)
        plain = (seen - expected) / np.sqrt(expected * (1 - expected) / total)
    scatter = max(1.0, _between(plain[:baseline]))
    exact = np.full(len(total), np.nan)
    for night in np.flatnonzero(enough):
        exact[night] = _binomial_sigma(int(having[night]), int(total[night]), float(expected[night]))
    return seen, expected, exact / (scatter * np.sqrt(1 + total / _one(of.sum())))


def distances(
    counts: npt.NDArray[np.float64], baseline: int, reference: FloatArray | None = None, *, ordered: bool = False
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """How far each night's distribution lies from the usual one.

    Parameters
    ----------
    counts
        (nights, cells, categories). Each cell is compared with itself, as in :func:`means`.
    reference
        (categories,): counts to compare with instead of the first ``baseline`` nights.
    ordered
        The categories are intervals in order: the Kolmogorov-Smirnov distance must be large as well.

    Returns
    -------
    (nights,) each: population stability index, its limit on that night, and the distance in sigma as rules of
    :data:`PERSISTENCE` take it: 3 at the limit, 0 where there are too few films.
    """
    known, films = _known(counts.sum(2), baseline if reference is None else 0)
    counts = np.where(known[:, :, None], counts, 0.0)
    total = films.sum(1)
    if reference is None:
        before = counts[:baseline].sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            usual = np.where(before.sum(1, keepdims=True) > 0, before / before.sum(1, keepdims=True), 0.0)
            expected = films @ usual / total[:, None]
        size, whole = before.sum(), before.sum(0)
    else:
        expected = np.tile(reference / _one(reference.sum()), (len(counts), 1))
        size, whole = reference.sum(), reference
    merge = _merged(whole / _one(whole.sum()), ordered=ordered)
    seen, expected = counts.sum(1) @ merge, expected @ merge
    enough = total >= LEAST_FILMS
    degrees = merge.shape[1] - 1
    index, apart = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    for night in np.flatnonzero(enough):
        index[night], apart[night] = _apart(seen[night], expected[night], size)
    with np.errstate(divide="ignore"):
        sampling = 1 / total + 1 / _one(size)
    limit = np.maximum(PSI_LIMIT, _chi_square(degrees) * sampling) if degrees else np.full(len(counts), np.inf)
    if reference is None and np.isfinite(index[:baseline]).any():
        # Nights differ by more than sampling: one must be stranger than all that were usual.
        limit = np.maximum(limit, np.nanmax(index[:baseline]))
    beyond = (index > limit) & (~np.array(ordered) | (apart > _KS_FACTOR * np.sqrt(sampling)))
    return index, limit, np.where(beyond, np.maximum(_FAR, _FAR * index / limit), 0.0)


def is_signal(sigmas: FloatArray) -> bool:
    """Whether a rule of :data:`PERSISTENCE` holds, with the last night among those beyond.

    Parameters
    ----------
    sigmas
        (nights,): distances of the nights after the baseline; NaN are no nights.
    """
    sigmas = sigmas[~np.isnan(sigmas)]
    if not sigmas.size:
        return False
    side = np.sign(sigmas[-1])
    return any(
        side * sigmas[-1] > rule.sigma and int((side * sigmas[-rule.of :] > rule.sigma).sum()) >= rule.nights
        for rule in PERSISTENCE
    )


def is_over(sigmas: FloatArray) -> bool:
    """Whether a signal that was there has gone: none of the last :data:`QUIET_NIGHTS` nights is far off."""
    sigmas = sigmas[~np.isnan(sigmas)]
    return not is_signal(sigmas) and not (np.abs(sigmas[-QUIET_NIGHTS:]) > _FAR).any()


def _known(films: FloatArray, baseline: int) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    """Cells that the baseline knows, for every night, and the films of these."""
    known = films[:baseline].sum(0) >= LEAST_FILMS if baseline else np.ones(films.shape[1], bool)
    return np.broadcast_to(known, films.shape), np.where(known, films, 0.0)


def _share(parts: FloatArray, of: FloatArray) -> FloatArray:
    return np.divide(parts, of, out=np.zeros_like(parts, dtype=np.float64), where=of > 0)


def _one(number: float) -> float:
    return max(float(number), 1.0)


def _between(values: FloatArray) -> float:
    """Standard deviation between successive nights, by the mean moving range; rather too large than too small."""
    values = values[~np.isnan(values)]
    return float(_UNCERTAIN * np.abs(np.diff(values)).mean() / _MOVING_RANGE) if len(values) > 1 else 0.0


def _binomial_sigma(count: int, films: int, chance: float) -> float:
    """How far ``count`` of ``films`` lies from what ``chance`` makes usual, as a normal number would."""
    mean, variance = films * chance, films * chance * (1 - chance)
    side = 1 if count >= mean else -1
    if variance > 100:
        return side * max(0.0, (abs(count - mean) - 0.5) / math.sqrt(variance))
    log = math.lgamma(films + 1) - math.lgamma(count + 1) - math.lgamma(films - count + 1)
    first = math.exp(log + count * math.log(chance) + (films - count) * math.log1p(-chance))
    odds = chance / (1 - chance)
    if side > 0:
        terms = np.arange(count, min(films, count + 400), dtype=np.float64)
        ratios = (films - terms) / (terms + 1) * odds
    else:
        terms = np.arange(count, max(0, count - 400), -1, dtype=np.float64)
        ratios = terms / (films - terms + 1) / odds
    tail = first * (1 + float(np.cumprod(ratios).sum()))
    return side * max(0.0, -_NORMAL.inv_cdf(min(1 - _SURE, max(_SURE, tail))))


def _merged(usual: FloatArray, *, ordered: bool) -> FloatArray:
    """(categories, fewer categories) of 0 and 1 so that each has a share worth comparing."""
    if ordered:
        groups, share, group = list[int](), 0.0, 0
        for part in usual:
            if share >= _LEAST_SHARE and usual[len(groups) :].sum() >= _LEAST_SHARE:
                group, share = group + 1, 0.0
            groups.append(group)
            share += float(part)
    else:
        # What is rare, or was never there, is "something else".
        large = np.flatnonzero(usual >= _LEAST_SHARE)
        groups = [int(np.searchsorted(large, place)) if place in large else len(large) for place in range(len(usual))]
    matrix = np.zeros((len(usual), max(groups) + 1))
    matrix[np.arange(len(usual)), groups] = 1.0
    return matrix


def _apart(seen: FloatArray, expected: FloatArray, size: float) -> tuple[float, float]:
    """Population stability index and Kolmogorov-Smirnov distance; empty categories count as half a film."""
    total = seen.sum()
    here = (seen + 0.5) / (total + 0.5 * len(seen))
    there = (expected * size + 0.5) / (size + 0.5 * len(seen))
    index = float(((here - there) * np.log(here / there)).sum())
    return index, float(np.abs(np.cumsum(seen / total - expected)).max())


def _chi_square(degrees: int) -> float:
    """The value that chi-square exceeds once in a thousand times (Wilson and Hilferty)."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + _NORMAL.inv_cdf(1 - _TAIL) * math.sqrt(part)) ** 3
