"""What goes on inside a network that segments (Novikov et al., Figures 2, 4 and 8).

Three looks, at test films drawn at random:

* **Features** (Figure 4): what comes out of the penultimate upsampling step.
* **Deactivated filters** (Figure 2, section II-B): before the third downsampling step the filters are grouped by how
  much they are activated (k-means on the principal components of their feature maps); a quarter of the lower
  group is switched off at random, and what is found is compared with what was found before by Jaccard, averaged over
  ten draws. After the last downsampling step three quarters of all filters are switched off likewise, without groups.
  An overlap near 1 says that the network has more filters than it uses.
* **Clipped lungs** (Figure 8): everything but the lungs and some padding is made as dark as the film's darkest pixel. A
  network that still finds clavicles there goes by the neighbourhood and not by the shape of a chest.

Decided, where the paper is silent: two groups, by as many components as explain 90 % of the variance; five films
instead of one; the same share of the upper group beside, to tell what the lower group's number means; Jaccard is the
mean over the regions found in either; a padding of 5 % of the picture's side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.cluster.vq import kmeans2
from torch import nn

from schema.regions import is_lung
from trainer.data.store import Samples
from trainer.errors import RunError
from trainer.networks.heads import region_channels
from trainer.recipe import Recipe
from trainer.training.pictures import label_map

#: Films that are looked at, draws of filters, and the shares of a group that are switched off.
FILMS, DRAWS, QUARTER, THREE_QUARTERS = 5, 10, 0.25, 0.75
PADDING = 0.05
_VARIANCE = 0.9

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
LabelMap = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Steps:
    """Modules of a network: their outputs are (N, features, h, w).

    ``upsampling`` is the penultimate step upwards, ``early`` what ends before the third downsampling step, ``deep``
    what follows the last.
    """

    upsampling: nn.Module
    early: nn.Module
    deep: nn.Module


@dataclass(frozen=True)
class FilterGroups:
    """Filters of one module, by the activation on one film: places of the lower and the upper group, and their maps.

    ``maps`` is float32 (features, h, w).
    """

    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    maps: FloatArray


@dataclass(frozen=True)
class Clipped:
    """A film, the same with everything but the lungs clipped, and the label maps found on both."""

    picture: FloatArray
    clipped: FloatArray
    found: LabelMap
    found_clipped: LabelMap


def steps_of(network: nn.Module) -> Steps:
    """The steps of any segmentation network of :mod:`trainer.networks.registry`.

    Raises
    ------
    RunError
        The network has another form.
    """
    inner = network.network if hasattr(network, "network") else network
    for name in ("upward", "upsampling"):
        if hasattr(inner, name) and hasattr(inner, "contracting"):
            return Steps(getattr(inner, name)[-2], inner.contracting[2], inner.contracting[-1])
    if hasattr(inner, "encoder"):  # its first two downsampling steps are the first convolution and the pooling
        return Steps(inner.expanding[-2], inner.encoder.layer1, inner.encoder.layer4)
    raise RunError(f"{type(inner).__name__} has no steps up and down that could be looked into.")


def features_of(network: nn.Module, module: nn.Module, picture: FloatArray) -> FloatArray:
    """What ``module`` gives for a picture (C, H, W): float32 (features, h, w)."""
    caught: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        answer(network, picture)
    finally:
        hook.remove()
    return np.asarray(caught[0][0].numpy(), np.float32)


def answer(network: nn.Module, picture: FloatArray) -> torch.Tensor:
    """Logits (1, channels, H, W) for a picture (C, H, W)."""
    with torch.inference_mode():
        logits: torch.Tensor = network(torch.from_numpy(np.ascontiguousarray(picture))[None])
    return logits


def group_filters(maps: FloatArray, seed: int) -> FilterGroups:
    """Two groups of filters by k-means on the principal components of their maps (features, h, w)."""
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    left, spread, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    explained = np.cumsum(spread**2) / max(float((spread**2).sum()), 1e-12)
    components = 1 + int(np.searchsorted(explained, _VARIANCE))
    points = left[:, :components] * spread[:components]
    _, group = kmeans2(points, 2, minit="++", seed=seed)
    means = [float(flat[group == which].mean()) if (group == which).any() else np.inf for which in (0, 1)]
    lower = int(np.argmin(means))
    return FilterGroups(np.flatnonzero(group == lower), np.flatnonzero(group != lower), maps)


def overlap_without(
    network: nn.Module,
    recipe: Recipe,
    module: nn.Module,
    filters: npt.NDArray[np.intp],
    share: float,
    *,
    picture: FloatArray,
    rng: np.random.Generator,
) -> float:
    """Jaccard of what is found with and without ``share`` of the ``filters`` of ``module``, the mean of ten draws.

    NaN without filters.
    """
    if not len(filters):
        return float("nan")
    before = label_map(answer(network, picture), recipe)[0]
    values = []
    for _ in range(DRAWS):
        chosen = rng.choice(filters, max(1, round(share * len(filters))), replace=False)
        with deactivated(module, chosen):
            values.append(agreement(before, label_map(answer(network, picture), recipe)[0]))
    return float(np.mean(values))


@contextmanager
def deactivated(module: nn.Module, filters: npt.NDArray[np.intp]) -> Iterator[None]:
    """``module`` with the outputs of some filters at 0."""
    places = torch.from_numpy(np.asarray(filters, np.int64))

    def silence(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(1, places, 0.0)

    hook = module.register_forward_hook(silence)
    try:
        yield
    finally:
        hook.remove()


def agreement(first: LabelMap, second: LabelMap) -> float:
    """Mean Jaccard over the regions, background aside, that either map has; 1 where neither has any."""
    values = []
    for value in np.union1d(first[first > 0], second[second > 0]):
        one, other = first == value, second == value
        values.append((one & other).sum() / (one | other).sum())
    return float(np.mean(values)) if values else 1.0


def lungs_of(samples: Samples, recipe: Recipe, row: int) -> BoolArray:
    """Where the truth has a lung, bool (H, W).

    Raises
    ------
    RunError
        No lung is among the recipe's regions.
    """
    places = [place for place, name in enumerate(recipe.data.regions) if is_lung(name)]
    if not places:
        raise RunError(f"{recipe.name} knows no lungs, outside of which its films could be clipped.")
    assert samples.labels is not None
    stored = torch.from_numpy(np.array(samples.labels[row : row + 1]))
    channels = region_channels(stored, len(recipe.data.regions), overlapping=recipe.data.overlapping)[0]
    return np.asarray(channels[places].amax(dim=0).numpy() > 0)


def clip_to(picture: FloatArray, inside: BoolArray) -> FloatArray:
    """The picture (C, H, W) with its darkest value wherever ``inside``, widened by :data:`PADDING`, is not."""
    reach = max(1, round(PADDING * max(inside.shape)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    kept = cv2.dilate(inside.astype(np.uint8), kernel) > 0
    return np.where(kept, picture, picture.min()).astype(np.float32)


def clip_lungs(network: nn.Module, recipe: Recipe, samples: Samples, row: int) -> Clipped:
    """What is found on a film before and after everything but its lungs is clipped."""
    picture = np.array(samples.pictures[row], np.float32)
    clipped = clip_to(picture, lungs_of(samples, recipe, row))
    found, found_clipped = (label_map(answer(network, each), recipe)[0] for each in (picture, clipped))
    return Clipped(picture[0], clipped[0], found, found_clipped)


def found_again(clipped: Sequence[Clipped], recipe: Recipe) -> Mapping[str, float | None]:
    """Region → Jaccard of what is found on whole and on clipped films, all pixels together; None if on neither."""
    whole = np.stack([film.found for film in clipped])
    rest = np.stack([film.found_clipped for film in clipped])
    results: dict[str, float | None] = {}
    for place, name in enumerate(recipe.data.regions[1:], 1):
        either = ((whole == place) | (rest == place)).sum()
        results[name] = float(((whole == place) & (rest == place)).sum() / either) if either else None
    return results
