"""How fast does a network learn here: beside a plain PyTorch loop, and our recipe beside the paper's?

    python benchmarks/training.py
    python benchmarks/training.py --threads 1     # on a machine whose other cores are busy
    python benchmarks/training.py --quick

Two ratios of films a second, on phantoms, each the median over rounds taken in turns in one process:

loop    `train` with Holste's U-Net at 128 x 128 pixels, batches of 2, cross-entropy, Adam and no augmentation, against
        a bare PyTorch loop over the same pictures in memory. After each epoch of the training the loop takes as many
        steps. Target: at least 0.9.
recipe  the recipe carina-regions against holste, each as it is, at the 256 x 256 pixels of both. Target: at
        least 1.5. It says nothing about how good either becomes.

The first epoch of every training warms up and is not counted; neither are validation, checkpoints and
export, which the plain loop has not. Other programs on the machine make both slower and the ratios restless: load
and range are printed. Threads that wait for each other on busy cores distort most.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch.nn import functional

from trainer.data.description import load_dataset
from trainer.losses.registry import segmentation_loss
from trainer.networks.registry import build_network
from trainer.recipe import Recipe, load_recipe
from trainer.training.optimisation import has_bfloat16
from trainer.training.progress import Pace, TrainingProgress
from trainer.training.run_folder import RunFolder
from trainer.training.stored import open_samples
from trainer.training.train import train

LOOP_TARGET, RECIPE_TARGET = 0.9, 1.5
PAPER, OURS = "holste", "carina-regions"

PLAIN = {
    "preprocess": [{"step": "min_max"}, {"step": "resize", "height": 128, "width": 128}],
    "loss.pixel_weights": "",
    "augmentation.saved.copies": 0,
}


class EnoughError(Exception):
    """Every epoch is timed: the run need not be finished."""


class Stopwatch(TrainingProgress):
    """Films a second of every epoch; ``between`` is called after each, and its time is not counted."""

    def __init__(self, recipe: Recipe, between: Callable[[], None] = lambda: None) -> None:
        self.batch_size, self.between = recipe.training.batch_size, between
        self.speeds: list[float] = []
        self._films, self._seconds = 0.0, 0.0

    def epoch(self, pace: Pace, row: Mapping[str, float], better: bool) -> None:
        """``pace`` counts from the beginning of the training."""
        films = self.batch_size * pace.batches * pace.epoch
        seconds = films / pace.films_per_second
        self.speeds.append((films - self._films) / (seconds - self._seconds))
        self._films, self._seconds = films, seconds
        self.between()
        if pace.epoch == pace.epochs:
            raise EnoughError


class PlainLoop:
    """What anyone would write: pictures and labels in memory, a shuffled order, forward, backward, step."""

    def __init__(self, recipe: Recipe, films: Path) -> None:
        samples = open_samples(films)
        assert samples.labels is not None
        self.pictures = torch.from_numpy(np.array(samples.pictures, np.float32))
        self.labels = torch.from_numpy(np.array(samples.labels, np.int64))
        self.recipe = recipe
        self.network = build_network(recipe).train()
        self.optimiser = torch.optim.Adam(self.network.parameters(), recipe.optimiser.rate)

    def check(self) -> None:
        """See that the loss is the recipe's."""
        loss = segmentation_loss(self.recipe.loss.name, self.recipe.loss.options, self.recipe.data.regions)
        with torch.no_grad():
            logits, labels = self.network(self.pictures[:2]), self.labels[:2]
            torch.testing.assert_close(functional.cross_entropy(logits, labels), loss(logits, labels, None))

    def epoch(self) -> float:
        """Films a second of as many steps as an epoch of the recipe has."""
        table = self.recipe.training
        passes = -(-table.steps_per_epoch * table.batch_size // len(self.pictures))
        order = torch.cat([torch.randperm(len(self.pictures)) for _ in range(passes)])
        started = time.perf_counter()
        for films in order[: table.steps_per_epoch * table.batch_size].split(table.batch_size):
            self.optimiser.zero_grad()
            loss = functional.cross_entropy(self.network(self.pictures[films]), self.labels[films])
            loss.backward()
            self.optimiser.step()
        return table.steps_per_epoch * table.batch_size / (time.perf_counter() - started)


def speeds_of(recipe: Recipe, folder: Path, cache: Path, between: Callable[[], None] = lambda: None) -> list[float]:
    """Films a second of every epoch but the first."""
    watch = Stopwatch(recipe, between)
    try:
        train(recipe, load_dataset("phantoms"), folder, cache=cache, progress=watch)
    except EnoughError:
        return watch.speeds[1:]
    raise AssertionError("a training ends by the stopwatch")


def against_plain_loop(folder: Path, rounds: int, steps: int) -> tuple[list[float], list[float]]:
    """Films a second of both, epoch by epoch."""
    recipe = load_recipe(PAPER, {**PLAIN, **_short(rounds + 1, steps)})
    run = folder / "loop"
    loops: list[PlainLoop] = []
    speeds: list[float] = []

    @torch.enable_grad()
    def between() -> None:
        if not loops:
            loops.append(PlainLoop(recipe, RunFolder(run).films))
            loops[0].check()
        speeds.append(loops[0].epoch())

    return speeds_of(recipe, run, folder / "cache", between), speeds[1:]


def against_paper(folder: Path, rounds: int, steps: Mapping[str, int]) -> dict[str, list[float]]:
    """Films a second of both recipes, round by round."""
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, count in steps.items():
            recipe = load_recipe(name, _short(2, count))
            speeds[name] += speeds_of(recipe, folder / f"{name}-{number}", folder / "cache")
    return speeds


def _short(epochs: int, steps: int) -> dict[str, Any]:
    return {"training.epochs": epochs, "training.steps_per_epoch": steps, "data.phantoms": 32}


def tell(what: str, ours: list[float], theirs: list[float], names: tuple[str, str], target: float) -> bool:
    """Print the medians and the ratio; whether the target is met."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    ratio = median(ratios)
    for name, speeds in zip(names, (ours, theirs), strict=True):
        print(f"{what:8s} {name:22s} {median(speeds):7.2f} films/s  ({min(speeds):.2f}-{max(speeds):.2f})")
    met = ratio >= target
    print(
        f"{what:8s} {'ratio':22s} {ratio:7.2f}          ({min(ratios):.2f}-{max(ratios):.2f}, {len(ratios)} rounds)  "
        f"target {target}: {'PASS' if met else 'MISS'}",
        flush=True,
    )
    return met


def main() -> int:
    """Print both ratios; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short rounds: a look, not a figure")
    parser.add_argument("--rounds", type=int, help="rounds of each ratio")
    parser.add_argument("--threads", type=int, help="threads of a CPU (default: one per core)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    load = os.getloadavg()[0]
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    bfloat16 = "bfloat16" if has_bfloat16("cuda" if cuda else "cpu") else "no bfloat16"
    print(
        f"{device}, {bfloat16}; torch {torch.__version__}; {os.cpu_count()} cores, load {load:.1f} before", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, plain = against_plain_loop(folder, arguments.rounds or (2 if quick else 7), 4 if quick else 12)
        met = tell("loop", ours, plain, ("train", "plain loop"), LOOP_TARGET)
        steps = {PAPER: 2, OURS: 1} if quick else {PAPER: 10, OURS: 4}
        speeds = against_paper(folder, arguments.rounds or (1 if quick else 3), steps)
        met &= tell("recipe", speeds[OURS], speeds[PAPER], (OURS, PAPER), RECIPE_TARGET)
    print(f"load {os.getloadavg()[0]:.1f} after")
    return int(not met)


if __name__ == "__main__":
    raise SystemExit(main())
