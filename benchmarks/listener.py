"""How fast does the listener take films, beside dcmtk's storescp and Orthanc?

storescu sends the same films to each in turn, from one sender and from several at once; every
server starts anew for each measurement. The servers take turns within a round, so that what else
the machine does meets all of them.

    python benchmarks/listener.py
    python benchmarks/listener.py --films 40 --side 2048 --processes 2 --rounds 5

=============  ==========================================================================
server         before it answers Success
=============  ==========================================================================
listener       film, folder and ledger (SQLite, synchronous=FULL) are flushed to the disk
orthanc        film flushed (SyncStorageArea), its index not
storescp+sync  film flushed, by a ``sync FILE`` that storescp starts for each film
storescp       nothing is flushed, nothing is recorded: how fast the network part can be
=============  ==========================================================================

Targets: with one sender at least as fast as storescp+sync and Orthanc, with four at least 0.8 of
the faster of the two. Needs Debian's dcmtk, orthanc and orthanc-dicomweb.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
from dicom_files import make_dataset, save
from orthanc import Orthanc
from server_process import Server, ServersUnavailableError

STORESCU, STORESCP, ECHOSCU = (f"/usr/bin/{name}" for name in ("storescu", "storescp", "echoscu"))
OURS, SYNCED, BARE, ORTHANC = "listener", "storescp+sync", "storescp", "orthanc"
ALONE_TARGET, TOGETHER_TARGET = 1.0, 0.8


class _DicomServer(Server):
    """A server process that answers C-ECHO when it is ready."""

    called = "ANY"

    def answers(self) -> bool:
        return echo(self.port, self.called)


class ListenerServer(_DicomServer):
    name = "listener"
    called = "CARINA"

    def __init__(self, processes: int) -> None:
        super().__init__()
        self._processes = processes

    def command(self) -> list[str]:
        settings = {"CARINA_HOME": self.folder / "home", "CARINA_LISTEN_PORT": self.port, "CARINA_DISK_RESERVE": 0}
        words = ["listen", "--processes", str(self._processes)]
        given = [f"{name}={value}" for name, value in settings.items()]
        # The package is found from any folder.
        path = f"PYTHONPATH={Path(__file__).resolve().parents[1]}"
        return ["/usr/bin/env", path, *given, sys.executable, "-m", "worker.cli", *words]


class StorescpServer(_DicomServer):
    name = "storescp"

    def __init__(self, *, sync: bool) -> None:
        super().__init__()
        self._sync = sync

    def command(self) -> list[str]:
        received = self.folder / "received"
        received.mkdir(exist_ok=True)
        flush = ["--exec-sync", "--exec-on-reception", f"sync {received}/#f"] if self._sync else []
        # A process for each association, as several senders need.
        return [STORESCP, "--fork", "--max-pdu", "131072", "--output-directory", str(received), *flush, str(self.port)]


class OrthancServer(Orthanc):
    called = "ORTHANC"

    def __init__(self) -> None:
        super().__init__(SyncStorageArea=True, MaximumPduLength=131072)

    def answers(self) -> bool:
        return super().answers() and echo(self.port, self.called)


def echo(port: int, called: str) -> bool:
    return subprocess.run([ECHOSCU, "-aec", called, "127.0.0.1", str(port)], capture_output=True).returncode == 0


def make_films(folder: Path, count: int, side: int) -> list[Path]:
    """Films of ``side`` × ``side`` noisy pixels in 16 bits, each its own object."""
    pixels = np.random.default_rng(0).integers(0, 4096, (side, side)).astype(np.uint16)
    films = []
    for number in range(count):
        pixels[0, 0] = number
        films.append(save(make_dataset(pixels), folder / f"{number:04d}.dcm"))
    return films


def send_seconds(port: int, called: str, films: Sequence[Path], senders: int) -> float:
    """Seconds until the last of ``senders`` has its last answer; each has its share of the films."""
    command = [STORESCU, "--call", called, "127.0.0.1", str(port)]
    started = time.perf_counter()
    running = [subprocess.Popen([*command, *map(str, films[number::senders])]) for number in range(senders)]
    codes = [process.wait() for process in running]
    seconds = time.perf_counter() - started
    if any(codes):
        raise SystemExit(f"storescu ended with {codes} at port {port}")
    return seconds


def measure(make: Callable[[], Server], films: Sequence[Path], senders: int) -> float:
    with ExitStack() as closing:
        server = make()
        closing.callback(server.close)
        server.start()
        return send_seconds(server.port, str(getattr(server, "called", "")), films, senders)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=40)
    parser.add_argument("--side", type=int, default=2048, help="rows and columns; 2048 makes films of 8.4 MB")
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2, help="listener processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to put the films; default: the temporary folder")
    arguments = parser.parse_args()
    if arguments.directory:
        tempfile.tempdir = str(arguments.directory)
    if not all(map(shutil.which, (STORESCU, STORESCP, ECHOSCU))):
        raise SystemExit("dcmtk is not installed: apt-get install dcmtk")
    servers: dict[str, Callable[[], Server]] = {
        OURS: lambda: ListenerServer(arguments.processes),
        ORTHANC: OrthancServer,
        SYNCED: lambda: StorescpServer(sync=True),
        BARE: lambda: StorescpServer(sync=False),
    }
    met = []
    with tempfile.TemporaryDirectory(prefix="listener-") as name:
        films = make_films(Path(name), arguments.films, arguments.side)
        megabytes = sum(film.stat().st_size for film in films) / 1e6
        print(f"{len(films)} films of {megabytes / len(films):.1f} MB, {arguments.processes} listener processes")
        for senders, target in ((1, ALONE_TARGET), (arguments.senders, TOGETHER_TARGET)):
            times: dict[str, list[float]] = {server: [] for server in servers}
            loads = []
            for _ in range(arguments.rounds):
                for server, make in servers.items():
                    loads.append(os.getloadavg()[0])
                    try:
                        times[server].append(measure(make, films, senders))
                    except ServersUnavailableError as error:
                        raise SystemExit(str(error)) from None
            print(f"\n{senders} senders, load before each measurement {min(loads):.1f} to {max(loads):.1f}")
            for server, seconds in times.items():
                middle = median(seconds)
                # Each round's pair: what the machine did then met both.
                ratio = median(theirs / ours for theirs, ours in zip(seconds, times[OURS], strict=True))
                print(
                    f"  {server:14} {middle:6.2f} s {len(films) / middle:6.1f} films/s {megabytes / middle:7.1f} MB/s"
                    f"   listener is {ratio:.2f} times as fast"
                )
            faster = min(
                median(theirs / ours for theirs, ours in zip(times[other], times[OURS], strict=True))
                for other in (ORTHANC, SYNCED)
            )
            met.append(faster >= target)
            print(f"  target {target}: {'met' if met[-1] else 'missed'} ({faster:.2f})")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
