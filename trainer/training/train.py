"""From a recipe and a data set to a finished run folder.

On a CPU glibc gives large tensors back to the system after every layer and fetches them again, which can cost
half the speed. Only the environment a process is started with can tell it not to::

    MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=16000000000 MALLOC_TOP_PAD_=268435456 carina train ...
"""

from __future__ import annotations

import logging
import platform
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import worker
from schema.regions import is_lung
from trainer.data.records import PARTS, Dataset
from trainer.data.splits import Split, choose_films, split
from trainer.data.store import Samples, build_samples
from trainer.errors import DataError, RecipeError
from trainer.losses.registry import check_targets, classification_loss, segmentation_loss
from trainer.losses.statistics import LabelStatistics
from trainer.networks.registry import build_network
from trainer.recipe import Recipe
from trainer.training.data_module import TrainingData
from trainer.training.machine import Machine
from trainer.training.module import ClassificationModule, FilmModule, SegmentationModule
from trainer.training.optimisation import weight_average
from trainer.training.pictures import OVERLAYS, draw_curves, draw_overlays
from trainer.training.progress import TrainingProgress, Watch
from trainer.training.progression import Progression, draw_progression, first_chest
from trainer.training.record import Record, best_epoch
from trainer.training.run_folder import MEASURED, Run, RunFolder, load_run, save_whole
from trainer.training.saved_copies import build_copies
from trainer.training.stored import store_samples

_PREFIX = "network."
_LEAST_STD = 1e-4
_DIGITS = 6
_LIGHTNING_LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning")


def train(
    recipe: Recipe,
    dataset: Dataset,
    out: Path,
    *,
    resume: bool = True,
    progress: TrainingProgress | None = None,
    devices: int = 1,
    workers: int | None = None,
    cache: Path | None = None,
) -> Run:
    """Train, or go on with a training that was cut off, or return the run when it is finished already.

    Parameters
    ----------
    recipe
        Decides everything about the result.
    dataset
        Films and their truth, not yet chosen for the recipe.
    out
        The run folder: see :mod:`trainer.training.run_folder`.
    resume
        False starts over.
    progress
        Told how far it is.
    devices
        GPUs, or processes where there is none, that share every batch.
    workers
        Processes that prepare batches; None for a few beside a GPU and none beside a CPU, which has
        its hands full with the training itself.
    cache
        Where preprocessed films are kept, to share them between runs; the run folder's own by default.

    Raises
    ------
    RecipeError, DataError
        The recipe or the data cannot be used.
    RunError
        ``out`` holds another training, or other things.
    KeyboardInterrupt
        The person said so; the run folder can be gone on with.
    """
    progress = progress or TrainingProgress()
    _check_monitor(recipe)
    machine = Machine.here(recipe, devices, workers)
    dataset = dataset.for_recipe(recipe)
    torch.manual_seed(recipe.training.seed)
    network = build_network(recipe)
    folder = RunFolder(out)
    cache = cache or folder.cache
    with folder.held():
        folder.begin(recipe, resume=resume)
        recipe, samples, parts = _prepare(recipe, dataset, folder, cache, progress)
        if folder.is_finished():
            progress.say(f"{folder.path} is trained already.")
            return load_run(folder.path)
        copies = build_copies(
            samples, parts.train, recipe, cache, lambda done, total: progress.prepare("Copies made", done, total)
        )
        data = TrainingData(samples, parts, recipe, copies, devices=machine.devices, workers=machine.workers)
        module = _module(recipe, network, samples, parts, data.steps_per_epoch)
        folder.note(
            status="training",
            versions=_versions(),
            **asdict(machine),
            films=len(data.train),
            parameters=sum(weight.numel() for weight in network.parameters()),
        )
        action = "Going on with" if folder.last.is_file() else "Training"
        progress.say(
            f"{action} {recipe.name}: {len(data.train)} films{' with their copies' if copies else ''}, "
            f"{len(parts.validation)} to validate, {len(parts.test)} to test; at most {recipe.training.epochs} epochs "
            f"of {data.batches} batches of {recipe.training.batch_size}; {machine}"
        )
        _fit(module, data, folder, machine, progress)
        return _finish(recipe, folder, samples.subset(parts.validation[:OVERLAYS]), progress)


