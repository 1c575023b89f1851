"""Run folders as a training leaves them, in seconds: real networks that learned easy pictures a little."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from handmade_runs import FINDINGS, SIZE, chest_map, make_recipe, map_picture  # noqa: E402

from trainer.data.store import Samples  # noqa: E402
from trainer.networks.registry import build_network  # noqa: E402
from trainer.recipe import Recipe  # noqa: E402
from trainer.training.recipe_file import write_recipe  # noqa: E402
from trainer.training.run_folder import Run, RunFolder, load_run, save_whole  # noqa: E402
from trainer.training.stored import store_samples  # noqa: E402

PARTS = {"train": 24, "validation": 12, "test": 12}
SECRET = "Doe^Jane"
NETWORKS = {
    "segmentation": {"name": "holste_unet", "options": {"base_width": 2}},
    "classification": {"name": "small_classifier", "options": {"base_width": 2}},
}


def run_recipe(task: str, **changes: Any) -> Recipe:
    """A recipe of a network of a few filters at 64 x 64 pixels."""
    return make_recipe(task, **{"network": NETWORKS[task], **changes})


def make_run(
    folder: Path,
    recipe: Recipe,
    *,
    seed: int = 1,
    steps: int = 30,
    data: str = "tiny films",
    names: Sequence[str] | None = None,
    patients: Sequence[str] | None = None,
    parts: dict[str, int] | None = None,
    origin: dict[str, str] | None = None,
) -> Run:
    """A finished run of ``recipe``; the same films in the same order whatever ``seed`` the network starts with."""
    parts = PARTS if parts is None else parts
    count = sum(parts.values())
    names = names or [f"{SECRET}/{index}" for index in range(count)]
    patients = patients or [f"patient of {name}" for name in names]
    place = RunFolder(folder)
    folder.mkdir(parents=True)
    write_recipe(recipe, place.recipe)
    samples = _samples(place.cache, recipe, names, patients)
    order = [part for part, films in parts.items() for _ in range(films)]
    facts: dict[str, Any] = {
        "name": data,
        "digest": samples.digest,
        "films": count,
        "parts": {part: parts.get(part, 0) for part in PARTS},
        "patients": {part: len({p for p, o in zip(patients, order, strict=True) if o == part}) for part in PARTS},
        "origin": {"data set": data, "films": str(count), "truth": "label_map", **(origin or {})},
    }
    place.note_data(facts, list(zip(names, patients, order, strict=True)))
    store_samples(samples, place.films)
    torch.manual_seed(seed)
    network = build_network(recipe)
    _learn(network, samples.subset(range(parts["train"])), recipe, steps)
    save_whole(network.state_dict(), place.weights)
    place.onnx.write_bytes(b"written by a training, not read by a packaging")
    place.metrics.write_text("epoch,step,rate,train_loss,loss\n1,1,0.1,1.0,1.0\n")
    place.note(
        status="finished", epochs=3, chosen_epoch=2, steps=steps, seconds=1.0, films_per_second=9.0,
        device="a processor", cache=str(place.cache), precision="32-true", versions={"carina": "0"},
    )  # fmt: skip
    return load_run(folder)


def _samples(cache: Path, recipe: Recipe, names: Sequence[str], patients: Sequence[str]) -> Samples:
    cache.mkdir()
    count, random = len(names), np.random.default_rng(7)
    maps = np.stack([chest_map(int(shift)) for shift in random.integers(-4, 5, count)])
    ill = np.arange(count) % 2 == 0
    pictures = np.stack([map_picture(labels)[0] for labels in maps]) * 0.6
    pictures = pictures + np.where(ill, 0.25, 0.0)[:, None, None] + random.normal(0, 0.08, pictures.shape)
    arrays = {"pictures": np.clip(pictures, 0, 1).astype(np.float16)}
    if recipe.task == "segmentation":
        arrays["labels"] = np.where(maps < len(recipe.data.regions), maps, 0).astype(np.uint8)
    targets = np.full((count, len(recipe.data.findings)), np.nan, np.float32)
    for column, finding in enumerate(recipe.data.findings):
        if finding != FINDINGS[1]:
            targets[:, column] = ill if finding == "pneumonia" else ~ill
    for name, array in arrays.items():
        np.save(cache / f"{name}.npy", array)
    mapped = {name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in arrays}
    planes = mapped["pictures"]
    channels = recipe.input_shape[0]
    return Samples(
        pictures=np.broadcast_to(planes[:, None], (count, channels, SIZE, SIZE)),
        labels=mapped.get("labels"),
        targets=targets,
        places=None,
        names=tuple(names),
        patients=tuple(patients),
        ages=np.full(count, 700.0, np.float32),
        digest=hashlib.sha256(json.dumps([recipe.task, *names]).encode()).hexdigest(),
    )


def _learn(network: Any, films: Samples, recipe: Recipe, steps: int) -> None:
    pictures = torch.from_numpy(np.asarray(films.pictures, np.float32))
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    network.train()
    for step in range(steps):
        chosen = np.arange(8 * step, 8 * step + 8) % len(films)
        if recipe.task == "segmentation":
            truth = torch.from_numpy(np.asarray(films.labels)[chosen]).long()
            loss = torch.nn.functional.cross_entropy(network(pictures[chosen]), truth)
        else:
            targets = films.targets[chosen]
            known = ~np.isnan(targets)
            logits = network(pictures[chosen])[0][torch.from_numpy(known)]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets[known]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
