"""OpenVINO on the CPU: the engine of a machine without a GPU.

``INFERENCE_PRECISION_HINT`` is always set: left alone, OpenVINO takes bfloat16 by itself
where the processor has it, and float32 silently where it has not. What it really uses is
read back.

Which layers compute in 8 bits is written in a bundle's 8-bit graph; the hint decides about the
rest. On a processor with bfloat16 both are offered, since neither is best: the rest in
bfloat16 is up to a quarter faster (Holste's U-Net; DenseNet-121 less than a tenth) and two to
three times further from float32 on the packaged bundle's networks, so that more bundles
fail the gate with it.

Engines are compiled for one picture at a time: on a CPU a larger batch gains nothing, and with the batch left free
the 8-bit DenseNets are a quarter slower.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from worker.inference.engines.base import (
    Engine,
    EngineBuildError,
    EngineSpec,
    FloatArray,
    Precision,
    TensorSpec,
    reason_of,
)

_DEVICE = "CPU"


@dataclass(frozen=True)
class _Mode:
    """How a precision is asked for: OpenVINO's hint, the capabilities the processor must list, which graph."""

    precision: Precision
    hint: str
    needs: frozenset[str]
    variant: str = ""
    how: str = ""


#: Fastest first. The second row is for processors without bfloat16.
_MODES = (
    _Mode(Precision.INT8, "bf16", frozenset({"INT8", "BF16"}), "int8", "8-bit layers, bf16 elsewhere"),
    _Mode(Precision.INT8, "f32", frozenset({"INT8", "FP32"}), "int8", "8-bit layers, fp32 elsewhere"),
    _Mode(Precision.INT8_FP32, "f32", frozenset({"INT8", "BF16"}), "int8", "8-bit layers, fp32 elsewhere"),
    _Mode(Precision.BF16, "bf16", frozenset({"BF16"})),
    _Mode(Precision.FP32, "f32", frozenset({"FP32"})),
)


#: Layers that multiply, and OpenVINO's names of 8-bit numbers, as its runtime graph has them.
_PRODUCTS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "GroupConvolution"}
_EIGHT_BITS = {"u8", "i8"}


@cache
def _openvino() -> Any:
    """The ``openvino`` module, imported so that it sends nothing.

    Importing it reports the import to Google Analytics through ``openvino_telemetry`` unless
    that package is absent, for which OpenVINO has a stub. A hospital's worker must not call out.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


@cache
def _core() -> Any:
    """The one ``Core`` of this process, which lives as long as the process.

    OpenVINO's CPU plugin registers an alternate signal stack for the thread that makes it and frees
    that stack when its last user goes. With several cores, whose networks go in any order, a freed
    stack stays registered, and the next signal Python handles ends the process without a word.
    """
    return _openvino().Core()


class OpenVinoEngine(Engine):
    """A network compiled by OpenVINO for this machine's processor."""

    def __init__(self, compiled: Any, *, version: str, device: str, precision: Precision, how: str = "") -> None:
        super().__init__(
            backend="openvino",
            backend_version=version,
            device=device,
            precision=precision,
            spec=_spec_of(compiled),
            how=how,
        )
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def export(self) -> bytes:
        """The compiled network as OpenVINO serialises it; the same bytes each time."""
        with self._lock:
            stream: io.BytesIO = self._compiled.export_model()
            return stream.getvalue()

    def has_eight_bit_layers(self) -> bool:
        """Whether any convolution or matrix product was really compiled for 8-bit numbers."""
        layers = self._compiled.get_runtime_model().get_ordered_ops()
        facts = [layer.get_rt_info() for layer in layers]
        return any(
            str(fact["layerType"].astype(str)) in _PRODUCTS and str(fact["runtimePrecision"].astype(str)) in _EIGHT_BITS
            for fact in facts
        )

    def _execute(self, batch: FloatArray) -> dict[str, FloatArray]:
        answers: dict[str, list[FloatArray]] = {tensor.name: [] for tensor in self.spec.outputs}
        for picture in batch:
            results = self._request.infer({0: picture[np.newaxis]}, share_inputs=True, share_outputs=True)
            for index, found in enumerate(answers.values()):
                # Copies: the request's buffers are overwritten by the next picture.
                found.append(np.array(results[index], np.float32))
        return {name: np.concatenate(found) for name, found in answers.items()}

    def _release(self) -> None:
        self._request = None
        self._compiled = None


