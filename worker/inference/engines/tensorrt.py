"""TensorRT on an NVIDIA GPU: built from ONNX, run without torch.

One context, one stream and one set of buffers per engine. Every batch is padded to the next
bucket, and each bucket's copies and kernels are captured once as a CUDA graph, so a batch
costs one launch. A plan belongs to exactly one TensorRT version and GPU model: both are part
of the engine's key, and a plan that does not fit is built again, never converted.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from worker.inference.engines import cuda as cuda_calls
from worker.inference.engines.base import Engine, EngineBuildError, EngineSpec, FloatArray, Precision
from worker.inference.engines.tensorrt_plan import LARGEST_BATCH, build_plan, collecting_logger, spec_of_engine

#: Batch sizes with a graph of their own; a batch runs in the smallest that holds it.
BUCKETS = (1, 2, 4, 8, 16, LARGEST_BATCH)
#: Fastest first. Each is a graph of the bundle's: TensorRT lowers nothing by itself.
_PRECISIONS = (Precision.INT8, Precision.FP16, Precision.BF16, Precision.FP32)


class TensorRtEngine(Engine):
    """A deserialised plan with its context, stream, buffers and graphs."""

    def __init__(
        self, trt: Any, cuda: Any, plan: bytes, *, version: str, device: str, precision: Precision, logger: Any
    ) -> None:
        self._cuda = cuda
        self._plan = plan
        self._buffers: dict[str, cuda_calls.Buffer] = {}
        self._graphs: dict[int, Any] = {}
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            reason = logger.messages[-1].strip().rstrip(".") if logger.messages else "it gives no reason"
            raise EngineBuildError(f"TensorRT refuses the plan: {reason}.")
        spec = spec_of_engine(trt, self._engine)
        super().__init__(
            backend="tensorrt", backend_version=version, device=device, precision=precision, spec=spec
        )  # fmt: skip
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineBuildError("TensorRT cannot make a context: the GPU's memory may be full.")
        self._stream = cuda_calls.check(cuda.cudaStreamCreate())
        try:
            self._allocate(spec)
        except cuda_calls.CudaError as error:
            self._release()
            raise EngineBuildError(f"the GPU has no memory for the engine's buffers ({error}).") from None

    def export(self) -> bytes:
        """The plan."""
        return self._plan

    def warm_up(self) -> None:
        """Run and capture every bucket, so that no batch of the night pays for it."""
        shape = tuple(size or 1 for size in self.spec.inputs[0].shape[1:])
        for bucket in BUCKETS:
            self.run(np.zeros((bucket, *shape), np.float32))

    def _execute(self, batch: FloatArray) -> dict[str, FloatArray]:
        parts = [self._run_bucket(batch[at : at + LARGEST_BATCH]) for at in range(0, len(batch), LARGEST_BATCH)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_bucket(self, batch: FloatArray) -> dict[str, FloatArray]:
        rows = len(batch)
        bucket = next(size for size in BUCKETS if size >= rows)
        picture = self._buffers[self.spec.inputs[0].name]
        picture.host[:rows] = batch
        picture.host[rows:bucket] = 0.0
        if bucket not in self._graphs:
            # TensorRT finishes setting up a shape at its first enqueue: only the second may be captured.
            self._enqueue(bucket)
            cuda_calls.check(self._cuda.cudaStreamSynchronize(self._stream))
            self._graphs[bucket] = cuda_calls.capture(self._cuda, self._stream, lambda: self._enqueue(bucket))
        cuda_calls.check(self._cuda.cudaGraphLaunch(self._graphs[bucket], self._stream))
        cuda_calls.check(self._cuda.cudaStreamSynchronize(self._stream))
        return {tensor.name: self._buffers[tensor.name].host[:rows].copy() for tensor in self.spec.outputs}

    def _enqueue(self, bucket: int) -> None:
        picture = self.spec.inputs[0]
        self._buffers[picture.name].upload(bucket, self._stream)
        if not self._context.set_input_shape(picture.name, (bucket, *(size or 1 for size in picture.shape[1:]))):
            raise cuda_calls.CudaError(f"batch {bucket} lies outside the profile")
        if not self._context.execute_async_v3(int(self._stream)):
            raise cuda_calls.CudaError("the enqueue failed")
        for tensor in self.spec.outputs:
            self._buffers[tensor.name].download(bucket, self._stream)

    def _allocate(self, spec: EngineSpec) -> None:
        for tensor in (*spec.inputs, *spec.outputs):
            buffer = cuda_calls.Buffer(self._cuda, (LARGEST_BATCH, *(size or 1 for size in tensor.shape[1:])))
            self._buffers[tensor.name] = buffer
            self._context.set_tensor_address(tensor.name, int(buffer.device))

    def _release(self) -> None:
        for graph in self._graphs.values():
            cuda_calls.check(self._cuda.cudaGraphExecDestroy(graph))
        self._graphs.clear()
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
        cuda_calls.check(self._cuda.cudaStreamDestroy(self._stream))
        self._context = self._engine = self._runtime = None


class TensorRtBackend:
    """Compiles ONNX files for the first GPU this process sees.

    Raises
    ------
    EngineBuildError
        TensorRT or the CUDA bindings are not installed, or there is no usable GPU. The GPU is looked
        for first: without one, TensorRT's own runtime crashes instead of saying so.
    """

    name = "tensorrt"

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

    def compile(self, onnx: Path, precision: Precision, *, threads: int | None = None) -> Engine:
        """Build a plan and load it; ``threads`` means nothing here. Raises EngineBuildError."""
        timings = self._timings()
        plan = build_plan(self._trt, onnx, timings=timings.read_bytes() if timings and timings.is_file() else b"")
        if timings and plan.timings:
            timings.parent.mkdir(parents=True, exist_ok=True)
            partial = timings.with_suffix(f".{hashlib.sha256(plan.timings).hexdigest()[:8]}")
            partial.write_bytes(plan.timings)
            partial.replace(timings)
        return self.load(plan.content, precision)

    def load(self, compiled: bytes, precision: Precision, *, threads: int | None = None) -> Engine:
        """Load a plan. It is native code: only those whose SHA-256 the cache vouches for come here."""
        logger = collecting_logger(self._trt)
        try:
            return TensorRtEngine(
                self._trt, self._cuda, compiled,
                version=self.version, device=self.device, precision=precision, logger=logger,
            )  # fmt: skip
        except cuda_calls.CudaError as error:
            raise EngineBuildError(f"the GPU refuses the engine ({error}).") from None

    def _timings(self) -> Path | None:
        if self._folder is None:
            return None
        slug = re.sub(r"[^a-z0-9.]+", "-", f"{self.device}-{self.version}".lower()).strip("-")
        return self._folder / "timings" / f"{slug}.cache"
