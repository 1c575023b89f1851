"""Batches of films for training and validation."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch.utils.data import BatchSampler, DataLoader

from trainer.data.splits import Split
from trainer.data.store import Samples
from trainer.errors import DataError, RunError
from trainer.pixel_weights import class_frequencies
from trainer.recipe import Recipe
from trainer.training.film_dataset import FilmDataset, one_thread
from trainer.training.order import FilmOrder
from trainer.training.saved_copies import Copies


class TrainingData(lightning.LightningDataModule):  # type: ignore[misc]
    """Batches for training and validation.

    Parameters
    ----------
    samples, parts
        All films, and which of them belong to which part.
    recipe
        Decides augmentation, batches and seed.
    copies
        The saved copies of the training part, or None.
    devices
        How many train together; ``batch_size`` is shared among them.
    workers
        Processes that prepare batches beside the training; 0 prepares them in between.

    Raises
    ------
    DataError
        The training or the validation part has no film, or places are wanted and not there.
    RunError
        ``batch_size`` cannot be divided among the devices.
    """

    def __init__(
        self,
        samples: Samples,
        parts: Split,
        recipe: Recipe,
        copies: Copies | None = None,
        *,
        devices: int = 1,
        workers: int = 0,
    ) -> None:
        super().__init__()
        for part in ("train", "validation"):
            if not parts.part(part):
                raise DataError(f"The {part} part has no film: give more films, or other shares under data.split.")
        if recipe.loss.guidance and samples.places is None:
            raise DataError(
                "loss.guidance needs to know where opacities are, which only phantoms tell: set it to 0, and "
                "network.options.guided to false."
            )
        batch = recipe.training.batch_size
        if batch % devices:
            raise RunError(f"training.batch_size {batch} cannot be shared by {devices} devices: choose a multiple.")
        frequencies = None
        if recipe.loss.pixel_weights:
            assert samples.labels is not None
            drawn = [samples.labels[index] for index in parts.train]
            if copies is not None and copies.labels is not None:
                drawn += list(copies.labels)
            frequencies = class_frequencies(drawn, len(recipe.data.regions))
        self.recipe, self.devices, self.workers = recipe, devices, workers
        self.train = FilmDataset(samples, parts.train, recipe, frequencies=frequencies, copies=copies, live=True)
        #: How many of ``validation``'s films are of the validation part; the rest are training films, as they are.
        self.judged = len(parts.validation)
        watched = parts.train if recipe.training.training_metrics else ()
        self.validation = FilmDataset(samples, (*parts.validation, *watched), recipe, frequencies=frequencies)
        self.batches = recipe.training.steps_per_epoch or math.ceil(len(self.train) / batch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps: an epoch's last one takes what is left when batches are accumulated."""
        return math.ceil(self.batches / self.recipe.training.accumulate)

    def train_dataloader(self) -> DataLoader[Any]:
        """This device's share of every batch, from the epoch the trainer has come to."""
        trainer = self.trainer
        order = FilmOrder(
            len(self.train),
            self.recipe.training.batch_size,
            self.batches,
            self.recipe.training.seed,
            rank=trainer.global_rank,
            world=trainer.world_size,
            epoch=trainer.fit_loop.epoch_progress.current.processed,
        )
        return self._loader(self.train, BatchSampler(order, order.share, drop_last=False))

    def val_dataloader(self) -> DataLoader[Any]:
        """This device's share of the validation films, each once, as they are."""
        mine = range(self.trainer.global_rank, len(self.validation), self.trainer.world_size)
        keys = [(0, film) for film in mine]
        return self._loader(self.validation, BatchSampler(keys, self.recipe.training.batch_size, drop_last=False))

    def _loader(self, films: FilmDataset, batches: BatchSampler) -> DataLoader[Any]:
        return DataLoader(
            films,
            batch_sampler=batches,
            num_workers=self.workers,
            worker_init_fn=one_thread if self.workers else None,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Forking a process that runs threads can hang it.
            multiprocessing_context="spawn" if self.workers else None,
        )
