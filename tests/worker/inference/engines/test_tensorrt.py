"""The TensorRT engine's own logic (buckets, graphs, buffers, guards) over a pretended GPU.

What TensorRT and CUDA do themselves is tested on a real GPU only: pytest -m gpu.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_bundle import segmentation_network

from worker.inference.engines import cuda as cuda_calls
from worker.inference.engines import tensorrt as ours
from worker.inference.engines.base import BUCKETS, EngineBuildError, EngineError, Precision
from worker.inference.engines.tensorrt import TensorRtBackend, TensorRtEngine
from worker.inference.engines.tensorrt_plan import collecting_logger

IMAGE, SCORES = (-1, 1, 4, 4), (-1, 2)


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


class PretendedCuda:
    """Host memory plays the device's; what is put on the stream while it is captured runs when the graph does."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, *, memory: int = 1 << 40, gpus: int = 1) -> None:
        self.blocks: dict[int, Any] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.launched = 0
        self.streams = self.graphs = 0
        self.failure: Status | None = None
        self._left, self._gpus = memory, gpus

    def put(self, work: Callable[[], None]) -> None:
        work() if self.recording is None else self.recording.append(work)

    def cudaGetDeviceCount(self):
        return (Status.cudaSuccess, self._gpus) if self._gpus else (Status.cudaErrorNoDevice, None)

    def cudaGetDeviceProperties(self, device):
        return Status.cudaSuccess, SimpleNamespace(name=b"Pretended GPU\0\0", major=9, minor=0)

    def cudaDriverGetVersion(self):
        return Status.cudaSuccess, 13020

    def cudaMalloc(self, size):
        self._left -= size
        if self._left < 0:
            return Status.cudaErrorMemoryAllocation, None
        block = ctypes.create_string_buffer(b"\xff" * size, size)
        self.blocks[ctypes.addressof(block)] = block
        return Status.cudaSuccess, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address):
        del self.blocks[int(address)]
        return (Status.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        self.put(lambda: ctypes.memmove(int(target), int(source), size) and None)
        return (Status.cudaSuccess,)

    def cudaStreamCreate(self):
        self.streams += 1
        return Status.cudaSuccess, 7

    def cudaStreamDestroy(self, stream):
        self.streams -= 1
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        return (self.failure or Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        graph, self.recording = self.recording, None
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs += 1
        return Status.cudaSuccess, graph

    def cudaGraphDestroy(self, graph):
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph):
        self.graphs -= 1
        return (Status.cudaSuccess,)

    def cudaGraphLaunch(self, graph, stream):
        self.launched += 1
        for work in graph:
            work()
        return (Status.cudaSuccess,)


class Context:
    """Gives a picture's sum and its largest value."""

    def __init__(self, cuda: PretendedCuda) -> None:
        self._cuda = cuda
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.profile = -1
        self.memory = 0

    def set_device_memory(self, address, size):
        assert address in self._cuda.blocks
        self.memory = size

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return True

    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[0] <= BUCKETS[-1]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return address in self._cuda.blocks

    def execute_async_v3(self, stream):
        assert self.profile == 0 and self.memory == 512 and stream == 7

        def work() -> None:
            image = self._array("image", self.shape)
            scores = self._array("scores", (self.shape[0], 2))
            scores[:, 0], scores[:, 1] = image.sum(axis=(1, 2, 3)), image.max(axis=(1, 2, 3))

        self._cuda.put(work)
        return True

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
        return np.ctypeslib.as_array(values).reshape(shape)


def pretended_tensorrt(cuda: PretendedCuda) -> Any:
    contexts: list[Context] = []
    tensors = {"image": ("input", IMAGE), "scores": ("output", SCORES)}

    class Engine:
        num_io_tensors = 2
        device_memory_size_v2 = 512

        def get_tensor_name(self, index):
            return list(tensors)[index]

        def get_tensor_shape(self, name):
            return tensors[name][1]

        def get_tensor_dtype(self, name):
            return "float32"

        def get_tensor_mode(self, name):
            return tensors[name][0]

        def create_execution_context(self, strategy):
            assert strategy == "the caller's memory"
            contexts.append(Context(cuda))
            return contexts[-1]

    class Runtime:
        def __init__(self, logger):
            self._logger = logger

        def deserialize_cuda_engine(self, plan):
            if plan.startswith(b"plan"):
                return Engine()
            self._logger.log(1, "The engine plan file is generated on an incompatible device.\n")
            return None

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

        def __init__(self) -> None:
            pass

    return SimpleNamespace(
        __version__="11.4.0",
        Runtime=Runtime,
        ILogger=Logger,
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="the caller's memory"),
        float32="float32", float16="float16", bfloat16="bfloat16", int8="int8",
        contexts=contexts,
    )  # fmt: skip


def make_engine(cuda: PretendedCuda, plan: bytes = b"plan") -> tuple[TensorRtEngine, Any]:
    trt = pretended_tensorrt(cuda)
    about = {"version": "11.4.0", "device": "Pretended GPU", "precision": Precision.FP16}
    return TensorRtEngine(trt, cuda, plan, logger=collecting_logger(trt), **about), trt


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 1, 4, 4)).astype(np.float32)


def test_batches_of_any_size_get_their_own_answers_and_one_graph_a_bucket() -> None:
    cuda = PretendedCuda()
    engine, trt = make_engine(cuda)
    # Large ones first: what they leave in the buffers must not reach smaller ones.
    for count in (70, 32, 17, 16, 9, 5, 3, 2, 1, 33, 64):
        batch = pictures(count)
        scores = engine.run(batch)["scores"]
        expected = np.stack([batch.sum(axis=(1, 2, 3)), batch.max(axis=(1, 2, 3))], axis=1)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
        assert scores.flags.writeable
    assert cuda.graphs == len(BUCKETS) == len(trt.contexts)
    assert sorted(context.shape[0] for context in trt.contexts) == list(BUCKETS)
    assert cuda.launched == 3 + 8 + 2 + 2


