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
from trainer.training.greys import Greys
from trainer.training.order import Key
from trainer.training.saved_copies import Copies
from trainer.training.stored import StoredArray

#: Keeps the numbers by which films are mixed apart from those by which they are varied.
_MIXING = 0xB7A


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
    ``labels`` uint8 (H, W), label values or, with ``data.overlapping``, bit fields, and, when the loss asks for them,
    ``weights`` float32 (H, W); for
    classification ``targets`` float32 (F,), NaN where not known, and with guidance ``opacity`` float32 (1, H, W), 0-1,
    with evidence ``lungs`` float32 (1, H, W), 1 in the lungs, 0 outside, NaN everywhere where nobody drew them.

    With mixup (Zhang et al.; Maga, section 2.5) the picture is ``share`` times the film's own and the rest another's,
    and ``mixed_labels`` are those of the other; only films that are varied are mixed. Each time a film is seen it
    meets another one, drawn from all the others, and ``share`` is drawn from Beta(delta, delta) for this pair alone.
    Both have been varied before. All of it follows from the seed, the pass and the film, so that a training that was
    cut off goes on with the same pairs.
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
        self.mixup = recipe.augmentation.mixup if live else 0.0
        self.swaps = (
            side_swaps(recipe.data.regions, recipe.augmentation.live, overlapping=recipe.data.overlapping)
            if live
            else ()
        )
        self.greys = Greys.of(recipe)
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
        picture, labels, undrawn = self._varied(seen, film)
        item: dict[str, Any] = {"film": film}
        if self.recipe.task == "classification":
            item["targets"] = torch.from_numpy(np.array(self._targets[self._index(film)], np.float32))
            if self.guided and labels is not None:
                item["opacity"] = torch.from_numpy(labels[None].astype(np.float32) / 255)
            elif self.evidence and labels is not None:
                lungs = np.full_like(labels, np.nan, np.float32) if undrawn else (labels > 0).astype(np.float32)
                item["lungs"] = torch.from_numpy(lungs[None])
        else:
            assert labels is not None
            item["labels"] = torch.from_numpy(np.ascontiguousarray(labels))
            if method := self.recipe.loss.pixel_weights:
                assert self.frequencies is not None
                item["weights"] = torch.from_numpy(pixel_weights(labels, self.frequencies, method))
            if self.mixup:
                rng = np.random.Generator(np.random.PCG64([self.recipe.training.seed, seen, film, _MIXING]))
                other = (film + int(rng.integers(1, max(2, len(self))))) % len(self)
                share = np.float32(rng.beta(self.mixup, self.mixup))
                theirs, mixed_labels, _ = self._varied(seen, other)
                assert mixed_labels is not None
                picture = share * picture + (1 - share) * theirs
                item |= {
                    "mixed_labels": torch.from_numpy(np.ascontiguousarray(mixed_labels)),
                    "share": torch.tensor(share),
                }
        item["picture"] = torch.from_numpy(np.ascontiguousarray(picture))
        return item

    def _index(self, film: int) -> int:
        """The film's place among all samples."""
        return self.indices[film % len(self.indices)]

    def _varied(self, seen: int, film: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None, bool]:
        """Picture and labels of a film as it is shown this time, and whether nobody drew the lungs wanted."""
        if film >= len(self.indices) and self._copied is not None:
            picture, labels = self._copied.read(film - len(self.indices))
        else:
            picture, labels = self._films.read(self._index(film))
        if self.guided and labels is None:
            labels = self._opacity(self._index(film), picture.shape[1:])
        undrawn = self.evidence and labels is not None and bool((labels == UNDRAWN).all())
        if self.live:
            rng = np.random.Generator(np.random.PCG64([self.recipe.training.seed, seen, film]))
            live = self.recipe.augmentation.live
            picture, labels = vary(self.greys.plain(picture), labels, rng, live, self.swaps)
            picture = self.greys.shown(picture)
        return picture, labels, undrawn

    def _opacity(self, index: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """How opaque each pixel's cell is, 255 is 1: moved with the picture as if it were labels."""
        assert self._places is not None
        cells = np.round(np.clip(self._places.array[index], 0, 1) * 255).astype(np.uint8)
        return np.asarray(cv2.resize(cells, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST), np.uint8)


def one_thread(_worker: int) -> None:
    """Keep a process that prepares batches to one thread."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
