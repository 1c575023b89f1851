"""What every inference engine promises, whatever it runs on.

An engine is one network compiled for one device. It takes a float32 batch and returns
float32 arrays by name; half and brain floats stay inside. Resizing, windowing and decoding
stay outside, so all backends see the same numbers; softmax, sigmoid and class activation
maps are part of the network.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


class Precision(StrEnum):
    """The number format of an engine's arithmetic.

    With ``INT8`` the layers that the bundle's 8-bit graph leaves in floating point are computed in the
    device's fastest format, with ``INT8_FP32`` in float32.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_FP32 = "int8-fp32"

    @property
    def eight_bit(self) -> bool:
        """Whether some layers compute in 8 bits."""
        return self in (Precision.INT8, Precision.INT8_FP32)


class EngineError(Exception):
    """The engine could not process this batch.

    The message is a phrase without a full stop, fit to be the detail of a
    :class:`worker.errors.FilmError`, and names no film.
    """


class EngineClosedError(Exception):
    """The engine was closed before it was asked to run: no film is to blame."""


class EngineBuildError(Exception):
    """A network could not be compiled or loaded; the message says which precision and why."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; ``shape`` has None where the size is free (the batch)."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """The tensor as written to ``engine.json``."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    def __str__(self) -> str:
        sizes = ", ".join("batch" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} ({sizes})"


@dataclass(frozen=True)
class EngineSpec:
    """An engine's inputs and outputs, in the network's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def output(self, name: str) -> TensorSpec | None:
        """The output called ``name``, or None."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> EngineSpec:
        """What :meth:`to_json` wrote; raises KeyError or TypeError for anything else."""

        def tensors(which: str) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(each["name"], tuple(each["shape"]), each["dtype"]) for each in raw[which])

        return cls(tensors("inputs"), tensors("outputs"))

    def to_json(self) -> dict[str, Any]:
        """Inputs and outputs as written to ``engine.json``."""
        return {
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
        }


