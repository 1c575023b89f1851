"""TensorRT on an NVIDIA GPU: built from ONNX, run without torch.

One stream and one set of buffers per engine. Every batch is padded to the next bucket; each
bucket has a context of its own and is captured once as a CUDA graph, copies included, so that a
batch costs one launch. (TensorRT asks for a context per captured graph; they share one block of
device memory, since only one runs at a time.) A plan belongs to exactly one TensorRT version and
GPU model: both are part of the engine's key, and a plan that does not fit is built again, never
converted.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import uuid
from pathlib import Path
from typing import Any

from worker.inference.engines import cuda as cuda_calls
from worker.inference.engines.base import (
    BUCKETS,
    BucketEngine,
    Engine,
    EngineBuildError,
    EngineSpec,
    FloatArray,
    Precision,
    TensorSpec,
)
from worker.inference.engines.tensorrt_plan import build_plan, collecting_logger, spec_of_engine

log = logging.getLogger(__name__)

#: Fastest first. Each is a graph of the bundle's: TensorRT lowers nothing by itself. 8 bits are left out:
#: TensorRT takes symmetric activations only, and a bundle's 8-bit graph has zero points.
_PRECISIONS = (Precision.FP16, Precision.BF16, Precision.FP32)


class TensorRtEngine(BucketEngine):
    """A deserialised plan with its contexts, stream, buffers and graphs."""

    def __init__(
        self, trt: Any, cuda: Any, plan: bytes, *, version: str, device: str, precision: Precision, logger: Any
    ) -> None:
        self._trt = trt
        self._cuda = cuda
        self._plan = plan
        self._buffers: dict[str, cuda_calls.Buffer] = {}
        self._contexts: list[Any] = []
        self._graphs: dict[int, Any] = {}
        self._scratch: Any = None
        self._stream: Any = None
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineBuildError(f"TensorRT refuses the plan: {logger.reason}.")
        super().__init__(
            backend="tensorrt",
            backend_version=version,
            device=device,
            precision=precision,
            spec=spec_of_engine(trt, self._engine),
        )
        try:
            self._stream = cuda_calls.check(cuda.cudaStreamCreate())
            self._allocate(self.spec)
        except cuda_calls.CudaError as error:
            self._release()
            raise EngineBuildError(f"the GPU has no memory for the engine's buffers ({error}).") from None

    def export(self) -> bytes:
        """The plan."""
        return self._plan

    def _run_bucket(self, batch: FloatArray, bucket: int) -> dict[str, FloatArray]:
        rows = len(batch)
        picture = self._buffers[self.spec.inputs[0].name]
        picture.host[:rows] = batch
        picture.host[rows:bucket] = 0.0
        if bucket not in self._graphs:
            self._graphs[bucket] = self._capture(bucket)
        cuda_calls.check(self._cuda.cudaGraphLaunch(self._graphs[bucket], self._stream))
        cuda_calls.check(self._cuda.cudaStreamSynchronize(self._stream))
        return {tensor.name: self._buffers[tensor.name].host[:rows].copy() for tensor in self.spec.outputs}

    def _capture(self, bucket: int) -> Any:
        context = self._context(bucket)
        # TensorRT finishes setting up a shape at its first enqueue: only the second may be captured.
        self._enqueue(context, bucket)
        cuda_calls.check(self._cuda.cudaStreamSynchronize(self._stream))
        return cuda_calls.capture(self._cuda, self._stream, lambda: self._enqueue(context, bucket))

    def _context(self, bucket: int) -> Any:
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise cuda_calls.CudaError("TensorRT cannot make a context: the GPU's memory may be full")
        self._contexts.append(context)
        if self._scratch is not None:
            context.set_device_memory(int(self._scratch), int(self._engine.device_memory_size_v2))
        if not context.set_optimization_profile_async(0, int(self._stream)):
            raise cuda_calls.CudaError("TensorRT refuses the plan's batch profile")
        cuda_calls.check(self._cuda.cudaStreamSynchronize(self._stream))
        picture = self.spec.inputs[0]
        if not context.set_input_shape(picture.name, _shape(picture, bucket)):
            raise cuda_calls.CudaError(f"batch {bucket} lies outside the profile")
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, int(buffer.device)):
                raise cuda_calls.CudaError(f"TensorRT refuses the buffer of {name}")
        return context

    def _enqueue(self, context: Any, bucket: int) -> None:
        self._buffers[self.spec.inputs[0].name].upload(bucket, self._stream)
        if not context.execute_async_v3(int(self._stream)):
            raise cuda_calls.CudaError("the enqueue failed")
        for tensor in self.spec.outputs:
            self._buffers[tensor.name].download(bucket, self._stream)

    def _allocate(self, spec: EngineSpec) -> None:
        for tensor in (*spec.inputs, *spec.outputs):
            self._buffers[tensor.name] = cuda_calls.Buffer(self._cuda, _shape(tensor, BUCKETS[-1]))
        if size := int(self._engine.device_memory_size_v2):
            self._scratch = cuda_calls.check(self._cuda.cudaMalloc(size))

    def _release(self) -> None:
        # After an error that only a new process ends, giving things back fails too: that must not hide the error.
        with contextlib.suppress(cuda_calls.CudaError):
            for graph in self._graphs.values():
                cuda_calls.check(self._cuda.cudaGraphExecDestroy(graph))
            for buffer in self._buffers.values():
                buffer.free()
            if self._scratch is not None:
                cuda_calls.check(self._cuda.cudaFree(self._scratch))
            if self._stream is not None:
                cuda_calls.check(self._cuda.cudaStreamDestroy(self._stream))
        self._graphs.clear()
        self._contexts.clear()
        self._buffers.clear()
        self._engine = self._runtime = self._scratch = self._stream = None


def _shape(tensor: TensorSpec, batch: int) -> tuple[int, ...]:
    return (batch, *(size or 1 for size in tensor.shape[1:]))


class TensorRtBackend:
    """Compiles ONNX files for the first GPU this process sees.

    Raises
    ------
    EngineBuildError
        TensorRT or the CUDA bindings are not installed, or there is no usable GPU. The GPU is looked
        for first: without one, TensorRT's own runtime crashes instead of saying so.
    """

    name = "tensorrt"
    #: A graph is captured while no other thread uses the GPU.
    loads_side_by_side = False

    def __init__(self, folder: Path | None = None) -> None:
        self._cuda = cuda_calls.runtime()
        cuda_calls.require_gpu(self._cuda)
        try:
            self._trt = importlib.import_module("tensorrt")
        except ImportError:
            raise EngineBuildError("TensorRT is not installed: pip install 'carina-cxr[tensorrt]'.") from None
        self.version = str(self._trt.__version__)
        self.device, self.capabilities = cuda_calls.describe_gpu(self._cuda)
        self._folder = folder

    def supported_precisions(self) -> tuple[Precision, ...]:
        """All, fastest first; which of them a bundle can serve depends on the graphs it carries."""
        return _PRECISIONS

    def variant(self, precision: Precision) -> str:
        """The bundle's graph for a precision: strongly typed networks have one each."""
        return "" if precision is Precision.FP32 else precision.value

    def compile(self, network: Path, precision: Precision, *, threads: int | None = None) -> Engine:
        """Build a plan and load it; ``threads`` means nothing here. Raises EngineBuildError."""
        self._require(precision)
        plan = build_plan(self._trt, network, timings=self._read_timings())
        self._keep_timings(plan.timings)
        return self.load(plan.content, precision)

    def load(self, compiled: bytes, precision: Precision, *, threads: int | None = None) -> Engine:
        """Load a plan. It is native code: only those whose SHA-256 the cache vouches for come here."""
        self._require(precision)
        return TensorRtEngine(
            self._trt,
            self._cuda,
            compiled,
            version=self.version,
            device=self.device,
            precision=precision,
            logger=collecting_logger(self._trt),
        )

    def _require(self, precision: Precision) -> None:
        if precision not in _PRECISIONS:
            raise EngineBuildError(f"TensorRT on {self.device} does not compute in {precision}.")

    @property
    def _timings(self) -> Path | None:
        """What the builder learned about this GPU's kernels; it makes the next build faster, and may be lost."""
        if self._folder is None:
            return None
        slug = re.sub(r"[^a-z0-9.]+", "-", f"{self.device}-{self.version}".lower()).strip("-")
        return self._folder / "timings" / f"{slug}.cache"

    def _read_timings(self) -> bytes:
        with contextlib.suppress(OSError):
            return self._timings.read_bytes() if self._timings else b""
        return b""

    def _keep_timings(self, learned: bytes) -> None:
        if not self._timings or not learned:
            return
        partial = self._timings.with_name(f".{self._timings.name}.{uuid.uuid4().hex}")
        try:
            self._timings.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(learned)
            partial.replace(self._timings)
        except OSError as error:
            log.warning("the timing cache cannot be written (%s): the next build takes as long", error.strerror)
