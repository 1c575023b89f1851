"""PyTorch on a GPU that has no TensorRT: an exported program, compiled where it runs.

A bundle carries the program as ``torch.export`` saves it (``.pt2``), in float32 and for any batch,
with the names of its inputs and outputs beside it (:func:`write_program`). Compiling makes of it a
program in the wanted number format, channels last, that Inductor turns into one package of machine code; the
package is what the engine cache keeps. Inductor needs Triton and a C++ compiler. Where it has not got
them, or fails, the engine is the exported program itself, run operator by operator, and says so
(``Engine.how``). On a GPU both are captured as one CUDA graph per batch bucket.

On a CPU the same engine runs, in float32 and uncompiled, when it is asked for by name: for tests, and to see
what a program says. ``auto`` never takes it there: OpenVINO is several times faster.

This is the only module of the worker that imports torch, and only when this backend is used. A program and a
package hold native code or what becomes native code: only files whose SHA-256 is vouched for come here.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import logging
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from worker.inference.engines.base import (
    BUCKETS,
    BucketEngine,
    Engine,
    EngineBuildError,
    EngineSpec,
    FloatArray,
    Precision,
    TensorSpec,
    reason_of,
)

log = logging.getLogger(__name__)

#: The file inside a ``.pt2`` that names inputs and outputs.
_SPEC_FILE = "carina.json"
_INDUCTOR, _EAGER = "inductor", "eager"
#: Calls before a capture: libraries choose their kernels and allocate in the first ones.
_CALLS_BEFORE_CAPTURE = 3

Call = Callable[[Any], Sequence[Any]]


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise EngineBuildError("PyTorch is not installed: pip install torch.") from None


def write_program(module: Any, path: Path, shape: tuple[int, int, int], outputs: Sequence[str]) -> None:
    """Save ``module`` as the ``torch`` variant of a bundle's member.

    Parameters
    ----------
    module
        An ``nn.Module`` that takes ``image`` (batch, \\*shape) and returns a tensor or a tuple of them; it is
        put into evaluation mode and float32.
    shape
        Channels, height and width.
    outputs
        The names of what it returns, in order.
    """
    torch = _torch()
    module = module.eval().float()
    image = torch.zeros(2, *shape)
    with torch.no_grad():
        answers = _as_tuple(module(image))
    spec = EngineSpec(
        (TensorSpec("image", (None, *shape), "float32"),),
        tuple(
            TensorSpec(name, (None, *answer.shape[1:]), "float32")
            for name, answer in zip(outputs, answers, strict=True)
        ),
    )
    program = _exported(torch, module, image)
    _forget_places(program)
    with _quietly():
        torch.export.save(program, path, extra_files={_SPEC_FILE: json.dumps(spec.to_json())})


class TorchEngine(Engine):
    """A program on the CPU."""

    def __init__(self, call: Call, package: bytes, **about: Any) -> None:
        super().__init__(backend="torch", **about)
        self._call: Call | None = call
        self._package = package

    def export(self) -> bytes:
        """The package."""
        return self._package

    def _execute(self, batch: FloatArray) -> dict[str, FloatArray]:
        torch = _torch()
        assert self._call is not None
        with torch.inference_mode():
            answers = self._call(torch.from_numpy(batch))
            return {
                tensor.name: np.array(answer.numpy(), np.float32, order="C")
                for tensor, answer in zip(self.spec.outputs, answers, strict=True)
            }

    def _release(self) -> None:
        self._call = None


class TorchGpuEngine(BucketEngine):
    """A program on the GPU: a CUDA graph per bucket, page-locked memory on this side."""

    def __init__(self, call: Call, package: bytes, **about: Any) -> None:
        super().__init__(backend="torch", **about)
        torch = _torch()
        self._call: Call | None = call
        self._package = package
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, tuple[Any, Any, Sequence[Any]]] = {}
        self._host = {
            tensor.name: torch.empty((BUCKETS[-1], *(size or 1 for size in tensor.shape[1:])), pin_memory=True)
            for tensor in (*self.spec.inputs, *self.spec.outputs)
        }

    def export(self) -> bytes:
        """The package."""
        return self._package

    def _run_bucket(self, batch: FloatArray, bucket: int) -> dict[str, FloatArray]:
        torch = _torch()
        rows = len(batch)
        picture = self._host[self.spec.inputs[0].name]
        # Streams, and whether gradients are kept, belong to the calling thread.
        with torch.cuda.stream(self._stream), torch.inference_mode():
            picture[:rows].copy_(torch.from_numpy(batch))
            picture[rows:bucket].zero_()
            if bucket not in self._graphs:
                self._graphs[bucket] = self._capture(torch, bucket)
            graph, image, answers = self._graphs[bucket]
            image.copy_(picture[:bucket], non_blocking=True)
            graph.replay()
            for tensor, answer in zip(self.spec.outputs, answers, strict=True):
                self._host[tensor.name][:rows].copy_(answer[:rows], non_blocking=True)
            self._stream.synchronize()
            return {tensor.name: self._host[tensor.name][:rows].numpy().copy() for tensor in self.spec.outputs}

    def _capture(self, torch: Any, bucket: int) -> tuple[Any, Any, Sequence[Any]]:
        """A graph of one call, the tensor it reads and the tensors it writes."""
        assert self._call is not None
        channels, height, width = (size or 1 for size in self.spec.inputs[0].shape[1:])
        image = torch.zeros((bucket, channels, height, width), device="cuda")
        # float32 is to mean float32: by default cuDNN's convolutions keep ten bits of mantissa.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            for _ in range(_CALLS_BEFORE_CAPTURE):
                self._call(image)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):  # fmt: skip
                answers = self._call(image)
        return graph, image, answers

    def _release(self) -> None:
        self._graphs.clear()
        self._host.clear()
        self._call = None
        _torch().cuda.empty_cache()


class TorchBackend:
    """Compiles exported programs for the first GPU this process sees, or the CPU where there is none.

    Parameters
    ----------
    inductor
        Whether to compile; None does where it is a gain and possible: on a GPU with Triton and a C++ compiler.

    Raises
    ------
    EngineBuildError
        PyTorch is not installed.
    """

    name = "torch"
    #: A graph is captured while no other thread uses the GPU.
    loads_side_by_side = False

    def __init__(self, *, inductor: bool | None = None) -> None:
        torch = _torch()
        self.version = str(torch.__version__)
        self._gpu = bool(torch.cuda.is_available())
        if self._gpu:
            self.device = str(torch.cuda.get_device_name(0))
            major, minor = torch.cuda.get_device_capability(0)
            facts = [f"compute {major}.{minor}", f"cuda {torch.version.cuda}"]
            facts.append(f"cudnn {torch.backends.cudnn.version()}")
        else:
            self.device = _processor()
            facts = [str(torch.backends.cpu.get_cpu_capability())]
        self._inductor = (self._gpu and _can_compile()) if inductor is None else inductor
        self.capabilities: tuple[str, ...] = (*facts, _INDUCTOR if self._inductor else _EAGER)

    def supported_precisions(self) -> tuple[Precision, ...]:
        """On a GPU half precision, then bfloat16, then float32; on a CPU float32."""
        return (Precision.FP16, Precision.BF16, Precision.FP32) if self._gpu else (Precision.FP32,)

    def variant(self, precision: Precision) -> str:
        """The exported program, from which every precision is made."""
        return "torch"

    def compile(self, network: Path, precision: Precision, *, threads: int | None = None) -> Engine:
        """Compile an exported program; raises EngineBuildError."""
        self._require(precision)
        try:
            package = self._package(network, precision)
        except Exception as error:
            raise EngineBuildError(
                f"PyTorch cannot build {network.name} in {precision}: {reason_of(error)}."
            ) from error  # fmt: skip
        return self.load(package, precision, threads=threads)

    def load(self, compiled: bytes, precision: Precision, *, threads: int | None = None) -> Engine:
        """Load what an engine exported; ``threads`` counts on a CPU, for the whole process. Raises EngineBuildError."""
        self._require(precision)
        torch = _torch()
        if threads is not None and not self._gpu:
            torch.set_num_threads(threads)
        kind = TorchGpuEngine if self._gpu else TorchEngine
        try:
            header, content = _unpacked(compiled)
            engine = kind(
                _loaded(torch, header["kind"], content),
                compiled,
                backend_version=self.version,
                device=self.device,
                precision=precision,
                spec=EngineSpec.from_json(header["spec"]),
                how=header["how"],
            )
        except Exception as error:
            raise EngineBuildError(f"PyTorch cannot load the engine: {reason_of(error)}.") from error
        return engine

    def _package(self, network: Path, precision: Precision) -> bytes:
        torch = _torch()
        described = {_SPEC_FILE: ""}
        with _quietly():
            program = torch.export.load(network, extra_files=described)
        spec = EngineSpec.from_json(json.loads(described[_SPEC_FILE]))
        program = _typed(torch, program, spec, precision, "cuda" if self._gpu else "cpu")
        graphs = ", CUDA graphs" if self._gpu else ""
        if self._inductor:
            try:
                return _packed(_INDUCTOR, spec, f"Inductor{graphs}", _compiled(torch, program))
            except Exception as error:
                log.warning("Inductor cannot compile %s, it runs uncompiled: %s", network.name, reason_of(error))
        content = io.BytesIO()
        with _quietly():
            torch.export.save(program, content)
        return _packed(_EAGER, spec, f"uncompiled{graphs}", content.getvalue())

    def _require(self, precision: Precision) -> None:
        if precision not in self.supported_precisions():
            raise EngineBuildError(f"PyTorch on {self.device} does not compute in {precision}.")


# Programs


def _exported(torch: Any, module: Any, image: Any) -> Any:
    """``module`` as a program for batches of any size."""
    batch = torch.export.Dim("batch", min=1, max=256)
    with torch.no_grad(), _quietly():
        return torch.export.export(module, (image,), dynamic_shapes=({0: batch},))


def _typed(torch: Any, program: Any, spec: EngineSpec, precision: Precision, device: str) -> Any:
    """The program on ``device``, computing in ``precision`` between a float32 input and float32 outputs."""
    formats = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
    dtype = formats[precision]
    inner = program.module().to(device=device, dtype=dtype).to(memory_format=torch.channels_last)

    class Typed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, image: Any) -> tuple[Any, ...]:
            image = image.to(dtype).contiguous(memory_format=torch.channels_last)
            return tuple(answer.float() for answer in _as_tuple(self.inner(image)))

    shape = tuple(size or 1 for size in spec.inputs[0].shape[1:])
    return _exported(torch, Typed(), torch.zeros((2, *shape), device=device))


def _compiled(torch: Any, program: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder, _quietly():
        path = Path(folder) / "network.pt2"
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        return path.read_bytes()


def _loaded(torch: Any, kind: str, content: bytes) -> Call:
    with _quietly():
        if kind == _EAGER:
            program = torch.export.load(io.BytesIO(content)).module()
            return lambda image: _as_tuple(program(image))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.pt2"
            path.write_bytes(content)
            # Callers take turns, and the locks of the other mode break the capture of a graph.
            package = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    return lambda image: _as_tuple(package(image))


def _forget_places(program: Any) -> None:
    """Drop what the exporter notes about source files: a bundle must not tell where it was made."""
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)


# Packages: a line of JSON, then what it describes


def _packed(kind: str, spec: EngineSpec, how: str, content: bytes) -> bytes:
    return json.dumps({"kind": kind, "how": how, "spec": spec.to_json()}).encode() + b"\n" + content


def _unpacked(package: bytes) -> tuple[dict[str, Any], bytes]:
    header, _, content = package.partition(b"\n")
    return json.loads(header), content


def _as_tuple(answers: Any) -> tuple[Any, ...]:
    return tuple(answers) if isinstance(answers, (tuple, list)) else (answers,)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings that the exporter gives about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _can_compile() -> bool:
    """Whether Inductor has what it needs to make code for a GPU."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and importlib.util.find_spec("triton") is not None


def _processor() -> str:
    """The processor as its maker names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
