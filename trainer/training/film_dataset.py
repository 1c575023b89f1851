"""Films on their way to the network: stored pictures, saved copies, live variation.

Nothing here imports Lightning: processes that prepare batches import this module, and start sooner without it.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from trainer.augment import side_swaps, vary
from trainer.data.reading import UNDRAWN
from trainer.data.store import Samples
from trainer.pixel_weights import pixel_weights
from trainer.recipe import LiveTable, Recipe
from trainer.training.order import Key
from trainer.training.saved_copies import Copies
from trainer.training.stored import StoredArray


class _Films:
    """Stored pictures (N, H, W) and their label maps, which travel to other processes as names of files."""

    def __init__(self, pictures: npt.NDArray[np.float16], labels: npt.NDArray[np.uint8] | None) -> None:
        self._pictures = StoredArray(pictures)
        self._labels = None if labels is None else StoredArray(labels)

    def read(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
        """Picture float32 (1, H, W) and labels uint8 (H, W)."""
        picture = np.array(self._pictures.array[index], np.float32)[None]
        return picture, None if self._labels is None else np.array(self._labels.array[index])


class FilmDataset(Dataset[dict[str, Any]]):  # type: ignore[misc]
    """Films of one part; with ``copies``, film i + n * copy is a saved copy of film i of n.

    An item is a dictionary of ``picture`` float32 (1, H, W), since all channels are equal, and ``film``, the place
    in the part; for segmentation
    ``labels`` uint8 (H, W) and, when the loss asks for them, ``weights`` float32 (H, W); for
    classification ``targets`` float32 (F,), NaN where not known, and with guidance ``opacity`` float32 (1, H, W), 0-1,
    with evidence ``lungs`` float32 (1, H, W), 1 in the lungs, 0 outside, NaN everywhere where nobody drew them.
    """

    def __init__(
        self,
        samples: Samples,
        indices: tuple[int, ...],
        recipe: Recipe,
        *,
        frequencies: npt.NDArray[np.float64] | None = None,
        copies: Copies | None = None,
        live: bool = False,
    ) -> None:
        self.indices = indices
        self.recipe = recipe
        self.frequencies = frequencies
        self.live = live and recipe.augmentation.live != LiveTable()
        self.swaps = side_swaps(recipe.data.regions, recipe.augmentation.live) if live else ()
        self.guided = recipe.loss.guidance > 0
        self.evidence = recipe.loss.evidence > 0
        self._films = _Films(samples.pictures[:, 0], samples.labels)
        self._copied = _Films(copies.pictures, copies.labels) if copies else None
        self._copies = len(copies.pictures) // len(indices) if copies else 0
        self._targets = samples.targets
        self._places = StoredArray(samples.places) if self.guided and samples.places is not None else None

    def __len__(self) -> int:
        return len(self.indices) * (1 + self._copies)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        seen, film = key
        copy, place = divmod(film, len(self.indices))
        index = self.indices[place]
        if copy and self._copied is not None:
            picture, labels = self._copied.read(film - len(self.indices))
        else:
            picture, labels = self._films.read(index)
        if self.guided and labels is None:
            labels = self._opacity(index, picture.shape[1:])
        undrawn = self.evidence and labels is not None and bool((labels == UNDRAWN).all())
        if self.live:
            rng = np.random.Generator(np.random.PCG64([self.recipe.training.seed, seen, film]))
            picture, labels = vary(picture, labels, rng, self.recipe.augmentation.live, self.swaps)
        item: dict[str, Any] = {"picture": torch.from_numpy(np.ascontiguousarray(picture)), "film": film}
        if self.recipe.task == "classification":
            item["targets"] = torch.from_numpy(np.array(self._targets[index], np.float32))
            if self.guided and labels is not None:
                item["opacity"] = torch.from_numpy(labels[None].astype(np.float32) / 255)
            elif self.evidence and labels is not None:
                lungs = np.full_like(labels, np.nan, np.float32) if undrawn else (labels > 0).astype(np.float32)
                item["lungs"] = torch.from_numpy(lungs[None])
            return item
        assert labels is not None
        item["labels"] = torch.from_numpy(np.ascontiguousarray(labels))
        method = self.recipe.loss.pixel_weights
        if method:
            assert self.frequencies is not None
            item["weights"] = torch.from_numpy(pixel_weights(labels, self.frequencies, method))
        return item

    def _opacity(self, index: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """How opaque each pixel's cell is, 255 is 1: moved with the picture as if it were labels."""
        assert self._places is not None
        cells = np.round(np.clip(self._places.array[index], 0, 1) * 255).astype(np.uint8)
        return np.asarray(cv2.resize(cells, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST), np.uint8)


def one_thread(_worker: int) -> None:
    """Keep a process that prepares batches to one thread."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
