"""Linear probes: how far simple facts about a film tell a finding, without its anatomy.

Two probes. One sees only what a film's making leaves on it: its size and shape, its borders, the brightness of its
edges and bright marks in its corners. The other sees the film at 28 x 28 pixels. Both are logistic regressions
with a ridge penalty on standardised inputs, fitted on the training part. A data set that they solve is easy
or leaky, whatever a network's figure on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]

SIDES = ("left", "right", "upper", "lower")
_CORNERS = ("upper left", "upper right", "lower left", "lower right")

#: What the first probe sees of a film.
TRAITS: tuple[str, ...] = (
    "height",
    "width",
    "aspect",
    *(f"{side} border" for side in SIDES),
    *(f"{side} edge, brightness" for side in SIDES),
    *(f"{side} edge, contrast" for side in SIDES),
    *(f"{corner} mark" for corner in _CORNERS),
)

#: Side of the second probe's picture, in pixels.
THUMBNAIL = 28

#: Weight of half the squared coefficients beside the sum of the films' losses: 1 is scikit-learn's C = 1. Pixels are
#: many and alike, so theirs is held shorter.
TRAITS_RIDGE = 1.0
PIXELS_RIDGE = 100.0

#: How far apart a matched pair may be, in standard deviations of the log odds (Austin 2011).
CALIPER = 0.2

#: A line is part of a uniform border when its values spread (standard deviation) less than this.
_UNIFORM = 0.01
#: The widest border looked for, and the edges and corners looked at, as shares of a side.
_WIDEST, _EDGE, _CORNER = 0.3, 0.05, 0.2
#: Lead letters and burnt-in text are about white.
_WHITE = 0.95


@dataclass(frozen=True)
class Probe:
    """A fitted logistic regression on standardised inputs: see :func:`fit_probe`."""

    mean: FloatArray
    scale: FloatArray
    coefficients: FloatArray
    intercept: float

    def logits(self, inputs: FloatArray) -> FloatArray:
        """(films,) log odds of (films, inputs)."""
        result: FloatArray = (inputs - self.mean) / self.scale @ self.coefficients + self.intercept
        return result


def traits_of(picture: npt.NDArray[np.float32], size: tuple[float, float] | None = None) -> FloatArray:
    """What a film's making left on it, in the order of :data:`TRAITS`.

    Parameters
    ----------
    picture
        float32 (rows, columns), 0-1.
    size
        Rows and columns of the original, where the data set's makers resized it; the picture's own if None.

    Returns
    -------
    float64 (19,): pixels for height and width, their ratio (width over height), and shares 0-1: of the side that a
    uniform border takes, mean and standard deviation of the outer 5 % along each side inside of it, white
    pixels in each corner of 20 % x 20 %.
    """
    rows, columns = size or picture.shape
    # Each side in turn becomes the first rows.
    turned = {"left": picture.T, "right": picture.T[::-1], "upper": picture, "lower": picture[::-1]}
    borders = {side: _border(lines) for side, lines in turned.items()}
    edges = []
    for side, lines in turned.items():
        width = max(1, round(_EDGE * len(lines)))
        edges.append(lines[borders[side] : borders[side] + width])
    height, width = (max(1, round(_CORNER * length)) for length in picture.shape)
    corners = (
        picture[:height, :width],
        picture[:height, -width:],
        picture[-height:, :width],
        picture[-height:, -width:],
    )
    return np.array(
        [
            rows,
            columns,
            columns / rows,
            *(borders[side] / len(turned[side]) for side in SIDES),
            *(edge.mean() for edge in edges),
            *(edge.std() for edge in edges),
            *((corner >= _WHITE).mean() for corner in corners),
        ],
        np.float64,
    )


def thumbnail(picture: npt.NDArray[np.float32]) -> FloatArray:
    """The film stretched to 28 x 28 by area means, flat: float64 (784,)."""
    small = cv2.resize(picture, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float64).ravel()


def fit_probe(inputs: FloatArray, labels: FloatArray, ridge: float) -> Probe:
    """Logistic regression with a ridge penalty, to its minimum (L-BFGS).

    Parameters
    ----------
    inputs
        (films, inputs), finite; one that never varies gets no say.
    labels
        (films,): 1 or 0, both present.
    ridge
        See :data:`TRAITS_RIDGE`; the intercept is not held.

    Raises
    ------
    ValueError
        A class is absent.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError("a probe needs films with and without the finding")
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    standard = torch.from_numpy((inputs - mean) / scale)
    truth = torch.from_numpy(np.asarray(labels, np.float64))
    weights = torch.zeros(standard.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = standard @ weights[:-1] + weights[-1]
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
        total = losses + ridge / 2 * weights[:-1].square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    fitted = weights.detach().numpy()
    return Probe(mean, scale, fitted[:-1].copy(), float(fitted[-1]))


def matched_films(logits: FloatArray, labels: FloatArray) -> npt.NDArray[np.int64]:
    """Films with the finding paired with films without it that look alike, nearest pairs first, none twice.

    Parameters
    ----------
    logits
        (films,): the traits probe's log odds, by which films are alike (a propensity score: Austin 2011, "An
        introduction to propensity score methods"). A pair may be :data:`CALIPER` of their standard deviation apart.
    labels
        (films,): 1, 0 or NaN for not known.

    Returns
    -------
    The places of the paired films, ascending.
    """
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    apart = np.abs(logits[positive][:, None] - logits[negative])
    close = np.argwhere(apart <= CALIPER * np.std(logits[np.concatenate([positive, negative])]))
    order = np.argsort(apart[close[:, 0], close[:, 1]], kind="stable")
    taken: set[int] = set()
    for p, n in zip(positive[close[order, 0]].tolist(), negative[close[order, 1]].tolist(), strict=True):
        if p not in taken and n not in taken:
            taken |= {p, n}
    return np.array(sorted(taken), np.int64)


def standardised_differences(inputs: FloatArray, labels: FloatArray) -> FloatArray:
    """(inputs,): difference of the means of the two classes, in their pooled standard deviations; NaN without one.

    Below 0.1 counts as balanced (Austin 2011).
    """
    positive, negative = inputs[labels == 1], inputs[labels == 0]
    if not len(positive) or not len(negative):
        return np.full(inputs.shape[1], np.nan)
    pooled = np.sqrt((positive.var(axis=0) + negative.var(axis=0)) / 2)
    difference = positive.mean(axis=0) - negative.mean(axis=0)
    result: FloatArray = np.divide(difference, pooled, out=np.zeros_like(difference), where=pooled > 0)
    return result


def _border(lines: npt.NDArray[np.float32]) -> int:
    """How many lines from the first are uniform; no more than :data:`_WIDEST` of them."""
    most = max(1, round(_WIDEST * len(lines)))
    uneven = np.flatnonzero(lines[:most].std(axis=1) > _UNIFORM)
    return int(uneven[0]) if uneven.size else most
