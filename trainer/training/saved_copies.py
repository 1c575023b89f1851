"""Transformed copies of each training film, made once and kept (Holste et al., section 2.2; Wang et al.)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.augment import saved_copy, side_swaps
from trainer.data.store import Samples
from trainer.recipe import Recipe
from trainer.training.greys import Greys


@dataclass(frozen=True)
class Copies:
    """``pictures`` float16 (copies * n, H, W), one channel since all are equal, and ``labels``
    uint8 (copies * n, H, W) or None: copy by copy."""

    pictures: npt.NDArray[np.float16]
    labels: npt.NDArray[np.uint8] | None


def build_copies(
    samples: Samples,
    train: tuple[int, ...],
    recipe: Recipe,
    cache: Path,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Copies | None:
    """The copies the recipe asks for, from ``cache`` when they were made before; None when it asks for none.

    Copy c of film i depends on the recipe's seed, c and i only. ``progress`` is told films done and in all.
    """
    table = recipe.augmentation.saved
    if not table.copies:
        return None
    facts = [samples.digest, list(train), table.model_dump(), recipe.training.seed]
    folder = cache / f"copies-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        partial = folder.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _make(samples, train, recipe, partial, progress)
        partial.rename(folder)
    labels = folder / "labels.npy"
    return Copies(
        np.load(folder / "pictures.npy", mmap_mode="r"),
        np.load(labels, mmap_mode="r") if labels.is_file() else None,
    )


def _make(
    samples: Samples, train: tuple[int, ...], recipe: Recipe, folder: Path, progress: Callable[[int, int], None]
) -> None:
    table = recipe.augmentation.saved
    swaps = side_swaps(recipe.data.regions, table.varied, overlapping=recipe.data.overlapping)
    greys = Greys.of(recipe)
    count = table.copies * len(train)
    open_array = np.lib.format.open_memmap
    pictures = open_array(folder / "pictures.npy", "w+", np.float16, (count, *samples.pictures.shape[2:]))
    labels = None
    if samples.labels is not None:
        labels = open_array(folder / "labels.npy", "w+", np.uint8, (count, *samples.labels.shape[1:]))
    for place in range(count):
        copy, film = divmod(place, len(train))
        index = train[film]
        rng = np.random.Generator(np.random.PCG64([recipe.training.seed, copy, film]))
        truth = None if samples.labels is None else np.array(samples.labels[index])
        stored = samples.pictures[index, :1].astype(np.float32)
        picture, truth = saved_copy(greys.plain(stored), truth, rng, table, swaps)
        pictures[place] = greys.shown(picture)[0]
        if labels is not None and truth is not None:
            labels[place] = truth
        progress(place + 1, count)
    pictures.flush()
    if labels is not None:
        labels.flush()
