"""What a network costs: parameters, seconds a film, size (Novikov et al., Table VIII).

Times are those of one film through the network alone, already prepared: the median of several after some that do not
count. The CPU's is the worker's own engine in float32, with the cores this process may use; the GPU's is PyTorch in
float32 on the first GPU, where there is one. The size is that of the weights in float32, in MiB, as the paper's sizes
are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from trainer.errors import RunError
from trainer.networks.registry import build_network
from trainer.recipe import Recipe
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import EngineBuildError, Precision

#: The figures, in the order of Table VIII.
COSTS = ("parameters", "cpu_seconds", "gpu_seconds", "mebibytes")

_WARM_UP, _MEASURED = 1, 5


def network_costs(recipe: Recipe, onnx: Path) -> dict[str, dict[str, float | None]]:
    """Each of :data:`COSTS` as ``{"value": number}``; None where there is no GPU.

    The network has fresh weights: they change no figure. ``onnx`` is the file the engine compiles; it is written
    where it is missing.

    Raises
    ------
    RunError
        The engine does not compile the network.
    """
    network = build_network(recipe, pretrained=False).eval()
    if not onnx.is_file():
        _export(network, recipe, onnx)
    tensors = [*network.parameters(), *network.buffers()]
    figures: dict[str, float | None] = {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "cpu_seconds": _cpu_seconds(onnx, recipe.input_shape),
        "gpu_seconds": _gpu_seconds(network, recipe.input_shape),
        "mebibytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20,
    }
    return {name: {"value": value} for name, value in figures.items()}


def _export(network: nn.Module, recipe: Recipe, onnx: Path) -> None:
    from trainer.export.onnx_export import OUTPUTS, export_onnx, outputs_of

    onnx.parent.mkdir(parents=True, exist_ok=True)
    partial = onnx.with_name(f"{onnx.name}.part")
    export_onnx(outputs_of(recipe, network), partial, recipe.input_shape, OUTPUTS[recipe.task])
    partial.replace(onnx)


def _cpu_seconds(onnx: Path, shape: tuple[int, int, int]) -> float:
    film = np.zeros((1, *shape), np.float32)
    try:
        engine = open_backend().compile(onnx, Precision.FP32)
    except EngineBuildError as error:
        raise RunError(f"The network cannot be run: {error}") from error
    try:
        return _median_seconds(lambda: engine.run(film))
    finally:
        engine.close()


def _gpu_seconds(network: nn.Module, shape: tuple[int, int, int]) -> float | None:
    if not torch.cuda.is_available():
        return None
    film = torch.zeros((1, *shape), device="cuda")
    on_gpu = network.to("cuda")

    def run() -> None:
        with torch.inference_mode():
            on_gpu(film)
        torch.cuda.synchronize()

    try:
        return _median_seconds(run)
    finally:
        network.to("cpu")


def _median_seconds(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_WARM_UP + _MEASURED):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return median(seconds[_WARM_UP:])
