"""A run folder: everything one training reads, writes and leaves behind.

=====================  =======================================================================
recipe.toml            every setting, defaults included
split.csv              each film's name, patient key and part
data.json              where the films came from, the digest of their content, counts, measured grey values
films.npz              the films' targets and ages, and which files of the cache hold their pictures
metrics.csv            a row per epoch; the same however often the training was interrupted
curves.png             the same as a picture
overlays/              some validation films, truth beside prediction, by the chosen weights
progression/           one validation film's probabilities after every epoch, where the recipe asks for them
progression.png        some of them side by side
checkpoints/last.ckpt  state to go on from: Lightning's, and the epochs so far
checkpoints/best.ckpt  the same as it was at the best epoch
network.pt             the chosen weights, a plain ``state_dict``
member.onnx            the chosen weights as the worker runs them
run.json               status, versions, device, seconds, films a second, best epoch
cache/                 preprocessed films and saved copies; may be deleted after evaluation and packaging
evaluation/, bundle/   what ``carina train`` adds: :mod:`trainer.evaluation`, :mod:`trainer.export`
members/               further runs whose networks join the bundle
=====================  =======================================================================

Every file appears whole or not at all: it is written under another name first and renamed.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.data.records import PARTS
from trainer.data.splits import Split
from trainer.data.store import Samples
from trainer.errors import RunError
from trainer.networks.registry import build_network
from trainer.recipe import Recipe
from trainer.training.recipe_file import differences, read_recipe, write_recipe
from trainer.training.stored import open_samples

#: An epoch's metrics: ``epoch`` (from 1), ``step``, ``rate``, ``train_loss``, ``loss``, then the task's.
Row = dict[str, float]

_LOCK = ".lock"
#: Where ``data.json`` keeps the mean and standard deviation that a recipe leaves to the training films.
MEASURED = "standardise"


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keep a lock file for this process alone; a process that dies lets go of it.

    Raises
    ------
    RunError
        Another process has it.
    """
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"Another process trains in {file.parent}: wait for it, or stop it.") from None
        yield