class OpenVinoBackend:
    """Compiles ONNX files for this machine's processor."""

    name = "openvino"
    loads_side_by_side = True

    def __init__(self) -> None:
        self._core = _core()
        self.version: str = _openvino().get_version()
        self.device: str = self._core.get_property(_DEVICE, "FULL_DEVICE_NAME").strip()
        self.capabilities: tuple[str, ...] = tuple(
            sorted(self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"))
        )

    def supported_precisions(self) -> tuple[Precision, ...]:
        """8 bits, bfloat16 where the processor computes in it, then float32."""
        return tuple(self._modes())

    def variant(self, precision: Precision) -> str:
        """The 8-bit graph for 8 bits; OpenVINO makes bfloat16 from the main network by itself."""
        return "int8" if precision.eight_bit else ""

    def compile(self, network: Path, precision: Precision, *, threads: int | None = None) -> Engine:
        """Compile an ONNX file.

        ``threads`` is the number of threads of one inference; None leaves it to OpenVINO (the
        processor's cores).

        Raises
        ------
        EngineBuildError
            The file is not a network OpenVINO can read, the processor has no such precision, or
            8 bits were asked of a graph without 8-bit layers.
        """
        engine = self._make(
            lambda config: self._core.compile_model(self._read(network), _DEVICE, config),
            precision,
            threads,
        )
        if precision.eight_bit and not engine.has_eight_bit_layers():
            engine.close()
            raise EngineBuildError(f"OpenVINO computes no layer of {network.name} in 8 bits.")
        return engine

    def load(self, compiled: bytes, precision: Precision, *, threads: int | None = None) -> Engine:
        """Load an exported network; raises EngineBuildError when OpenVINO refuses it."""
        return self._make(lambda config: self._core.import_model(compiled, _DEVICE, config), precision, threads)

    def _read(self, network: Path) -> Any:
        model = self._core.read_model(str(network))
        if len(model.inputs) == 1 and model.input(0).partial_shape.rank.is_static:
            model.reshape([1, *list(model.input(0).partial_shape)[1:]])
        return model

    def _modes(self) -> dict[Precision, _Mode]:
        modes: dict[Precision, _Mode] = {}
        for mode in _MODES:
            if mode.needs <= set(self.capabilities):
                modes.setdefault(mode.precision, mode)
        return modes

    def _make(self, build: Any, precision: Precision, threads: int | None) -> OpenVinoEngine:
        mode = self._modes().get(precision)
        if mode is None:
            raise EngineBuildError(f"{self.device} does not compute in {precision}.")
        try:
            compiled = build(_configuration(mode, threads))
        except Exception as error:
            raise EngineBuildError(f"OpenVINO cannot build the network in {precision}: {reason_of(error)}.") from error
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if hint != mode.hint:
            raise EngineBuildError(f"OpenVINO was asked for {precision} on {self.device} and uses {hint}.")
        return OpenVinoEngine(
            compiled, version=self.version, device=self.device, precision=precision, how=mode.how
        )  # fmt: skip


def _configuration(mode: _Mode, threads: int | None) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": mode.hint,
        "PERFORMANCE_HINT": "LATENCY",
        # Decoders and other workers share the cores.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        configuration["INFERENCE_NUM_THREADS"] = threads
    return configuration


def _spec_of(compiled: Any) -> EngineSpec:
    def tensor(port: Any) -> TensorSpec:
        sizes = [None if size.is_dynamic else size.get_length() for size in port.partial_shape]
        # One picture at a time, and so any number of them.
        return TensorSpec(_name_of(port), (None, *sizes[1:]), np.dtype(port.element_type.to_dtype()).name)

    return EngineSpec(tuple(map(tensor, compiled.inputs)), tuple(map(tensor, compiled.outputs)))


def _name_of(port: Any) -> str:
    """The tensor's name in the ONNX file.

    Fusing gives a port the names of what was fused as well, in no order; the node keeps the ONNX
    name, an output with a suffix.
    """
    name: str = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    return name if name in port.get_names() else port.any_name
