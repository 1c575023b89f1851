"""The decoder child: reads untrusted files where a crash, a leak or a loop harms nobody else.

``python -m worker.film.decoder --parent PID --memory-bytes N``, started by
:class:`worker.film.pool.DecoderPool` only. One thread, a memory limit, no secrets in its
environment; it ends when its standard input does and is killed when its parent dies.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

from worker.errors import FilmError
from worker.film.prepare import Plan, prepare
from worker.film.protocol import PROTOCOL, film_to_header, read_message, write_message
from worker.film.source import FilmSource

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Serve requests until standard input ends; 0 then."""
    parser = argparse.ArgumentParser(description="Decoder child of a Carina worker; not for use by hand.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int, required=True)
    options = parser.parse_args(arguments)
    _die_with_parent(options.parent)
    _limit_memory(options.memory_bytes)
    requests, replies = _take_over_standard_streams()
    _use_one_thread()
    # Stopping is the parent's business: it closes standard input when it no longer needs the child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(requests, replies)
    return 0


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until they end."""

    def fill(buffer: memoryview) -> bool:
        filled = 0
        while filled < len(buffer):
            count = requests.readinto(buffer[filled:])  # type: ignore[attr-defined]
            if not count:
                return False
            filled += count
        return True

    plan: Plan = {}
    while (message := read_message(fill)) is not None:
        request, _ = message
        if "plan" in request:
            plan = request["plan"]
            continue
        write_message(replies, {"started": PROTOCOL})
        _answer(replies, FilmSource(Path(request["path"]), request["member"]), plan)


def _answer(replies: BinaryIO, source: FilmSource, plan: Plan) -> None:
    try:
        film = prepare(source, plan)
    except FilmError as error:
        header: dict[str, Any] = {"code": error.code, "detail": error.detail}
        write_message(replies, header)
    else:
        write_message(replies, film_to_header(film), film.tensors)


def _take_over_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's streams; whatever a library prints goes to standard error instead."""
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return requests, replies


def _limit_memory(count: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # macOS has the constant and refuses the limit.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (count, count))


def _use_one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


if __name__ == "__main__":
    sys.exit(main())