def _check_monitor(recipe: Recipe) -> None:
    """Refuse to choose epochs by a metric that the recipe's regions do not give."""
    if recipe.training.monitor == "lung_dice" and not any(map(is_lung, recipe.data.regions)):
        raise RecipeError(
            f"Recipe {recipe.name} chooses its epoch by lung_dice but has no lung among data.regions: "
            "set training.monitor to mean_dice."
        )


def _prepare(
    recipe: Recipe, dataset: Dataset, folder: RunFolder, cache: Path, progress: TrainingProgress
) -> tuple[Recipe, Samples, Split]:
    """The recipe with what only the training films tell, films of all parts, one part after the other, their places."""
    chosen = split(dataset.records, recipe.data.split)
    chosen = replace(
        chosen, train=choose_films(chosen.train, recipe.data.films, dataset.records, recipe.data.split.seed)
    )
    measured: dict[str, Any] = {}
    if recipe.needs_statistics:
        mean, std = _grey_statistics(recipe, dataset, chosen.train, cache, progress)
        recipe, measured = recipe.measured(mean, std), {MEASURED: {"mean": mean, "std": std}}
    wanted = [index for part in PARTS for index in chosen.part(part)]
    samples = build_samples(
        dataset, wanted, recipe, cache, lambda done, total: progress.prepare("Films read", done, total)
    )
    places = iter(range(len(samples)))
    parts = Split(*(tuple(islice(places, len(chosen.part(part)))) for part in PARTS))
    facts: dict[str, Any] = {
        "name": dataset.name,
        "digest": samples.digest,
        "films": len(samples),
        "parts": {part: len(parts.part(part)) for part in PARTS},
        "patients": {part: len({samples.patients[i] for i in parts.part(part)}) for part in PARTS},
        "origin": dataset.origin,
        **measured,
    }
    if recipe.task == "classification":
        facts["findings"] = {part: _counts(recipe, samples.targets[list(parts.part(part))]) for part in PARTS}
    rows = [(samples.names[i], samples.patients[i], part) for part in PARTS for i in parts.part(part)]
    folder.note_data(facts, rows)
    store_samples(samples, folder.films)
    return recipe, samples, parts


