"""Further files of a bundle's network, each for one kind of engine, and what the parity gate says of them.

=========  ==============================================================================================
int8       a graph with 8-bit convolutions, for OpenVINO (:mod:`trainer.export.quantise`)
fp16       a graph that computes in half precision, for TensorRT (:mod:`trainer.export.typed`)
bf16       the same in bfloat16
torch      an exported program, from which the torch backend makes all its precisions
=========  ==============================================================================================

The gate is that of the worker, on the bundle's parity films. A GPU is not needed: what a graph for TensorRT says is
computed on the CPU with the rounding of its format. The engine that is built from the file later passes the gate again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from schema.bundle import Manifest, Member
from trainer.export.measured import parity_of
from trainer.export.onnx_export import OUTPUTS
from trainer.export.quantise import CALIBRATION_FILMS, quantise
from trainer.export.shared_films import some_training_films
from trainer.export.typed import export_typed, rounding_engine
from trainer.training.run_folder import Run
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import Precision
from worker.inference.engines.torch import TorchBackend, write_program
from worker.inference.parity import ParityReport, check_parity


@dataclass(frozen=True)
class Draft:
    """A network in a bundle whose portable networks and parity films are written.

    ``run`` trained it, ``outputs`` is the module that was exported for ``member``.
    """

    directory: Path
    manifest: Manifest
    run: Run
    member: Member
    outputs: nn.Module


def write_variant(variant: str, draft: Draft) -> tuple[str, ParityReport]:
    """Write one of :data:`trainer.export.VARIANTS`; returns the file's name and what the gate says of it.

    Raises
    ------
    RunError
        The run's training films are gone, or the file does not compile.
    """
    write, suffix = _WRITERS[variant]
    name = f"{draft.member.name}{suffix}"
    return name, write(draft, name)


def _int8(draft: Draft, name: str) -> ParityReport:
    films = some_training_films(draft.run, CALIBRATION_FILMS)
    quantise(draft.directory / draft.member.onnx, draft.directory / name, films.pictures)
    # The mildest of the 8-bit ways: a worker takes it where the faster one is refused.
    offered = [each for each in open_backend("openvino").supported_precisions() if each.eight_bit]
    return parity_of(draft.directory, draft.manifest, draft.member, name, offered[-1] if offered else Precision.FP32)


def _typed(draft: Draft, name: str, precision: Precision) -> ParityReport:
    export_typed(draft.outputs, draft.directory / name, draft.member, precision)
    # OpenVINO computes the file in float32: that tells whether the graph is right, not what the format costs.
    written = parity_of(draft.directory, draft.manifest, draft.member, name)
    if not written.passed:
        return written
    engine = rounding_engine(draft.outputs, draft.member, precision)
    return check_parity(engine, draft.member, draft.manifest, draft.directory)


def _program(draft: Draft, name: str) -> ParityReport:
    shape = (draft.member.channels, draft.member.height, draft.member.width)
    write_program(draft.outputs, draft.directory / name, shape, OUTPUTS[draft.member.task])
    engine = TorchBackend(inductor=False).compile(draft.directory / name, Precision.FP32)
    try:
        return check_parity(engine, draft.member, draft.manifest, draft.directory)
    finally:
        engine.close()


#: Variant → what writes it, and how its file is called behind the member's name.
_WRITERS: Mapping[str, tuple[Callable[[Draft, str], ParityReport], str]] = {
    "int8": (_int8, "-int8.onnx"),
    "fp16": (partial(_typed, precision=Precision.FP16), "-fp16.onnx"),
    "bf16": (partial(_typed, precision=Precision.BF16), "-bf16.onnx"),
    "torch": (_program, ".pt2"),
}