@dataclass(frozen=True)
class RunFolder:
    """Names and whole-or-nothing writing of a run folder's files."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def split(self) -> Path:
        """Which film is in which part."""
        return self.path / "split.csv"

    @property
    def data(self) -> Path:
        """Facts about the data."""
        return self.path / "data.json"

    @property
    def films(self) -> Path:
        """Where the preprocessed films lie."""
        return self.path / "films.npz"

    @property
    def curves(self) -> Path:
        """The metrics as a picture."""
        return self.path / "curves.png"

    @property
    def metrics(self) -> Path:
        """A row per epoch."""
        return self.path / "metrics.csv"

    @property
    def facts(self) -> Path:
        """Facts about the run."""
        return self.path / "run.json"

    @property
    def last(self) -> Path:
        """The state after the last finished epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The state after the best epoch."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def weights(self) -> Path:
        """The chosen weights."""
        return self.path / "network.pt"

    @property
    def onnx(self) -> Path:
        """The chosen weights as the worker runs them."""
        return self.path / "member.onnx"

    @property
    def cache(self) -> Path:
        """Preprocessed films and saved copies."""
        return self.path / "cache"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep it for this process alone; a process that dies lets go of it.

        Raises
        ------
        RunError
            The folder holds other things, or another process trains there.
        """
        lock = self.path / _LOCK
        if self.path.is_dir() and any(self.path.iterdir()) and not self.recipe.is_file() and not lock.is_file():
            raise RunError(f"{self.path} holds other things than a run: choose another folder for the run.")
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(lock):
            yield

    def is_finished(self) -> bool:
        """Whether the training is over and all it leaves is written."""
        return self.weights.is_file() and json.loads(self.facts.read_text("utf-8"))["status"] == "finished"

    def begin(self, recipe: Recipe, *, resume: bool) -> None:
        """Write the recipe, or see that a training begun there is this recipe's.

        Raises
        ------
        RunError
            Another recipe was begun there and ``resume`` is asked for.
        """
        if self.recipe.is_file() and resume:
            changed = differences(read_recipe(self.recipe).to_dict(), recipe.to_dict())
            if changed:
                raise RunError(
                    f"{self.path} was begun with another recipe ({'; '.join(changed)}): "
                    "give the same settings, another folder, or --fresh to start over."
                )
        elif self.recipe.is_file():
            self._clear()
        self.last.parent.mkdir(parents=True, exist_ok=True)
        if not self.recipe.is_file():
            partial = _partial(self.recipe)
            write_recipe(recipe, partial)
            partial.replace(self.recipe)

    def note_data(self, facts: Mapping[str, Any], split: Sequence[tuple[str, str, str]]) -> None:
        """Keep facts about the data and the (name, patient, part) of each film; when resuming, compare.

        Raises
        ------
        RunError
            The training was begun on other data or with another split.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([("name", "patient", "part"), *split])
        if self.data.is_file() and self.split.is_file():
            before = json.loads(self.data.read_text("utf-8"))
            if before["digest"] != facts["digest"]:
                raise RunError(
                    f"{self.path} was begun on other data ({before['films']} films of {before['name']}, digest "
                    f"{before['digest'][:12]}; now {facts['films']} of {facts['name']}, {facts['digest'][:12]}): "
                    "give the same data, another folder, or --fresh to start over."
                )
            if self.split.read_text("utf-8") != table.getvalue():
                raise RunError(f"{self.path} was begun with another split: restore the data set, or use --fresh.")
        write_whole(self.data, json.dumps(facts, indent=2) + "\n")
        write_whole(self.split, table.getvalue())

    def note(self, **facts: Any) -> None:
        """Add facts to ``run.json``."""
        old = json.loads(self.facts.read_text("utf-8")) if self.facts.is_file() else {}
        write_whole(self.facts, json.dumps({**old, **facts}, indent=2) + "\n")

    def write_metrics(self, history: Sequence[Row]) -> None:
        """Replace ``metrics.csv``."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(history[0])
        writer.writerows([[format(value, ".8g") for value in row.values()] for row in history])
        write_whole(self.metrics, table.getvalue())

    def _clear(self) -> None:
        """Remove what a training left, but not the cache."""
        left = (self.data, self.split, self.films, self.metrics, self.facts, self.weights, self.onnx, self.curves)
        for path in left:
            path.unlink(missing_ok=True)
        for folder in ("checkpoints", "overlays", "progression", "evaluation", "bundle"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        self.recipe.unlink()


@dataclass(frozen=True)
class Run:
    """A finished training."""

    folder: Path
    recipe: Recipe  #: with the training films' own mean and standard deviation, where it asks for them

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says."""
        return dict(json.loads((self.folder / "run.json").read_text("utf-8")))

    @cached_property
    def data(self) -> dict[str, Any]:
        """What ``data.json`` says."""
        return dict(json.loads((self.folder / "data.json").read_text("utf-8")))

    @cached_property
    def split(self) -> Split:
        """Places in the stored films, in the order of ``split.csv``, of each part."""
        with (self.folder / "split.csv").open(newline="", encoding="utf-8") as file:
            parts = [row["part"] for row in csv.DictReader(file)]
        return Split(*(tuple(i for i, found in enumerate(parts) if found == part) for part in PARTS))

    @cached_property
    def metrics(self) -> list[Row]:
        """The rows of ``metrics.csv``."""
        with (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]

    @property
    def best(self) -> Row:
        """The metrics of the epoch whose weights were chosen."""
        return self.metrics[int(self.facts["chosen_epoch"]) - 1]

    def samples(self, part: str) -> Samples:
        """The stored films of ``train``, ``validation`` or ``test``.

        Raises
        ------
        RunError
            The cache was deleted.
        """
        try:
            samples = open_samples(RunFolder(self.folder).films)
        except FileNotFoundError:
            raise RunError(f"The preprocessed films of {self.folder} are gone: train it again.") from None
        return samples.subset(self.split.part(part))

    def network(self) -> nn.Module:
        """The network with the chosen weights, float32 on the CPU, in evaluation mode."""
        network = build_network(self.recipe, pretrained=False)
        network.load_state_dict(torch.load(self.folder / "network.pt", map_location="cpu", weights_only=True))
        return network.eval()


def load_run(path: Path) -> Run:
    """A finished run.

    Raises
    ------
    RunError
        There is no run, or it is not finished.
    """
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise RunError(f"{path} is no run folder: it has no recipe.toml.")
    if not folder.is_finished():
        raise RunError(f"The training in {path} is not finished: go on with carina train {folder.recipe} --out {path}.")
    recipe = read_recipe(folder.recipe)
    if recipe.needs_statistics:
        recipe = recipe.measured(**json.loads(folder.data.read_text("utf-8"))[MEASURED])
    return Run(path, recipe)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    partial = _partial(path)
    partial.write_text(text, "utf-8")
    partial.replace(path)


def save_whole(content: Any, path: Path) -> None:
    """Save tensors so that the file is there whole or not at all."""
    partial = _partial(path)
    torch.save(content, partial)
    partial.replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