class Engine(ABC):
    """One compiled network.

    Attributes
    ----------
    backend, backend_version
        The library that runs it, and its full version.
    device
        The processor or GPU as its maker names it.
    precision
        What the arithmetic really uses, read back from the backend.
    spec
        Inputs and outputs. There is one input of shape (batch, channels, height, width).
    how
        What ``precision`` leaves open, in words; empty where it says all.
    """

    def __init__(
        self,
        *,
        backend: str,
        backend_version: str,
        device: str,
        precision: Precision,
        spec: EngineSpec,
        how: str = "",
    ) -> None:
        if len(spec.inputs) != 1 or len(spec.inputs[0].shape) != 4 or None in spec.inputs[0].shape[1:]:
            raise EngineBuildError(
                "The network must have one input of shape (batch, channels, height, width) with fixed sizes, "
                f"it has {', '.join(map(str, spec.inputs)) or 'none'}."
            )
        self.backend = backend
        self.backend_version = backend_version
        self.device = device
        self.precision = precision
        self.spec = spec
        self.how = how
        self._lock = threading.Lock()
        self._closed = False

    def run(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Run the network on float32 ``batch`` (batch, channels, height, width).

        Callers of several threads take turns. Returns one float32 array per output, owned by
        the caller.

        Raises
        ------
        EngineError
            The batch has another type or shape than the network takes, holds numbers that are
            not finite, the backend failed, or an output is not finite.
        EngineClosedError
            The engine is closed.
        """
        self._check_input(batch)
        with self._lock:
            if self._closed:
                raise EngineClosedError("The engine is closed: the bundle was swapped or released.")
            try:
                outputs = self._execute(np.ascontiguousarray(batch))
            except Exception as error:
                raise EngineError(f"{self.backend} failed: {reason_of(error)}") from error
        self._check_outputs(outputs, len(batch))
        return outputs

    def warm_up(self) -> None:
        """Run one blank picture, so that the first film does not pay for memory and kernels."""
        shape = [size or 1 for size in self.spec.inputs[0].shape]
        self.run(np.zeros(shape, np.float32))

    def close(self) -> None:
        """Release the device's memory; waits for a running batch, may be called again."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release()

    @abstractmethod
    def export(self) -> bytes:
        """The compiled network, to be loaded again by the same backend version on the same device."""

    @abstractmethod
    def _execute(self, batch: FloatArray) -> dict[str, FloatArray]:
        """Run a checked batch; called by one thread at a time."""

    @abstractmethod
    def _release(self) -> None:
        """Free what the backend holds; called once."""

    def _check_input(self, batch: FloatArray) -> None:
        expected = self.spec.inputs[0]
        if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
            found = getattr(batch, "dtype", type(batch).__name__)
            raise EngineError(f"input {expected.name} must be float32, got {found}")
        if not _fits(batch.shape, expected.shape) or len(batch) == 0:
            raise EngineError(f"input {expected} got the shape {batch.shape}")
        if not np.isfinite(batch).all():
            raise EngineError(f"input {expected.name} holds numbers that are not finite")

    def _check_outputs(self, outputs: dict[str, FloatArray], batch_size: int) -> None:
        for expected in self.spec.outputs:
            output = outputs[expected.name]
            if len(output) != batch_size or not _fits(output.shape, expected.shape):
                raise EngineError(f"output {expected} came with the shape {output.shape} for {batch_size} pictures")
            if not np.isfinite(output).all():
                raise EngineError(f"output {expected.name} holds numbers that are not finite")


#: Batch sizes a GPU engine is prepared for; a batch runs padded, in the smallest that holds it.
BUCKETS = (1, 2, 4, 8, 16, 32)


class BucketEngine(Engine):
    """An engine that runs batches of fixed sizes only: for GPUs, where a captured graph has one size."""

    def warm_up(self) -> None:
        """Run every bucket, so that no batch of the night pays for setting one up."""
        shape = tuple(size or 1 for size in self.spec.inputs[0].shape[1:])
        for bucket in BUCKETS:
            self.run(np.zeros((bucket, *shape), np.float32))

    def _execute(self, batch: FloatArray) -> dict[str, FloatArray]:
        parts = []
        for start in range(0, len(batch), BUCKETS[-1]):
            part = batch[start : start + BUCKETS[-1]]
            parts.append(self._run_bucket(part, next(size for size in BUCKETS if size >= len(part))))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @abstractmethod
    def _run_bucket(self, batch: FloatArray, bucket: int) -> dict[str, FloatArray]:
        """Run ``batch``, padded to ``bucket`` pictures; the answers are those of ``batch`` alone, and copies."""


class Backend(Protocol):
    """A library that compiles networks for one device of this machine."""

    name: str
    version: str
    device: str
    #: What the device can do, as the backend lists it: part of an engine's identity.
    capabilities: tuple[str, ...]
    #: Whether several engines may be loaded and warmed up at once, by as many threads.
    loads_side_by_side: bool

    def supported_precisions(self) -> tuple[Precision, ...]:
        """The precisions this device has, fastest first; fp32 is always the last."""

    def variant(self, precision: Precision) -> str:
        """Which of a member's files this precision is made from: a key of ``Member.variants``, or "" for ``onnx``."""

    def compile(self, network: Path, precision: Precision, *, threads: int | None = None) -> Engine:
        """Compile the file that :meth:`variant` names; raises EngineBuildError."""

    def load(self, compiled: bytes, precision: Precision, *, threads: int | None = None) -> Engine:
        """Load what :meth:`Engine.export` returned; raises EngineBuildError."""


def reason_of(error: Exception) -> str:
    """The last line of an exception's text that says something, without a full stop.

    Native libraries put their call stack first and the reason last.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        wanted is None or wanted == size for size, wanted in zip(shape, expected, strict=True)
    )
