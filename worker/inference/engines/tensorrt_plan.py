"""From an ONNX file to a TensorRT plan: parse, check, build. Needs no GPU where the library needs none.

Networks are strongly typed: the numbers a layer computes in are those of the ONNX graph, so a
bundle carries one graph per precision and nothing is lowered behind its back. One
optimisation profile with a free batch axis covers every batch from 1 to ``LARGEST_BATCH``.

The library is passed in, because two speak this interface: ``tensorrt`` on the machines that
run engines, and ``tensorrt_rtx``, whose builder works without a GPU and checks in the test
suite that every network of ours can be built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.inference.engines.base import BUCKETS, EngineBuildError, EngineSpec, TensorSpec

#: Batches the profile is made for: the smallest, the one tuned for, the largest.
SMALLEST_BATCH, TUNED_BATCH, LARGEST_BATCH = BUCKETS[0], 16, BUCKETS[-1]
#: What the builder may use while it tries kernels.
WORKSPACE_BYTES = 4 << 30


def collecting_logger(trt: Any) -> Any:
    """A logger that keeps what the library complains of instead of printing it; ``reason`` is the last complaint."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.messages.append(message)

        @property
        def reason(self) -> str:
            return self.messages[-1].strip().rstrip(".") if self.messages else "it gives no reason"

    return Logger()


@dataclass(frozen=True)
class Plan:
    """A serialised engine and what it was built with.

    Attributes
    ----------
    profile
        The input's smallest, tuned and largest shape, as TensorRT gives them back; none without a profile.
    timings
        What the timing cache learned.
    """

    content: bytes
    spec: EngineSpec
    profile: tuple[tuple[int, ...], ...]
    timings: bytes


def build_plan(
    trt: Any, onnx: Path, *, timings: bytes = b"", workspace_bytes: int = WORKSPACE_BYTES, profile: bool = True
) -> Plan:
    """Build a plan.

    Parameters
    ----------
    trt
        The module ``tensorrt`` or ``tensorrt_rtx``.
    onnx
        One input (batch, channels, height, width) with a free batch; float inputs and outputs.
    timings
        An earlier timing cache of the same GPU and version; empty for none.
    profile
        False leaves the optimisation profile out, which TensorRT refuses for a free batch.

    Raises
    ------
    EngineBuildError
        The file cannot be parsed (an operator TensorRT does not know, an antialiased resize), its
        input has a type TensorRT does not take, the batch is not free, or the build fails; with
        TensorRT's own reason.
    """
    logger = collecting_logger(trt)
    try:
        builder = trt.Builder(logger)
    except TypeError:
        builder = None
    if builder is None:
        raise EngineBuildError(f"TensorRT cannot start its builder: {logger.reason}.")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        reasons = "; ".join(_complaint(parser.get_error(index)) for index in range(parser.num_errors))
        raise EngineBuildError(f"TensorRT cannot read {onnx.name}: {reasons or 'it gives no reason'}.")
    spec = _spec(trt, network, onnx.name)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    # Else float32 products are computed with ten bits of mantissa: fp32 is to mean fp32.
    config.clear_flag(trt.BuilderFlag.TF32)
    cache = config.create_timing_cache(timings)
    if cache is None:
        cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    set_shapes: tuple[tuple[int, ...], ...] = ()
    if profile:
        shapes = builder.create_optimization_profile()
        tensor = spec.inputs[0]
        sizes = tensor.shape[1:]
        shapes.set_shape(
            tensor.name, (SMALLEST_BATCH, *sizes), (TUNED_BATCH, *sizes), (LARGEST_BATCH, *sizes)
        )  # fmt: skip
        if config.add_optimization_profile(shapes) < 0:
            raise EngineBuildError(f"TensorRT refuses the batch profile of {onnx.name}: {logger.reason}.")
        set_shapes = tuple(tuple(shape) for shape in shapes.get_shape(tensor.name))
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise EngineBuildError(f"TensorRT cannot build {onnx.name}: {logger.reason}.")
    learned = config.get_timing_cache()
    return Plan(bytes(content), spec, set_shapes, bytes(learned.serialize()) if learned is not None else b"")


def spec_of_engine(trt: Any, engine: Any) -> EngineSpec:
    """Inputs and outputs of a deserialised engine."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors: dict[bool, list[TensorSpec]] = {True: [], False: []}
    for name in names:
        shape, dtype = engine.get_tensor_shape(name), engine.get_tensor_dtype(name)
        tensors[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(_tensor(trt, name, shape, dtype))
    return EngineSpec(tuple(tensors[True]), tuple(tensors[False]))


def _spec(trt: Any, network: Any, name: str) -> EngineSpec:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in (*inputs, *outputs):
        if tensor.dtype != trt.float32:
            raise EngineBuildError(
                f"{name}: {tensor.name} is {_dtype(trt, tensor.dtype)}, inputs and outputs must be float32. "
                "Export the bundle again."
            )
    spec = EngineSpec(
        tuple(_tensor(trt, tensor.name, tensor.shape, tensor.dtype) for tensor in inputs),
        tuple(_tensor(trt, tensor.name, tensor.shape, tensor.dtype) for tensor in outputs),
    )
    if len(spec.inputs) != 1 or len(spec.inputs[0].shape) != 4 or None in spec.inputs[0].shape[1:]:
        found = ", ".join(map(str, spec.inputs)) or "none"
        raise EngineBuildError(f"{name} must have one input (batch, channels, height, width), it has {found}.")
    if spec.inputs[0].shape[0] is not None:
        raise EngineBuildError(f"{name} takes batches of {spec.inputs[0].shape[0]} only: export it with a free batch.")
    return spec


def _tensor(trt: Any, name: str, shape: Any, dtype: Any) -> TensorSpec:
    return TensorSpec(name, tuple(None if size < 0 else int(size) for size in shape), _dtype(trt, dtype))


def _dtype(trt: Any, dtype: Any) -> str:
    names = {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16", trt.int8: "int8"}
    return names.get(dtype, str(dtype).rpartition(".")[2].lower())


def _complaint(error: Any) -> str:
    operator = error.node_operator()
    return f"{operator}: {error.desc().strip()}" if operator else str(error.desc()).strip()