def _grey_statistics(
    recipe: Recipe, dataset: Dataset, train: Sequence[int], cache: Path, progress: TrainingProgress
) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of the training films, as they are before they are standardised."""
    films = build_samples(
        dataset,
        train,
        recipe.before_statistics,
        cache,
        lambda done, total: progress.prepare("Films measured", done, total),
    )
    planes = films.pictures[:, 0]
    means = np.array([plane.mean(dtype=np.float64) for plane in planes])
    squares = np.array([np.square(plane, dtype=np.float64).mean() for plane in planes])
    mean = float(means.mean())
    std = float(np.sqrt(max(squares.mean() - mean**2, 0.0)))
    if std < _LEAST_STD:
        raise DataError("The training films are of one shade, which cannot be standardised: look at the films.")
    return round(mean, _DIGITS), round(std, _DIGITS)


def _counts(recipe: Recipe, targets: npt.NDArray[np.float32]) -> dict[str, dict[str, int]]:
    return {
        finding: {"present": int((column == 1).sum()), "absent": int((column == 0).sum())}
        for finding, column in zip(recipe.data.findings, targets.T, strict=True)
    }


def _module(recipe: Recipe, network: nn.Module, samples: Samples, parts: Split, steps_per_epoch: int) -> FilmModule:
    name, options = recipe.loss.name, recipe.loss.options
    if recipe.task == "segmentation":
        loss = segmentation_loss(name, options, recipe.data.regions, recipe.network.activation)
        return SegmentationModule(recipe, network, steps_per_epoch, loss)
    learned = [*parts.train, *parts.validation]
    statistics = LabelStatistics.count(recipe.data.findings, samples.targets[list(parts.train)])
    check_targets(name, samples.targets[learned], [samples.names[i] for i in learned], statistics)
    return ClassificationModule(recipe, network, steps_per_epoch, classification_loss(name, options, statistics))


def _fit(
    module: FilmModule, data: TrainingData, folder: RunFolder, machine: Machine, progress: TrainingProgress
) -> None:
    table = module.recipe.training
    watch = Watch(progress, table.batch_size)
    averages = [weight_average(table.ema)] if table.ema else []
    progression = []
    if table.progression:
        films = [data.validation[0, place] for place in range(min(OVERLAYS, data.judged))]
        shown = films[first_chest(film["labels"] for film in films)]["picture"]
        progression = [Progression(folder.path / "progression", module.recipe, shown.numpy())]
    restore = signal.getsignal(signal.SIGINT)
    several = machine.devices > 1
    try:
        with _quiet():
            trainer = lightning.Trainer(
                accelerator=machine.accelerator,
                devices=machine.devices,
                strategy="ddp_spawn" if several else "auto",
                precision=machine.precision,
                max_epochs=table.epochs,
                accumulate_grad_batches=table.accumulate,
                gradient_clip_val=table.gradient_clip or None,
                callbacks=[watch, *averages, *progression, Record(folder, table, watch)],
                sync_batchnorm=several and machine.accelerator == "cuda",
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder.path,
            )
            trainer.fit(module, data, ckpt_path=folder.last if folder.last.is_file() else None, weights_only=True)
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns Ctrl-C into an exit, and no longer listens to it.
        signal.signal(signal.SIGINT, restore)
        folder.note(status="interrupted")
        raise KeyboardInterrupt from None


def _finish(recipe: Recipe, folder: RunFolder, validation: Samples, progress: TrainingProgress) -> Run:
    """Choose weights, draw, export."""
    last = _state(folder.last)
    kept = next(state for name, state in last["callbacks"].items() if name.startswith(Record.__name__))
    history = kept["history"]
    best = best_epoch(history, recipe.training.monitor)
    chosen = best if recipe.training.keep == "best" else len(history)
    state = _state(folder.best) if recipe.training.keep == "best" else last
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in state["state_dict"].items()}
    network = build_network(recipe, pretrained=False)
    network.load_state_dict(weights)
    network.eval()
    folder.write_metrics(history)
    draw_curves(history, folder.curves)
    draw_overlays(network, recipe, validation, folder.path / "overlays")
    if recipe.training.progression:
        assert validation.labels is not None
        pictures, film = folder.path / "progression", validation.subset([first_chest(validation.labels)])
        draw_progression(pictures, recipe, film, len(history), pictures.with_suffix(".png"))
    _export(network, recipe, folder)
    save_whole(network.state_dict(), folder.weights)
    folder.note(
        status="finished",
        epochs=len(history),
        best_epoch=best,
        chosen_epoch=chosen,
        steps=int(history[-1]["step"]),
        seconds=round(kept["seconds"], 1),
        films_per_second=round(kept["films"] / max(kept["seconds"], 1e-9), 2),
        finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    progress.say(f"Trained for {len(history)} epochs; the weights are those of epoch {chosen}: {folder.path}")
    return load_run(folder.path)


def _export(network: nn.Module, recipe: Recipe, folder: RunFolder) -> None:
    from trainer.export.onnx_export import OUTPUTS, export_onnx, outputs_of

    partial = folder.onnx.with_name(f"{folder.onnx.name}.part")
    export_onnx(outputs_of(recipe, network), partial, recipe.input_shape, OUTPUTS[recipe.task])
    partial.replace(folder.onnx)


def _state(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def _versions() -> dict[str, str]:
    return {
        "carina": worker.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "numpy": np.__version__,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's banners and advice to itself.

    Its advice does not fit here: on a CPU, processes that prepare batches take from the training what they give;
    there is no logger because metrics.csv is the log; epochs are short on purpose.
    """
    levels = {name: logging.getLogger(name).level for name in _LIGHTNING_LOGGERS}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
