"""The tiny networks as PyTorch modules, for the backend that runs exported programs."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from tiny_bundle import SIZE
from torch import nn

from worker.inference.engines.torch import write_program


class TinyNetwork(nn.Module):
    """The module that a tiny ONNX network says in other words: same weights, same outputs."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        first, second = (
            torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer
        )  # fmt: skip
        self.segments = model.graph.node[-1].op_type == "Softmax"
        size = first.shape[-1]
        self.first = nn.Conv2d(
            first.shape[1], first.shape[0], size, 1 if self.segments else 2, (size - 1) // 2, bias=False
        )  # fmt: skip
        self.second = nn.Conv2d(second.shape[1], second.shape[0], 1, bias=False)
        self.first.weight.data, self.second.weight.data = first, second

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        maps = self.second(torch.relu(self.first(image)))
        if self.segments:
            return torch.softmax(maps, dim=1)
        return torch.sigmoid(maps.mean(dim=(2, 3))), maps


def write_tiny_program(model: onnx.ModelProto, path: Path) -> None:
    """Save the program of a tiny ONNX network."""
    names = [output.name for output in model.graph.output]
    write_program(
        TinyNetwork(model), path, (model.graph.input[0].type.tensor_type.shape.dim[1].dim_value, SIZE, SIZE), names
    )
