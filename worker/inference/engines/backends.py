"""The engine backends this version has, best first, each imported only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from worker.inference.engines import cuda
from worker.inference.engines.base import Backend, EngineBuildError

AUTO = "auto"


def _tensorrt(folder: Path | None) -> Backend:
    from worker.inference.engines.tensorrt import TensorRtBackend

    return TensorRtBackend(folder)


def _torch(folder: Path | None) -> Backend:
    from worker.inference.engines.torch import TorchBackend

    return TorchBackend()


def _openvino(folder: Path | None) -> Backend:
    from worker.inference.engines.openvino import OpenVinoBackend

    return OpenVinoBackend()


#: Name in ``CARINA_BACKEND`` → how to make it; raises when this machine lacks it.
BACKENDS: dict[str, Callable[[Path | None], Backend]] = {
    "tensorrt": _tensorrt,
    "torch": _torch,
    "openvino": _openvino,
}
#: What ``auto`` leaves out on a machine without a GPU.
GPU_BACKENDS = ("tensorrt", "torch")


def backends_to_try(name: str = AUTO) -> tuple[str, ...]:
    """The backend called ``name``, or with ``auto`` those that suit this machine, best first.

    Raises
    ------
    EngineBuildError
        There is no such backend.
    """
    if name == AUTO:
        gpu = cuda.count_gpus() > 0
        return tuple(candidate for candidate in BACKENDS if gpu or candidate not in GPU_BACKENDS)
    if name not in BACKENDS:
        raise EngineBuildError(f"There is no engine backend {name!r}: choose auto or {', '.join(BACKENDS)}.")
    return (name,)


def open_backend(name: str = AUTO, *, folder: Path | None = None) -> Backend:
    """The backend called ``name``, or with ``auto`` the first one that works on this machine.

    Parameters
    ----------
    folder
        ``<home>/engines``, where a backend may keep what it learned while building; None for nowhere.

    Raises
    ------
    EngineBuildError
        There is no such backend, or this machine cannot run it.
    """
    refusals = []
    for candidate in backends_to_try(name):
        try:
            return BACKENDS[candidate](folder)
        except Exception as error:
            refusals.append(f"{candidate} ({str(error).rstrip('.')})")
    raise EngineBuildError(f"This machine cannot use the engine backend {' or '.join(refusals)}.")
