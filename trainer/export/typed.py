"""Networks that compute in half precision or bfloat16: TensorRT computes in the format that a graph is written in.

What is open in that, decided here:

* **Pictures come and answers leave in float32**, and softmax and sigmoid are float32: they cost nothing, and the
  carina's thresholds reach down to 0.0005.
* **Transposed convolutions of a bfloat16 graph compute in float32**: TensorRT-RTX 1.7 builds none in bfloat16.
* **The gate sees the format's rounding** without a GPU: :class:`Rounded` computes each layer in float32 from rounded
  weights and rounds what comes out, as a GPU's tensor cores do. A network whose numbers leave the range of half
  precision is refused then, where it is packaged. (PyTorch's own half precision on a CPU takes forty times as long.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from schema.bundle import Member
from trainer.export.onnx_export import OUTPUTS, graph_of, write_onnx
from worker.inference.engines.base import Engine, EngineSpec, FloatArray, Precision, TensorSpec

FORMATS: dict[Precision, torch.dtype] = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


class Typed(nn.Module):  # type: ignore[misc]
    """A network that computes in ``dtype`` between float32 pictures and float32 answers; ``network`` is changed."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = network.to(dtype)
        if dtype is torch.bfloat16:
            for parent in list(self.network.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, nn.ConvTranspose2d):
                        setattr(parent, name, _InFloat32(child))

    def forward(self, picture: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """What the network answers."""
        answers = self.network(picture.to(self.dtype))
        return answers.float() if isinstance(answers, torch.Tensor) else tuple(answer.float() for answer in answers)


class _InFloat32(nn.Module):  # type: ignore[misc]
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features.float()).to(features.dtype)


class Rounded(nn.Module):  # type: ignore[misc]
    """What :class:`Typed` says: float32 arithmetic, rounded to ``dtype`` after each layer; ``network`` is changed."""

    def __init__(self, network: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.network = network.to(dtype).float()

    def forward(self, picture: torch.Tensor) -> Any:
        """What the network answers."""
        return _Rounding(self.network, self.dtype).run(picture)


class _Rounding(fx.Interpreter):  # type: ignore[misc]
    """Runs a network's layers one by one."""

    def __init__(self, network: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(network)
        self.dtype = dtype

    def run_node(self, node: fx.Node) -> Any:
        """What one layer gives."""
        result = super().run_node(node)
        numbers = isinstance(result, torch.Tensor) and result.is_floating_point()
        return result.to(self.dtype).float() if numbers else result


class ModuleEngine(Engine):
    """A bundle's member as PyTorch computes it here, for the parity gate; it is never kept.

    ``outputs`` takes pictures (N, C, H, W) and gives what :data:`~trainer.export.onnx_export.OUTPUTS` names.
    """

    def __init__(self, outputs: nn.Module, member: Member, precision: Precision) -> None:
        sizes = (member.channels, member.height, member.width)
        self._outputs: nn.Module | None = outputs.eval()
        answers = self._answers(torch.zeros(1, *sizes))
        super().__init__(
            backend="torch",
            backend_version=str(torch.__version__),
            device="cpu",
            precision=precision,
            spec=EngineSpec(
                (TensorSpec("image", (None, *sizes), "float32"),),
                tuple(
                    TensorSpec(name, (None, *answer.shape[1:]), "float32")
                    for name, answer in zip(OUTPUTS[member.task], answers, strict=True)
                ),
            ),
        )

    def export(self) -> bytes:
        """Nothing: there is no compiled network."""
        return b""

    def _answers(self, batch: torch.Tensor) -> Sequence[torch.Tensor]:
        assert self._outputs is not None
        with torch.inference_mode():
            answers = self._outputs(batch)
        return answers if isinstance(answers, tuple) else (answers,)

    def _execute(self, batch: FloatArray) -> dict[str, FloatArray]:
        answers = self._answers(torch.from_numpy(batch))
        return {tensor.name: answer.numpy() for tensor, answer in zip(self.spec.outputs, answers, strict=True)}

    def _release(self) -> None:
        self._outputs = None


def export_typed(outputs: nn.Module, path: Path, member: Member, precision: Precision) -> None:
    """Write the graph of ``outputs``, the network within computing in ``precision``, to ``path``.

    Input and outputs are those of :func:`trainer.export.onnx_export.export_onnx`.
    """
    shape = (member.channels, member.height, member.width)
    write_onnx(graph_of(_within(outputs, Typed, precision), shape, OUTPUTS[member.task]), path)


def rounding_engine(outputs: nn.Module, member: Member, precision: Precision) -> ModuleEngine:
    """What a graph of :func:`export_typed` says where ``precision`` is computed as on a GPU."""
    return ModuleEngine(_within(outputs, Rounded, precision), member, precision)


def _within(outputs: nn.Module, kind: type[Typed] | type[Rounded], precision: Precision) -> nn.Module:
    """``outputs`` around its network turned into ``kind``; its own softmax or sigmoid stays float32."""
    changed = copy.deepcopy(outputs)
    changed.network = kind(changed.network, FORMATS[precision])
    return changed
