"""The engine backends this version has, best first, each imported only when asked for."""

from __future__ import annotations

from collections.abc import Callable

from worker.inference.engines.base import Backend, EngineBuildError


def _openvino() -> Backend:
    from worker.inference.engines.openvino import OpenVinoBackend

    return OpenVinoBackend()


#: Name in ``CARINA_ENGINE_BACKEND`` → how to make it; raises when this machine lacks it.
BACKENDS: dict[str, Callable[[], Backend]] = {"openvino": _openvino}


def open_backend(name: str = "auto") -> Backend:
    """The backend called ``name``, or with ``auto`` the first one this machine has.

    Raises
    ------
    EngineBuildError
        There is no such backend, or this machine cannot run it.
    """
    if name != "auto" and name not in BACKENDS:
        raise EngineBuildError(f"There is no engine backend {name!r}: choose auto or {', '.join(BACKENDS)}.")
    refusals = []
    for candidate in BACKENDS if name == "auto" else (name,):
        try:
            return BACKENDS[candidate]()
        except Exception as error:
            refusals.append(f"{candidate} ({error})")
    raise EngineBuildError(f"No engine backend works on this machine: {'; '.join(refusals)}. Run: carina doctor")
