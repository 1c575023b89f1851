"""Losses by the names recipes call them, with their options checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from trainer.errors import RecipeError
from trainer.losses.class_frequency import ClassFrequencyCrossEntropy, ClassFrequencyDice
from trainer.losses.classification import BinaryCrossEntropy, DistributionBalanced, Focal, check_labels
from trainer.losses.jaccard import BinaryCrossEntropyJaccard
from trainer.losses.segmentation import CrossEntropy, CrossEntropyDice, GeneralisedDice
from trainer.losses.statistics import LabelStatistics
from trainer.losses.truth import Activation
from trainer.losses.tversky import Tversky
from trainer.recipe import nearest
from trainer.region_losses import REGION_LOSSES

#: Logits (N, channels, H, W), truth and pixel weights (N, H, W) or None to a scalar. Truth is int64 (N, H, W), or float
#: (N, R, H, W) for those that :data:`trainer.region_losses.REGION_LOSSES` calls soft: :mod:`trainer.losses.truth`.
SegmentationLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

#: Logits (N, F) and targets (N, F), NaN where not known, to a scalar.
ClassificationLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Number:
    """An option that is a number: its default and the range it must lie in."""

    default: float
    low: float = 0.0
    high: float = math.inf
    above: bool = False  # whether ``low`` itself is too little

    def read(self, key: str, value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not self.low <= value <= self.high or (self.above and value == self.low):
            least = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
            most = "" if self.high == math.inf else f", {self.high:g} at most"
            raise RecipeError(f"loss.options.{key} is {value!r}: it must be a number, {least}{most}.")
        return float(value)


@dataclass(frozen=True)
class _Flag:
    """An option that is true or false."""

    default: bool

    def read(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise RecipeError(f"loss.options.{key} is {value!r}: it must be true or false.")
        return value


_DISTRIBUTION_BALANCED = {
    "alpha": _Number(0.1),
    "beta": _Number(10.0, above=True),
    "mu": _Number(0.2),
    "lambda": _Number(2.0, above=True),
    "kappa": _Number(0.05),
}

#: The losses that have no weight for a film without any positive label.
_NEEDING_A_POSITIVE = frozenset({"distribution_balanced", "modified_distribution_balanced"})

_Builder = Callable[[LabelStatistics, dict[str, float]], ClassificationLoss]

#: Name → options and how the loss is made of them.
_CLASSIFICATION: dict[str, tuple[dict[str, _Number], _Builder]] = {
    "binary_cross_entropy": ({}, lambda statistics, options: BinaryCrossEntropy()),
    "weighted_binary_cross_entropy": ({}, lambda statistics, options: BinaryCrossEntropy.weighted(statistics)),
    "focal": (
        {"gamma": _Number(2.0), "alpha": _Number(0.25, high=1.0)},
        lambda statistics, options: Focal(**options),
    ),
    "distribution_balanced": (
        _DISTRIBUTION_BALANCED,
        lambda statistics, options: DistributionBalanced(statistics, modified=False, **options),
    ),
    "modified_distribution_balanced": (
        _DISTRIBUTION_BALANCED,
        lambda statistics, options: DistributionBalanced(statistics, modified=True, **options),
    ),
}

#: Name → the loss, and whether it takes ``class_weights``.
_SEGMENTATION: dict[str, tuple[Callable[..., SegmentationLoss], bool]] = {
    "cross_entropy": (CrossEntropy, True),
    "generalised_dice": (GeneralisedDice, False),
    "cross_entropy_dice": (CrossEntropyDice, True),
}

_WEIGHTED = {"weighted": _Flag(True)}
_TVERSKY = {"alpha": _Number(0.6), "beta": _Number(0.4)}

#: The losses that are told the network's activation: name → options and the loss.
_BY_ACTIVATION: dict[str, tuple[Mapping[str, _Number | _Flag], Callable[..., SegmentationLoss]]] = {
    "class_frequency_cross_entropy": (_WEIGHTED, ClassFrequencyCrossEntropy),
    "class_frequency_dice": (_WEIGHTED, ClassFrequencyDice),
    "tversky": (_TVERSKY, Tversky),
    "focal_tversky": ({**_TVERSKY, "exponent": _Number(0.675, above=True)}, Tversky),
    "binary_cross_entropy_jaccard": (
        {"jaccard_weight": _Number(1.0)},
        lambda activation, **options: BinaryCrossEntropyJaccard(**options),
    ),
}

SEGMENTATION_LOSSES: tuple[str, ...] = (*_SEGMENTATION, *_BY_ACTIVATION)
CLASSIFICATION_LOSSES: tuple[str, ...] = tuple(_CLASSIFICATION)


def segmentation_loss(
    name: str, options: Mapping[str, Any], regions: Sequence[str], activation: Activation = "softmax"
) -> SegmentationLoss:
    """A loss for regions.

    Parameters
    ----------
    name
        One of :data:`SEGMENTATION_LOSSES`.
    options
        ``class_weights``: region name → weight above 0, 1 where not given; of Holste's two that have cross-entropy.
        ``weighted`` (true) of Novikov's two; ``alpha`` (0.6, false negatives), ``beta`` (0.4, false positives) and,
        focal only, ``exponent`` (0.675) of the Tversky losses; ``jaccard_weight`` (1) of Wang's.
    regions
        The names of label values 0, 1, 2, ...
    activation
        Of the network; which loss is for which, :data:`trainer.region_losses.REGION_LOSSES` tells.

    Raises
    ------
    RecipeError
        Unknown name, option or region (the nearest is named), a weight that is none, or a loss for another activation.
    """
    kind = _chosen(name, REGION_LOSSES)
    if activation not in kind.activations:
        raise RecipeError(f"loss.name: {name} is for {' or '.join(kind.activations)} and not for {activation}.")
    if name in _BY_ACTIVATION:
        known, build = _BY_ACTIVATION[name]
        _refuse_unknown("loss.options", options, known)
        return build(
            activation, **{key: option.read(key, options.get(key, option.default)) for key, option in known.items()}
        )
    make, weighted = _SEGMENTATION[name]
    _refuse_unknown("loss.options", options, ("class_weights",) if weighted else ())
    if "class_weights" not in options:
        return make()
    given = options["class_weights"]
    if not isinstance(given, Mapping):
        raise RecipeError(f"loss.options.class_weights is {given!r}: it must be a table of region = weight.")
    _refuse_unknown("loss.options.class_weights", given, regions)
    weight = _Number(1.0, above=True)
    values = [weight.read(f"class_weights.{region}", given.get(region, weight.default)) for region in regions]
    return make(torch.tensor(values, dtype=torch.float64))


def classification_loss(name: str, options: Mapping[str, Any], statistics: LabelStatistics) -> ClassificationLoss:
    """A loss for findings.

    Parameters
    ----------
    name
        One of :data:`CLASSIFICATION_LOSSES`.
    options
        ``gamma`` and ``alpha`` of focal; ``alpha``, ``beta``, ``mu``, ``lambda`` and ``kappa`` of the
        Distribution-Balanced losses.
    statistics
        Counts of the training films, findings in the order of the logits.

    Raises
    ------
    RecipeError
        Unknown name or option (the nearest is named), a number out of range, or the modified loss
        without the finding *no finding*.
    DataError
        A finding that a Distribution-Balanced loss cannot weigh: positive in no training film, or in every one.
    """
    known, make = _chosen(name, _CLASSIFICATION)
    _refuse_unknown("loss.options", options, known)
    values = {key: number.read(key, options.get(key, number.default)) for key, number in known.items()}
    return make(statistics, {"lambda_" if key == "lambda" else key: value for key, value in values.items()})


def check_targets(
    name: str, targets: npt.NDArray[np.floating], names: Sequence[str], statistics: LabelStatistics
) -> None:
    """Refuse, before a training starts, films that the loss cannot use.

    Parameters
    ----------
    name
        The loss. Only the two Distribution-Balanced losses refuse anything.
    targets
        (N, F) of 0, 1 and NaN for not known; training and validation films alike, both meet the loss.
    names
        The films' names.
    statistics
        Counts of the training films.

    Raises
    ------
    DataError
        Naming the first film without any positive label, or the finding that no training film (or every one) has.
    RecipeError
        Unknown loss.
    """
    _chosen(name, _CLASSIFICATION)
    if name in _NEEDING_A_POSITIVE:
        check_labels(targets, names, statistics)


_Choice = TypeVar("_Choice")


def _chosen(name: str, known: Mapping[str, _Choice]) -> _Choice:
    if name not in known:
        raise RecipeError(_sentence(f"loss.name: this task has no loss {name!r}{nearest(name, known)}"))
    return known[name]


def _refuse_unknown(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    names = list(known)
    for key in given:
        if key not in names:
            raise RecipeError(_sentence(f"{where} has no {key!r}{nearest(str(key), names)}"))


def _sentence(words: str) -> str:
    return words if words.endswith("?") else f"{words}."
