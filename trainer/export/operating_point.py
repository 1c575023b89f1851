"""What a trained network still lacks to answer yes or no, chosen on the validation part alone.

* **Temperature**: one for all findings and members, of least negative log-likelihood of the ensemble's mean
  probability (Guo et al., "On calibration of modern neural networks", section 4.2). Members are
  scaled first and averaged then, as the night does it.
* **Thresholds**: Youden's index of the scaled mean, see :func:`trainer.evaluation.classification.choose_thresholds`.
  A finding of which the validation films lack a class gets :data:`NO_THRESHOLD`; its numbers at a
  threshold stay unmeasured.
* **Carina**: a class weight above 1 that makes a network learn a region of a few pixels also makes it too
  large. How much its logit is lowered again is then chosen by its Dice. Holste et al. weigh pixels and not
  classes and settle nothing, so recipes without such a weight are left as they are, and so are those whose
  post-processing cuts a carina down (``carina_core``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from schema.regions import Region
from trainer.data.store import Samples
from trainer.recipe import Recipe
from worker.inference.networks import scale_by_temperature

FloatArray = npt.NDArray[np.floating]

#: Stands in where no threshold could be chosen.
NO_THRESHOLD = 0.5
_TEMPERATURES = np.exp(np.linspace(math.log(0.25), math.log(4.0), 97))
_LOWERINGS = np.arange(31) / 10
_DIGITS = 10**6
_TINY = 1e-7
_BATCH = 8


def best_temperature(members: FloatArray, labels: FloatArray) -> float:
    """The temperature (0.25-4) that makes the ensemble's probabilities most likely.

    Parameters
    ----------
    members
        (members, films, findings): probabilities as the networks give them.
    labels
        (films, findings): 1, 0 or NaN for not known; 1.0 is returned when nothing is known.
    """
    known = ~np.isnan(labels)
    if not known.any():
        return 1.0
    present = labels[known] == 1
    losses = []
    for temperature in _TEMPERATURES:
        mean = np.mean([scale_by_temperature(member, float(temperature)) for member in members], axis=0)[known]
        right = np.where(present, mean, 1 - mean)
        losses.append(-np.log(np.maximum(right, _TINY)).mean())
    return round(float(_TEMPERATURES[int(np.argmin(losses))]), 4)


def stored_thresholds(chosen: Sequence[float]) -> tuple[float, ...]:
    """Thresholds as a manifest keeps them, rounded down so that the film that gave one stays positive."""
    return tuple(
        NO_THRESHOLD if math.isnan(threshold) else math.floor(threshold * _DIGITS) / _DIGITS for threshold in chosen
    )


def weighs_the_carina(recipe: Recipe) -> bool:
    """Whether the recipe's loss gives the carina a class weight above 1 and nothing else makes it small again."""
    if recipe.bundle is not None and recipe.bundle.postprocess.get("carina_core"):
        return False
    weights = recipe.loss.options.get("class_weights", {})
    return Region.CARINA in recipe.data.regions and weights.get(str(Region.CARINA), 1.0) > 1.0


def settle_carina(network: nn.Module, samples: Samples, carina: int) -> float:
    """By how much (0-3) to lower the carina's logit for its best mean Dice over the films that have one; 0 if none has.

    ``network`` gives logits (N, regions, H, W), ``carina`` is the region's label value.
    """
    assert samples.labels is not None
    scores: list[npt.NDArray[np.float64]] = []
    with torch.inference_mode():
        for start in range(0, len(samples), _BATCH):
            truth = torch.from_numpy(np.asarray(samples.labels[start : start + _BATCH]) == carina)
            if not truth.any():
                continue
            logits = network(torch.from_numpy(np.asarray(samples.pictures[start : start + _BATCH], np.float32)))
            own = logits[:, carina].clone()
            logits[:, carina] = -torch.inf
            lead = own - logits.amax(dim=1)
            scores += [_dice(film, mask) for film, mask in zip(lead, truth, strict=True) if mask.any()]
    return float(_LOWERINGS[int(np.argmax(np.mean(scores, axis=0)))]) if scores else 0.0


def _dice(lead: torch.Tensor, truth: torch.Tensor) -> npt.NDArray[np.float64]:
    """One film's Dice at every lowering."""
    found = lead > torch.tensor(_LOWERINGS, dtype=lead.dtype).view(-1, 1, 1)
    common = (found & truth).sum(dim=(1, 2))
    return np.asarray(2.0 * common / (found.sum(dim=(1, 2)) + truth.sum()), np.float64)
