"""Networks by the names recipes use, with their own options."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from trainer.errors import RecipeError
from trainer.networks import novikov
from trainer.networks.attention_bcdu import AttentionBcduNet
from trainer.networks.checkpoints import initialise
from trainer.networks.half_size import HalfSizeClassifier, HalfSizeSegmenter
from trainer.networks.holste_unet import HolsteUNet
from trainer.networks.small_classifier import GuidedClassifier, SmallClassifier
from trainer.recipe import Recipe, nearest

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkKind:
    """One entry of :data:`NETWORKS`.

    ``build`` takes (channels, outputs) and its options; a picture's sides must be multiples of ``stride``; ``options``
    are those a recipe may give, each with its default. ``half_size`` is every network's.
    """

    task: str
    stride: int
    build: Callable[..., nn.Module]
    options: Mapping[str, int | float | bool]


def _small_classifier(channels: int, findings: int, *, base_width: int, guided: bool) -> nn.Module:
    kind = GuidedClassifier if guided else SmallClassifier
    return kind(channels, findings, base_width)


def _resnet34_unet(channels: int, regions: int) -> nn.Module:
    from trainer.networks.wang import ResNet34UNet  # imports MONAI, see below

    return ResNet34UNet(channels, regions)


def _published(name: str) -> Callable[[int, int], nn.Module]:
    def build(channels: int, findings: int) -> nn.Module:
        from trainer.networks import classifiers  # MONAI takes seconds to import, and most trainings need none of it

        network: nn.Module = getattr(classifiers, f"{name}_classifier")(channels, findings)
        return network

    return build


_DROPOUT: Mapping[str, int | float | bool] = {"dropout": 0.2, "elu": False}

NETWORKS: Mapping[str, NetworkKind] = {
    "holste_unet": NetworkKind("segmentation", 16, HolsteUNet, {"base_width": 32}),
    "original_unet": NetworkKind("segmentation", 16, novikov.original_unet, {"base_width": 64}),
    "all_dropout": NetworkKind("segmentation", 16, novikov.all_dropout, {"base_width": 64, **_DROPOUT}),
    "all_convolutional": NetworkKind("segmentation", 16, novikov.all_convolutional, {"base_width": 64, **_DROPOUT}),
    "inverted_net": NetworkKind("segmentation", 16, novikov.inverted_net, {"base_width": 256, **_DROPOUT}),
    "attention_bcdu": NetworkKind("segmentation", 16, AttentionBcduNet, {"base_width": 64}),
    "resnet34_unet": NetworkKind("segmentation", 32, _resnet34_unet, {}),
    "small_classifier": NetworkKind("classification", 16, _small_classifier, {"base_width": 16, "guided": False}),
    "densenet121": NetworkKind("classification", 32, _published("densenet121"), {}),
    "densenet169": NetworkKind("classification", 32, _published("densenet169"), {}),
    "resnet101": NetworkKind("classification", 32, _published("resnet101"), {}),
}

_HALF_SIZE: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    "segmentation": HalfSizeSegmenter,
    "classification": HalfSizeClassifier,
}


def make_network(name: str, channels: int, outputs: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """A network with fresh weights.

    Parameters
    ----------
    name
        One of :data:`NETWORKS`.
    channels
        Input channels.
    outputs
        Regions of a segmentation network, which answers (N, R, H, W) logits, or findings of a classifier, which
        answers (N, F) logits and (N, F, h, w) maps (see :class:`~trainer.networks.pooled.PooledClassifier`).
    options
        The network's own, and ``half_size`` (:mod:`trainer.networks.half_size`). ``guided`` of ``small_classifier``
        adds the method ``forward_guided`` (:class:`~trainer.networks.small_classifier.GuidedClassifier`).

    Raises
    ------
    RecipeError
        No such network or option (the nearest is named), or an option's value is of another kind.
    """
    kind = _kind(name)
    chosen = _checked(name, kind, options or {})
    half_size = chosen.pop("half_size")
    network = kind.build(channels, outputs, **chosen)
    return _HALF_SIZE[kind.task](network) if half_size else network


def build_network(recipe: Recipe, *, pretrained: bool = True) -> nn.Module:
    """The recipe's network, started from ``network.checkpoint`` when one is named; what matched is logged.

    ``pretrained`` false leaves the checkpoint alone: for weights that are loaded afterwards, from a run.

    Raises
    ------
    RecipeError
        As :func:`make_network`; the network is for another task; the pictures' sides do not divide;
        a place head without guidance, or guidance without a place head; the checkpoint does not fit.
    """
    channels, height, width = recipe.input_shape
    name, options = recipe.network.name, recipe.network.options
    kind = _kind(name)
    if kind.task != recipe.task:
        fitting = ", ".join(known for known, other in NETWORKS.items() if other.task == recipe.task)
        raise RecipeError(
            f"Recipe {recipe.name}: {name} is for {kind.task}, the recipe for {recipe.task}; choose {fitting}."
        )
    chosen = _checked(name, kind, options)
    stride = kind.stride * (2 if chosen["half_size"] else 1)
    if height % stride or width % stride:
        raise RecipeError(
            f"Recipe {recipe.name}: {name} halves its pictures until {stride} pixels are one, so their height and width"
            f" must be multiples of {stride}, not {height} and {width}; change the resize step of preprocess."
        )
    if bool(chosen.get("guided")) != (recipe.loss.guidance > 0):
        raise RecipeError(
            f"Recipe {recipe.name}: network.options.guided adds a place head and loss.guidance above 0 trains it;"
            f" give both or neither."
        )
    network = make_network(name, channels, recipe.outputs, options)
    if pretrained and recipe.network.checkpoint:
        _LOG.info("%s", initialise(network, recipe.network.checkpoint))
    return network


def _kind(name: str) -> NetworkKind:
    if name not in NETWORKS:
        raise RecipeError(f"There is no network {name!r}{nearest(name, NETWORKS)}.")
    return NETWORKS[name]


def _checked(name: str, kind: NetworkKind, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of the network, those not given at their defaults."""
    defaults = {**kind.options, "half_size": False}
    for key, value in options.items():
        if key not in defaults:
            raise RecipeError(f"The network {name} has no option {key!r}{nearest(key, defaults)}.")
        if isinstance(defaults[key], bool):
            if not isinstance(value, bool):
                raise RecipeError(f"network.options.{key} of {name} is true or false, not {value!r}.")
        elif isinstance(defaults[key], float):
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
                raise RecipeError(f"network.options.{key} of {name} is a number from 0 to below 1, not {value!r}.")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RecipeError(f"network.options.{key} of {name} is a whole number of at least 1, not {value!r}.")
    return {**defaults, **options}
