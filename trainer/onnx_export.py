"""Networks to portable ONNX files: probabilities inside the graph, weights in half precision."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

OPSET = 20
_SMALLEST = 256  # elements; smaller tensors are shapes, scales and biases


class SegmentationOutputs(nn.Module):  # type: ignore[misc]
    """A segmentation network with its softmax: ``probabilities`` (N, regions, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Probabilities, one channel per region."""
        return torch.softmax(self.network(image), dim=1)


class ClassificationOutputs(nn.Module):  # type: ignore[misc]
    """A classifier with its sigmoid: ``probabilities`` (N, findings) and ``cam`` (N, findings, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities before temperature scaling, and raw class activation maps."""
        logits, maps = self.network(image)
        return torch.sigmoid(logits), maps


def export_onnx(module: nn.Module, path: Path, shape: tuple[int, int, int], outputs: list[str]) -> None:
    """Write ``module`` with input ``image`` of shape (batch, \\*shape), any batch, to ``path``.

    Inputs, outputs and computation are float32; weights are stored in half precision.
    """
    module = module.eval().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.zeros(2, *shape),),
            input_names=["image"],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=256)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    model = program.model_proto
    _halve_weights(model)
    _forget_places(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _halve_weights(model: onnx.ModelProto) -> None:
    """Store large float32 initialisers as float16 behind a Cast, so that arithmetic stays float32."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or weights.size < _SMALLEST:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"cast.{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    known = [value for value in graph.value_info if not any(cast.output[0] == value.name for cast in casts)]
    del graph.value_info[:]
    graph.value_info.extend(known)


def _forget_places(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about source files: a bundle must not tell where it was made."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""


def round_weights(network: nn.Module) -> None:
    """Round the weights the export will halve, so that reference outputs use the very same numbers."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() >= _SMALLEST:
                parameter.copy_(parameter.half().float())