def test_warming_up_captures_every_bucket() -> None:
    cuda = PretendedCuda()
    engine, _ = make_engine(cuda)
    engine.warm_up()
    assert cuda.graphs == len(BUCKETS)
    engine.run(pictures(6))
    assert cuda.graphs == len(BUCKETS)


def test_closing_gives_everything_back() -> None:
    cuda = PretendedCuda()
    engine, _ = make_engine(cuda)
    engine.warm_up()
    assert cuda.blocks and cuda.streams == 1
    engine.close()
    engine.close()
    assert not cuda.blocks and cuda.streams == 0 and cuda.graphs == 0


def test_a_full_gpu_is_a_build_error_and_leaves_nothing_behind() -> None:
    cuda = PretendedCuda(memory=BUCKETS[-1] * 4 * 16 * 2 + 100)
    with pytest.raises(EngineBuildError, match=r"no memory for the engine's buffers \(cudaErrorMemoryAllocation\)"):
        make_engine(cuda)
    assert not cuda.blocks and cuda.streams == 0


def test_a_failure_on_the_gpu_is_an_engine_error_and_closing_works_after_it() -> None:
    cuda = PretendedCuda()
    engine, _ = make_engine(cuda)
    engine.run(pictures(2))
    cuda.failure = Status.cudaErrorMemoryAllocation
    with pytest.raises(EngineError, match="tensorrt failed: cudaErrorMemoryAllocation"):
        engine.run(pictures(2))
    cuda.failure = None
    assert len(engine.run(pictures(2))["scores"]) == 2
    engine.close()


def test_a_plan_of_another_device_is_refused_in_its_own_words() -> None:
    with pytest.raises(
        EngineBuildError, match="TensorRT refuses the plan: The engine plan file is generated on an inc"
    ):
        make_engine(PretendedCuda(), b"stranger")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendedCuda:
    """A machine whose GPU, CUDA and TensorRT runtime are pretended; plans are built by tensorrt-rtx."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="the extra dev has it")
    cuda = PretendedCuda()
    runs = pretended_tensorrt(cuda)

    class Library:
        __version__ = "11.4.0"

        def __getattr__(self, name: str) -> Any:
            return getattr(runs if name in {"Runtime", "ExecutionContextAllocationStrategy", "contexts"} else rtx, name)

    monkeypatch.setattr(cuda_calls, "runtime", lambda: cuda)
    original = importlib.import_module
    monkeypatch.setattr(
        ours.importlib, "import_module", lambda name: Library() if name == "tensorrt" else original(name)
    )
    monkeypatch.setattr(ours, "TensorRtEngine", lambda trt, cuda, plan, **about: SimpleNamespace(plan=plan, **about))
    return cuda


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_the_backend_builds_and_keeps_what_it_learned(pretended: PretendedCuda, tmp_path: Path) -> None:
    onnx.save(segmentation_network(), tmp_path / "network.onnx")
    backend = TensorRtBackend(tmp_path / "engines")
    assert (backend.version, backend.device) == ("11.4.0", "Pretended GPU")
    assert backend.capabilities == ("compute 9.0", "driver 13.2")
    assert backend.supported_precisions() == (Precision.FP16, Precision.BF16, Precision.FP32)
    assert [backend.variant(each) for each in backend.supported_precisions()] == ["fp16", "bf16", ""]
    engine: Any = backend.compile(tmp_path / "network.onnx", Precision.FP32)
    assert len(engine.plan) > 1000 and engine.precision is Precision.FP32
    backend._keep_timings(b"learned")
    assert backend._read_timings() == b"learned"
    assert [path.name for path in (tmp_path / "engines" / "timings").iterdir()] == ["pretended-gpu-11.4.0.cache"]
    for precision in (Precision.INT8, Precision.INT8_FP32):
        with pytest.raises(EngineBuildError, match=f"does not compute in {precision}"):
            backend.compile(tmp_path / "network.onnx", precision)


def test_what_was_learned_may_be_lost(pretended: PretendedCuda, tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "file"
    folder.write_text("a file where a folder should be", "utf-8")
    backend = TensorRtBackend(folder)
    assert backend._read_timings() == b""
    backend._keep_timings(b"learned")
    assert "the timing cache cannot be written" in caplog.text
    assert TensorRtBackend()._read_timings() == b""


def test_without_a_gpu_nothing_of_tensorrt_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_calls, "runtime", lambda: PretendedCuda(gpus=0))
    monkeypatch.setattr(ours.importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(EngineBuildError, match=r"no usable GPU \(cudaErrorNoDevice\)"):
        TensorRtBackend()


def test_gpus_are_those_the_driver_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver(status: int, gpus: int) -> Any:
        def count(pointer: Any) -> int:
            pointer._obj.value = gpus
            return 0

        return SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=count)

    monkeypatch.setattr(cuda_calls.ctypes, "CDLL", lambda name: driver(0, 2))
    assert cuda_calls.count_gpus() == 2
    monkeypatch.setattr(cuda_calls.ctypes, "CDLL", lambda name: driver(100, 2))
    assert cuda_calls.count_gpus() == 0

    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_calls.ctypes, "CDLL", absent)
    assert cuda_calls.count_gpus() == 0
