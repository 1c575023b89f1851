"""What a network is trained on and measured by, as Lightning modules.

Networks answer in the precision they run in; losses and metrics are float32.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from schema.regions import is_lung
from trainer.networks.heads import region_channels
from trainer.recipe import Recipe
from trainer.training.optimisation import make_optimiser, rate_factor
from worker.metrics import auroc

Batch = Mapping[str, torch.Tensor]
#: One validation film: its place in the validation part, its loss and what its metrics need.
Row = tuple[int, float, npt.NDArray[np.float64]]

#: A cell of a film counts as opaque from this mean opacity on.
VISIBLE_OPACITY = 0.1
#: Of the place head's cells few are opaque.
_OPAQUE_WEIGHT = 3.0
#: Keeps the share of an empty map defined.
_LEAST_MASS = 1e-3


class FilmModule(lightning.LightningModule):  # type: ignore[misc]
    """What both tasks share.

    ``train_loss`` is the mean over the current epoch's batches so far, ``measured`` what the last validation
    gave (column of ``metrics.csv`` → value).

    Parameters
    ----------
    recipe
        Decides optimiser, schedule, seed and memory format.
    network
        As :func:`trainer.networks.registry.build_network` makes it.
    steps_per_epoch
        Optimiser steps.
    """

    def __init__(self, recipe: Recipe, network: nn.Module, steps_per_epoch: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = network
        self.steps_per_epoch = steps_per_epoch
        self.measured: dict[str, float] = {}
        self._rows: list[Row] = []
        self._loss_sum: torch.Tensor | float = 0.0
        self._batches = 0
        self._format = torch.channels_last if recipe.training.channels_last else torch.contiguous_format
        self._channels = recipe.input_shape[0]
        network.to(memory_format=self._format)

    @property
    def train_loss(self) -> float:
        """Mean loss of the epoch's batches so far; NaN before the first."""
        return float(self._loss_sum) / self._batches if self._batches else float("nan")

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser with a learning rate for every step."""
        optimiser = make_optimiser(self.network.parameters(), self.recipe.optimiser)
        steps = self.steps_per_epoch * self.recipe.training.epochs
        factor = rate_factor(self.recipe.schedule, steps, self.steps_per_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, _batch: Batch, index: int) -> None:
        """At an epoch's beginning seed what the network draws (dropout): it then depends on nothing but its weights.

        Lightning leaves ``on_train_epoch_start`` out where a training is gone on with.
        """
        if index == 0:
            seed = np.random.SeedSequence([self.recipe.training.seed, self.current_epoch, self.global_rank])
            torch.manual_seed(int(seed.generate_state(1)[0]))
            self._loss_sum, self._batches = 0.0, 0

    def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
        """The batch's loss."""
        loss = self.batch_loss(batch)
        self._loss_sum = self._loss_sum + loss.detach()
        self._batches += 1
        return loss

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Keep each film's part in the metrics."""
        loss, values = self.measure(batch)
        films = batch["film"].cpu().numpy()
        self._rows += [(int(film), loss, row) for film, row in zip(films, values, strict=True)]

    def on_validation_epoch_end(self) -> None:
        """Metrics over all films of all devices, in the films' order; those of training films begin with ``train_``."""
        rows = self._rows
        if self.trainer.world_size > 1:
            parts: list[list[Row]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(parts, rows)
            rows = [row for part in parts for row in part]
        self._rows = []
        rows = sorted(rows, key=lambda row: row[0])
        judged = self.trainer.datamodule.judged
        values = np.stack([row[2] for row in rows])
        losses = np.array([row[1] for row in rows])
        self.measured = {"loss": float(losses[:judged].mean()), **self.conclude(values[:judged])}
        if len(rows) > judged:
            self.measured |= {f"train_{name}": value for name, value in self.conclude(values[judged:]).items()}

    def picture(self, batch: Batch) -> torch.Tensor:
        """Pictures float32 (N, C, H, W) in the recipe's memory format."""
        picture = batch["picture"]
        return picture.expand(-1, self._channels, -1, -1).contiguous(memory_format=self._format)

    @abstractmethod
    def batch_loss(self, batch: Batch) -> torch.Tensor:
        """The loss to go down on, float32."""

    @abstractmethod
    def measure(self, batch: Batch) -> tuple[float, npt.NDArray[np.float64]]:
        """The batch's mean loss and a row of numbers per film."""

    @abstractmethod
    def conclude(self, values: npt.NDArray[np.float64]) -> dict[str, float]:
        """Metrics from the rows of all films."""


SegmentationLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
ClassificationLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SegmentationModule(FilmModule):
    """Regions: Dice of each, averaged over films and then over regions.

    Under softmax it is that of the winner-takes-all maps, and ``mean_dice`` is over all regions, background included,
    as in Holste et al., section 2.3. Under sigmoid it is that of each region by itself, found where its probability is
    above the recipe's threshold (Novikov et al., eq. 9), and the background has none. A region that neither truth nor
    prediction has does not count for that film. ``lung_dice`` is over the two lungs, or their one region.
    """

    def __init__(self, recipe: Recipe, network: nn.Module, steps_per_epoch: int, loss: SegmentationLoss) -> None:
        super().__init__(recipe, network, steps_per_epoch)
        self.loss = loss
        self.competing = recipe.network.activation == "softmax"
        self.regions = recipe.data.regions if self.competing else recipe.data.regions[1:]

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        """The recipe's loss."""
        return self._loss(self.network(self.picture(batch)), batch)

    def measure(self, batch: Batch) -> tuple[float, npt.NDArray[np.float64]]:
        """Loss, and per film the Dice of each region, NaN where it is in neither map."""
        logits = self.network(self.picture(batch))
        if self.competing:
            overlaps = film_dice(logits.argmax(dim=1), batch["labels"].long(), len(self.regions))
        else:
            found = logits[:, -len(self.regions) :].float().sigmoid() > self.recipe.network.threshold
            overlaps = mask_dice(found, self._as_channels(batch["labels"])[:, 1:] > 0)
        return float(self._loss(logits, batch)), overlaps.cpu().numpy()

    def conclude(self, values: npt.NDArray[np.float64]) -> dict[str, float]:
        """Means of (films, regions)."""
        dice = dict(zip(self.regions, _column_means(values), strict=True))
        means = {"mean_dice": _mean(list(dice.values()))}
        lungs = [value for region, value in dice.items() if is_lung(region)]
        if lungs:
            means["lung_dice"] = _mean(lungs)
        return {**means, **{f"dice_{region}": value for region, value in dice.items()}}

    def _loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return self.loss(logits.float(), self._truth(batch), batch.get("weights"))

    def _truth(self, batch: Batch) -> torch.Tensor:
        """Label maps int64 (N, H, W), or channels (N, R, H, W) where a pixel may be of several regions or in part."""
        if "mixed_labels" in batch:
            share = batch["share"].view(-1, 1, 1, 1)
            return share * self._as_channels(batch["labels"]) + (1 - share) * self._as_channels(batch["mixed_labels"])
        if self.recipe.data.overlapping:
            return self._as_channels(batch["labels"])
        return batch["labels"].long()

    def _as_channels(self, labels: torch.Tensor) -> torch.Tensor:
        data = self.recipe.data
        return region_channels(labels, len(data.regions), overlapping=data.overlapping)


class ClassificationModule(FilmModule):
    """Findings: AUROC of each on the films where it is known, and their mean.

    With ``loss.guidance`` the network's place head is trained too, on where a film's opacities are; with
    ``loss.evidence`` activation maps outside the lungs cost something (:func:`share_outside`).
    """

    def __init__(self, recipe: Recipe, network: nn.Module, steps_per_epoch: int, loss: ClassificationLoss) -> None:
        super().__init__(recipe, network, steps_per_epoch)
        self.loss = loss
        self.findings = recipe.data.findings

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        """The recipe's loss, and ``guidance`` times the place head's or ``evidence`` times what lies outside."""
        guidance, evidence = self.recipe.loss.guidance, self.recipe.loss.evidence
        if not guidance:
            logits, maps = self.network(self.picture(batch))
            loss = self._loss(logits, batch)
            return loss + evidence * share_outside(maps, batch["lungs"]) if evidence else loss
        logits, _maps, places = self.network.forward_guided(self.picture(batch))
        with torch.autocast(logits.device.type, enabled=False):
            opacity = functional.adaptive_avg_pool2d(batch["opacity"], places.shape[-2:])[:, 0]
            where = functional.binary_cross_entropy_with_logits(
                places.float(),
                (opacity > VISIBLE_OPACITY).float(),
                pos_weight=torch.tensor(_OPAQUE_WEIGHT, device=places.device),
            )
        return self._loss(logits, batch) + guidance * where

    def measure(self, batch: Batch) -> tuple[float, npt.NDArray[np.float64]]:
        """Loss, and per film its logits and targets."""
        logits = self.network(self.picture(batch))[0]
        rows = torch.cat([logits.float(), batch["targets"]], dim=1).double()
        return float(self._loss(logits, batch)), rows.cpu().numpy()

    def conclude(self, values: npt.NDArray[np.float64]) -> dict[str, float]:
        """AUROCs from (films, 2 x findings)."""
        logits, targets = np.split(values, 2, axis=1)
        areas = {}
        for index, finding in enumerate(self.findings):
            known = ~np.isnan(targets[:, index])
            areas[f"auroc_{finding}"] = auroc(targets[known, index] > 0.5, logits[known, index])
        return {"mean_auroc": _mean(list(areas.values())), **areas}

    def _loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return self.loss(logits.float(), batch["targets"])


def share_outside(maps: torch.Tensor, lungs: torch.Tensor) -> torch.Tensor:
    """How much of the activation maps lies outside the lungs: the mean over films and findings, 0-1.

    Parameters
    ----------
    maps
        (N, F, h, w), not negative, as :class:`trainer.networks.pooled.PooledClassifier` makes them.
    lungs
        float32 (N, 1, H, W): how much of a pixel is lung, 0-1; NaN for films whose lungs are not known, which do not
        count. 0 where there is no other.
    """
    with torch.autocast(maps.device.type, enabled=False):
        maps = maps.float()
        inside = functional.adaptive_avg_pool2d(lungs, maps.shape[-2:])
        known = ~inside.isnan().flatten(1).any(dim=1)
        maps, inside = maps[known], inside[known]
        if not len(maps):
            return maps.sum()
        return ((maps * (1 - inside)).sum((2, 3)) / (maps.sum((2, 3)) + _LEAST_MASS)).mean()


def film_dice(prediction: torch.Tensor, truth: torch.Tensor, regions: int) -> torch.Tensor:
    """Dice of every region in every film.

    Parameters
    ----------
    prediction, truth
        int64 label maps (N, H, W), values 0 to ``regions`` - 1.
    regions
        How many there are.

    Returns
    -------
    float64 (N, regions); NaN where a region is in neither map.
    """
    films = len(truth)
    place = torch.arange(films, device=truth.device).view(-1, 1, 1)
    pairs = (place * regions + truth) * regions + prediction
    counts = torch.bincount(pairs.flatten(), minlength=films * regions * regions)
    counts = counts.view(films, regions, regions).double()
    both = counts.diagonal(dim1=1, dim2=2)
    return 2 * both / (counts.sum(dim=1) + counts.sum(dim=2))


def mask_dice(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Dice of masks, both bool (N, R, H, W): float64 (N, R), NaN where both are empty."""
    both = (prediction & truth).sum((2, 3)).double()
    return 2 * both / (prediction.sum((2, 3)) + truth.sum((2, 3)))


def _column_means(values: npt.NDArray[np.float64]) -> list[float]:
    return [_mean(column) for column in values.T]


def _mean(values: npt.NDArray[np.float64] | list[float]) -> float:
    """Mean of what is not NaN; NaN when nothing is left."""
    known = np.asarray(values)[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
