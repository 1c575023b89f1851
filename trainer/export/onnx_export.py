"""Networks to portable ONNX files: probabilities inside the graph, weights in half precision."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.fx.experimental.optimization import fuse

from schema.bundle import Task
from trainer.networks.heads import competing
from trainer.recipe import Recipe

OPSET = 20
#: The outputs of a task, in order: see :class:`schema.bundle.Member`.
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "segmentation": ("probabilities",),
    "classification": ("probabilities", "cam"),
}
_SMALLEST = 256  # elements; smaller tensors are not worth a Cast
_CAST = "cast."
_HALF = ".half"


class SegmentationOutputs(nn.Module):  # type: ignore[misc]
    """A segmentation network with its softmax: ``probabilities`` (N, regions, H, W).

    ``lowered`` is taken off each region's logit: see :mod:`trainer.export.operating_point`.
    """

    def __init__(self, network: nn.Module, lowered: Sequence[float] = ()) -> None:
        super().__init__()
        self.network = network
        self.lowered: torch.Tensor | None
        self.register_buffer("lowered", torch.tensor(lowered).view(1, -1, 1, 1) if any(lowered) else None)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Probabilities, one channel per region."""
        logits = self.network(image)
        return torch.softmax(logits if self.lowered is None else logits - self.lowered, dim=1)


class SigmoidOutputs(nn.Module):  # type: ignore[misc]
    """A segmentation network of which each channel stands for itself: ``probabilities`` (N, regions, H, W).

    They are those of :func:`trainer.networks.heads.competing`, so that a sigmoid network runs wherever one with softmax
    does; nothing is taken off a logit, because a threshold decides. What their mean over several networks says is told
    there. ``background`` says whether the network has a
    channel for the background, which only its loss needs.
    """

    def __init__(self, network: nn.Module, threshold: float, *, background: bool = False) -> None:
        super().__init__()
        self.network = network
        self.threshold = threshold
        self.first = int(background)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Probabilities, one channel per region, background first."""
        return competing(torch.sigmoid(self.network(image)[:, self.first :]), self.threshold)


class ClassificationOutputs(nn.Module):  # type: ignore[misc]
    """A classifier with its sigmoid: ``probabilities`` (N, findings) and ``cam`` (N, findings, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities before temperature scaling, and raw class activation maps."""
        logits, maps = self.network(image)
        return torch.sigmoid(logits), maps


def outputs_of(recipe: Recipe, network: nn.Module, lowered: Sequence[float] = ()) -> nn.Module:
    """The recipe's network with what its bundle's member answers; ``lowered`` as for :class:`SegmentationOutputs`."""
    if recipe.task == "classification":
        return ClassificationOutputs(network)
    if recipe.network.activation == "sigmoid":
        return SigmoidOutputs(network, recipe.network.threshold, background=recipe.has_background)
    return SegmentationOutputs(network, lowered)


def export_onnx(module: nn.Module, path: Path, shape: tuple[int, int, int], outputs: Sequence[str]) -> None:
    """Write ``module`` with input ``image`` of shape (batch, \\*shape), any batch, to ``path``.

    Inputs, outputs and computation are float32; weights are stored in half precision.
    """
    write_onnx(graph_of(module.float(), shape, outputs), path)


def graph_of(module: nn.Module, shape: tuple[int, int, int], outputs: Sequence[str]) -> onnx.ModelProto:
    """``module`` as a graph that computes in the formats of its weights, with input and outputs as :func:`export_onnx`.

    Raises
    ------
    RuntimeError
        The exporter cannot write the network.
    """
    module = module.eval()
    # Without torchvision, which nothing here needs, the exporter warns of each of its operators.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.zeros(2, *shape),),
            input_names=["image"],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=256)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    return program.model_proto


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph with its float32 weights in half precision and nothing about where it was made."""
    _halve_weights(model)
    _forget_places(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def read_onnx(path: Path) -> onnx.ModelProto:
    """A graph written by :func:`write_onnx`, its weights plain float32 initialisers again."""
    model = onnx.load(str(path))
    initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if not node.name.startswith(_CAST) or node.input[0] not in initialisers:
            kept.append(node)
            continue
        tensor = initialisers[node.input[0]]
        weights = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(weights, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def folded(network: nn.Module) -> nn.Module:
    """The network with each batch normalisation that follows a convolution put into that convolution's weights.

    The exporter does the same: done before :func:`round_weights`, what is rounded are the weights that are stored. The
    answers are those of the network in evaluation mode; what only training calls is gone.
    """
    return fuse(network.eval())


def round_weights(network: nn.Module) -> None:
    """Round the weights the export will halve, so that reference outputs use the very same numbers.

    The network is one of :func:`folded`: otherwise the exporter stores products of the rounded weights, rounded
    again, and a ResNet-101's heat maps are a hundred times as far from the reference.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if _is_weight(parameter.dim(), parameter.numel()) and bool(parameter.half().isfinite().all()):
                parameter.copy_(parameter.half().float())


def _is_weight(dimensions: int, elements: int) -> bool:
    # Vectors are biases and running statistics: small files, and a variance may leave the range of half precision.
    return dimensions > 1 and elements >= _SMALLEST


def _halve_weights(model: onnx.ModelProto) -> None:
    """Store large float32 initialisers as float16 behind a Cast, so that arithmetic stays float32."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        weights = numpy_helper.to_array(tensor)
        half = _half(weights)
        if not _is_weight(weights.ndim, weights.size) or not np.isfinite(half).all():
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}{_HALF}"))
        casts.append(helper.make_node("Cast", [f"{name}{_HALF}"], [name], f"{_CAST}{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    names = {cast.output[0] for cast in casts}
    known = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(known)


def _half(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return weights.astype(np.float16)


def _forget_places(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about source files: a bundle must not tell where it was made."""
    model.doc_string = model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
