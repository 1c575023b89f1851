"""Which devices does this machine work with, and who keeps their workers alive?

One process per device, each started afresh: CUDA, OpenVINO and the database driver do not
survive a fork. A parent starts them, starts those again that die, and stops all of them in
good order when it is told to stop. If the parent dies, they end with it, and the leases
bring their films to somebody else.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from worker.errors import CarinaError
from worker.supervisor import HOPELESS_EXIT_CODES

log = logging.getLogger(__name__)

#: Engine backends that run on a GPU, the fastest first; all others run on the CPU.
GPU_BACKENDS = ("tensorrt", "torch")
CPU_BACKEND = "openvino"

#: A worker that lived for so long died of something new.
_SETTLED_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.25
#: Stopping takes a worker as long as the batches it is working on; after that it is killed.
_STOP_SECONDS = 75.0


@dataclass(frozen=True)
class Device:
    """A device: what its worker is called after, and what that worker's environment says."""

    name: str
    environment: Mapping[str, str]


def choose_devices(
    wanted: str, *, gpus: Sequence[str], backends: Collection[str], backend: str = "auto"
) -> tuple[Device, ...]:
    """The devices that ``wanted`` names: ``all``, ``cpu``, or GPU numbers, separated by commas.

    ``all`` is every GPU, or the CPU where no GPU can be used.

    Parameters
    ----------
    gpus
        Numbers of this machine's GPUs: :func:`find_gpus`.
    backends
        Names of the engine backends of this installation.
    backend
        ``CARINA_BACKEND``; with ``auto`` each device gets the best one for it.

    Raises
    ------
    CarinaError
        There is no such device, it is named twice, or no backend runs on it.
    """
    usable = [name for name in GPU_BACKENDS if name in backends and backend in ("auto", name)]
    names = [item.strip() for item in wanted.lower().split(",")]
    if names == ["all"]:
        names = list(gpus) if usable and gpus else ["cpu"]
    if len(set(names)) < len(names):
        raise CarinaError("--devices names a device twice: each device has one worker.")
    return tuple(_cpu(backend) if name == "cpu" else _gpu(name, gpus, usable) for name in names)


def find_gpus() -> tuple[str, ...]:
    """Numbers of this machine's NVIDIA GPUs, as ``nvidia-smi`` counts them; none where there is no driver."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(found.stdout.split()) if found.returncode == 0 else ()


class DeviceWorker:
    """One device's worker process; started again when it dies, after a wait that grows.

    Parameters
    ----------
    clock
        Seconds that only go forward.
    """

    def __init__(self, device: Device, command: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.device = device
        self.ended = False
        self._command = list(command)
        self._clock = clock
        self._wait = _FIRST_WAIT_SECONDS
        self._due = float("inf")
        self._starts = 0
        self._process = self._start()

    @property
    def process_id(self) -> int:
        """Of the process that runs now, or ran last."""
        return self._process.pid

    def look(self) -> None:
        """Start the process again if it died and its wait is over.

        Raises
        ------
        CarinaError
            It could not start for the first time: starting it again would not help.
        """
        code = self._process.poll()
        if code is None or self.ended:
            return
        if code == 0:
            # It was idle and told to end then, or somebody stopped it through Celery.
            self.ended = True
        elif code in HOPELESS_EXIT_CODES and self._starts == 1:
            self.ended = True
            raise CarinaError(
                f"The worker of device {self.device.name} could not start; its own message stands above. "
                "Run: carina doctor"
            )
        elif self._due == float("inf"):
            self._note_death(code)
        elif self._clock() >= self._due:
            _close_pipe(self._process)
            self._process = self._start()

    def terminate(self) -> None:
        """Ask the process to finish its batches and end."""
        self.ended = True
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait for the end; whoever takes longer than ``seconds`` is killed."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            log.error("the worker of device %s did not end in time and is killed", self.device.name)
            self._process.kill()
            self._process.wait()
        _close_pipe(self._process)

    def _note_death(self, code: int) -> None:
        lived = self._clock() - self._started_at
        self._wait = _FIRST_WAIT_SECONDS if lived > _SETTLED_SECONDS else min(self._wait * 2, _LONGEST_WAIT_SECONDS)
        self._due = self._clock() + self._wait
        log.error(
            "the worker of device %s ended with code %d; it is started again in %.0f s",
            self.device.name,
            code,
            self._wait,
        )

    def _start(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        self._due = float("inf")
        self._started_at = self._clock()
        # Its standard input is a pipe that closes when we end. Its own session, because a
        # terminal's Ctrl-C is meant for us: we stop the worker in good order.
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **self.device.environment},
        )


def run_devices(devices: Sequence[Device], command: Callable[[Device], Sequence[str]], stop: threading.Event) -> None:
    """Keep a worker process for each device until ``stop`` is set or all of them ended by themselves.

    Parameters
    ----------
    command
        How to start the worker of a device; it should call
        :func:`worker.queue.solo.die_with_parent`.

    Raises
    ------
    CarinaError
        A worker cannot start at all. The others are stopped.
    """
    workers: list[DeviceWorker] = []
    try:
        for device in devices:
            workers.append(DeviceWorker(device, command(device)))
        while not all(worker.ended for worker in workers) and not stop.wait(_LOOK_SECONDS):
            for worker in workers:
                worker.look()
    finally:
        for worker in workers:
            worker.terminate()
        until = time.monotonic() + _STOP_SECONDS
        for worker in workers:
            worker.wait(until - time.monotonic())


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _cpu(backend: str) -> Device:
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    if backend == "auto":
        environment["CARINA_BACKEND"] = CPU_BACKEND
    return Device("cpu", environment)


def _gpu(name: str, gpus: Sequence[str], usable: Sequence[str]) -> Device:
    if not name.isdecimal():
        raise CarinaError(f"--devices {name!r} is unknown: write all, cpu, or GPU numbers such as 0,1.")
    if name not in gpus:
        have = f"has {', '.join(gpus)}" if gpus else "has none that nvidia-smi shows"
        raise CarinaError(f"There is no GPU {name}: this machine {have}. Use --devices cpu, or all.")
    if not usable:
        raise CarinaError(
            f"No engine backend for GPU {name} is installed, or CARINA_BACKEND names another one. "
            "Use --devices cpu, or install one of: " + ", ".join(GPU_BACKENDS)
        )
    # The order that nvidia-smi counts in; CUDA's own puts the fastest first.
    return Device(
        f"gpu{name}",
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": name, "CARINA_BACKEND": usable[0]},
    )
