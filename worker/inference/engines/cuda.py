"""The few CUDA calls that running an engine takes: memory, one stream, captured graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from worker.inference.engines.base import EngineBuildError, FloatArray


class CudaError(Exception):
    """A CUDA call failed; the message is CUDA's own name for the reason."""


def count_gpus() -> int:
    """GPUs that the NVIDIA driver shows to this process (``CUDA_VISIBLE_DEVICES`` counts); 0 without a driver.

    The driver itself is asked, so that a machine without a GPU need not import any CUDA library to know.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def runtime() -> Any:
    """``cuda.bindings.runtime``; raises EngineBuildError where it is absent."""
    try:
        from cuda.bindings import runtime as bindings
    except ImportError:
        raise EngineBuildError("cuda-bindings is not installed: pip install 'carina-cxr[tensorrt]'.") from None
    return bindings


def check(result: tuple[Any, ...]) -> Any:
    """What a CUDA call returned, without its status; raises CudaError unless that is success."""
    status, *values = result
    if int(status) != 0:
        raise CudaError(status.name)
    return values[0] if len(values) == 1 else tuple(values)


def require_gpu(cuda: Any) -> None:
    """Make sure there is a GPU before anything touches a library that would crash without one.

    Raises
    ------
    EngineBuildError
        There is none, or its driver is too old.
    """
    try:
        count = check(cuda.cudaGetDeviceCount())
    except CudaError as error:
        raise EngineBuildError(f"this machine has no usable GPU ({error}).") from None
    if count < 1:
        raise EngineBuildError("this machine has no GPU.")


def describe_gpu(cuda: Any) -> tuple[str, tuple[str, ...]]:
    """The first visible GPU's name, and what tells it from others: compute capability and driver."""
    properties = check(cuda.cudaGetDeviceProperties(0))
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    driver = int(check(cuda.cudaDriverGetVersion()))
    capability = f"compute {properties.major}.{properties.minor}"
    return name.strip("\0 "), (capability, f"driver {driver // 1000}.{driver % 1000 // 10}")


class Buffer:
    """A float32 array in page-locked host memory and its twin on the device.

    Page-locked memory is what lets copies run beside computation and inside a graph.
    """

    def __init__(self, cuda: Any, shape: tuple[int, ...]) -> None:
        self._cuda = cuda
        size = int(np.prod(shape)) * 4
        self._host = check(cuda.cudaMallocHost(size))
        try:
            self.device = check(cuda.cudaMalloc(size))
        except CudaError:
            check(cuda.cudaFreeHost(self._host))
            raise
        values = (ctypes.c_float * int(np.prod(shape))).from_address(int(self._host))
        self.host: FloatArray = np.ctypeslib.as_array(values).reshape(shape)

    def upload(self, rows: int, stream: Any) -> None:
        """Copy the first ``rows`` to the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(self._cuda.cudaMemcpyAsync(self.device, self._host, self.host[:rows].nbytes, kind, stream))

    def download(self, rows: int, stream: Any) -> None:
        """Copy the first ``rows`` from the device."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(self._cuda.cudaMemcpyAsync(self._host, self.device, self.host[:rows].nbytes, kind, stream))

    def free(self) -> None:
        """Give both back."""
        check(self._cuda.cudaFree(self.device))
        check(self._cuda.cudaFreeHost(self._host))


def capture(cuda: Any, stream: Any, work: Callable[[], None]) -> Any:
    """Record what ``work`` puts on ``stream`` as one graph that a single call launches again."""
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    check(cuda.cudaStreamBeginCapture(stream, mode))
    try:
        work()
    finally:
        graph = check(cuda.cudaStreamEndCapture(stream))
    try:
        return check(cuda.cudaGraphInstantiate(graph, 0))
    finally:
        check(cuda.cudaGraphDestroy(graph))
