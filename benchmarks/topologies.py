"""The papers' networks with random weights, as files and as a bundle: for the benchmarks of engines and throughput."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from schema.bundle import (
    BundleRegion,
    FindingThreshold,
    Manifest,
    Member,
    Task,
    read_manifest,
    sha256_of,
    write_manifest,
)
from schema.findings import Finding
from schema.regions import HOLSTE_REGIONS
from worker.film.preprocess import apply
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import FloatArray, Precision
from worker.phantom import make_phantom

#: Network → input channels, outputs and picture size, as in the papers.
TOPOLOGIES = {
    "holste_unet": (1, 8, 256),
    "densenet121": (3, 10, 512),
    "densenet169": (3, 10, 512),
    "resnet101": (3, 10, 512),
}
WARM_TARGET = 0.25
_PARITY_FILMS = 4
_FIRST_CALIBRATION_SEED = 50_000

#: A network's logits, made into those that are exported.
Settle = Callable[[Any, Task], Any]


@dataclass
class Subject:
    """A network: its file for each variant ("" is the main one), and itself for PyTorch if it is at hand."""

    name: str
    shape: tuple[int, int, int]
    files: dict[str, Path]
    module: Any = None
    best: dict[tuple[str, int], float] = field(default_factory=dict)


def topology(
    name: str,
    folder: Path,
    size: int | None = None,
    *,
    pictures: Sequence[FloatArray] = (),
    settle: Settle = lambda network, task: network,
    program: bool = True,
) -> Subject:
    """A network of the trainer with random weights, exported in every form that this machine has a use for.

    ``pictures`` (channels, height, width) give the 8-bit twin its ranges; noise does without. ``settle``
    may put something behind the network. Without ``program`` there is no file for the torch backend.
    """
    import torch

    from trainer.export.onnx_export import (
        OUTPUTS,
        ClassificationOutputs,
        SegmentationOutputs,
        export_onnx,
        round_weights,
    )
    from trainer.export.quantise import quantise
    from trainer.networks.registry import NETWORKS, make_network
    from worker.inference.engines.torch import write_program

    channels, outputs, usual = TOPOLOGIES[name]
    shape = (channels, size or usual, size or usual)
    rng = np.random.default_rng(0)
    pictures = pictures or [rng.random(shape, np.float32) for _ in range(2)]
    torch.manual_seed(0)
    network = make_network(name, channels, outputs).train()
    with torch.no_grad():
        # Running statistics of something that is not nothing, so that 8 bits have ranges.
        network(torch.from_numpy(np.stack(pictures[:4]))[:, :, ::2, ::2])
    round_weights(network)
    task = NETWORKS[name].task
    outside = SegmentationOutputs if task == "segmentation" else ClassificationOutputs
    module = outside(settle(network, task)).eval()
    files = {"": folder / f"{name}.onnx", "int8": folder / f"{name}.int8.onnx"}
    export_onnx(module, files[""], shape, OUTPUTS[task])
    if program:
        files["torch"] = folder / f"{name}.pt2"
        write_program(module, files["torch"], shape, OUTPUTS[task])
    quantise(files[""], files["int8"], list(pictures))
    return Subject(name, shape, files, module)


def as_bundle(
    subjects: Sequence[Subject],
    folder: Path,
    *,
    preprocess: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    pictures: Mapping[str, Sequence[FloatArray]] | None = None,
) -> Path:
    """A bundle of topologies in ``folder``, whose parity references are what float32 says.

    ``preprocess`` and ``pictures`` belong to each network by name; without them films cannot be read with the bundle
    and the parity films are noise.
    """
    backend = open_backend("openvino")
    arrays: list[dict[str, np.ndarray]] = [{} for _ in range(_PARITY_FILMS)]
    members = []
    for subject in subjects:
        engine = backend.compile(subject.files[""], Precision.FP32)
        task: Task = "classification" if engine.spec.output("cam") else "segmentation"
        steps = tuple(map(dict, preprocess[subject.name])) if preprocess else ()
        variants = {name: file.name for name, file in subject.files.items() if name}
        members.append(
            Member(subject.name, task, subject.files[""].name, *subject.shape, steps, subject.name, variants=variants)
        )
        for seed, film in enumerate(arrays):
            noise = np.random.default_rng(seed).random(subject.shape, np.float32)
            picture = (pictures[subject.name][seed] if pictures else noise).astype(np.float16)
            outputs = engine.run(picture[np.newaxis].astype(np.float32))
            film[f"{subject.name}.input"] = picture
            film |= {f"{subject.name}.{name}": value[0] for name, value in outputs.items()}
        engine.close()
    for number, film in enumerate(arrays):
        np.savez_compressed(folder / f"{number}.npz", **film)
    parity = tuple(f"{number}.npz" for number in range(len(arrays)))
    classifies = any(member.task == "classification" for member in members)
    manifest = Manifest(
        name="topologies",
        version="1",
        created="",
        description="Random weights.",
        regions=tuple(BundleRegion(r.value, r.name, r.title, r.colour, "exact") for r in HOLSTE_REGIONS),
        findings=tuple(FindingThreshold(finding, 0.5) for finding in list(Finding)[:10]) if classifies else (),
        members=tuple(members),
        temperature=1.0,
        parity_films=parity,
        metrics={},
        recipe={},
        data_digest="",
        files={name: sha256_of(folder / name) for name in (*parity, *(n for m in members for n in m.networks))},
    )
    write_manifest(folder, manifest)
    return folder


START = """
import sys, time
from pathlib import Path
from worker.inference.bundles import load_bundle
from worker.inference.engines.backends import open_backend
open_backend(sys.argv[3])
started = time.perf_counter()
load_bundle(Path(sys.argv[1]), home=Path(sys.argv[2]), backend=sys.argv[3], precision=sys.argv[4])
print(time.perf_counter() - started)
"""


def start_seconds(bundle: Path, home: Path, backend: str, precision: str) -> float:
    """Seconds until a bundle is ready in a new process that has the library imported."""
    words = [sys.executable, "-c", START, str(bundle), str(home), backend, precision]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def starts(bundle: Path, backend: str, rounds: int, precision: str = "auto") -> tuple[float, float]:
    """Median seconds of a cold and of a warm start."""
    cold, warm = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as home:
            cold.append(start_seconds(bundle, Path(home), backend, precision))
            warm.append(start_seconds(bundle, Path(home), backend, precision))
    return median(cold), median(warm)


def with_twins(bundle: Path, target: Path) -> Path:
    """A copy of ``bundle`` in ``target`` whose networks have 8-bit twins, calibrated on phantoms."""
    from trainer.export.quantise import CALIBRATION_FILMS, quantise

    shutil.copytree(bundle, target)
    manifest = read_manifest(target)
    films = [make_phantom(_FIRST_CALIBRATION_SEED + number).image for number in range(CALIBRATION_FILMS)]
    members = []
    for member in manifest.members:
        twin = f"{member.name}.int8.onnx"
        quantise(target / member.onnx, target / twin, [apply(member.preprocess, film, None) for film in films])
        members.append(replace(member, variants={**member.variants, "int8": twin}))
    hashes = {name: sha256_of(target / name) for member in members for name in member.networks}
    write_manifest(target, replace(manifest, members=tuple(members), files={**manifest.files, **hashes}))
    return target
