"""How fast is each engine, and what is a cached one worth?

    python benchmarks/engines.py                                  # U-Net and DenseNet-121 at the papers' sizes
    python benchmarks/engines.py --networks holste_unet resnet101 --rounds 30
    python benchmarks/engines.py --bundle ~/mine/bundle           # a bundle's own networks and variants
    python benchmarks/engines.py --bundle tests/bundles/phantom-2 --twins /tmp/twins
    python benchmarks/engines.py --write docs/gpu-evidence.md     # on a machine with a GPU

Films a second from host memory to host memory, for each batch size, of every backend and precision
that this machine has, beside eager and compiled PyTorch. Networks named by --networks get random weights, which
cost what trained ones do; whether 8 bits may be *used* is the parity gate's decision on a trained
bundle. Engines take turns; the figure is the best of all rounds, since whatever else the machine
does can only make a round slower. Target on a CPU: int8 at least 1.6 times bf16 (fp32 where the
processor has no bf16).

Then a bundle of the same networks (or --bundle) is loaded into an empty home and again from its engine cache, each
in a process of its own that has the library imported. Target: the second start takes less than a quarter of the
first.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from topologies import TOPOLOGIES, WARM_TARGET, Subject, as_bundle, starts, topology, with_twins

from schema.bundle import read_manifest
from worker.inference.engines.backends import BACKENDS, backends_to_try, open_backend
from worker.inference.engines.base import BUCKETS, Backend, EngineBuildError
from worker.inference.engines.cuda import count_gpus

INT8_TARGET = 1.6
#: How it runs → batch of pictures → nothing of interest.
Runners = dict[str, Callable[[np.ndarray], object]]
MARKS = ("<!-- measured: benchmarks/engines.py --write -->", "<!-- end of measured -->")


def members_of(bundle: Path) -> Iterator[Subject]:
    """A bundle's networks."""
    for member in read_manifest(bundle).members:
        files = {"": bundle / member.onnx, **{name: bundle / file for name, file in member.variants.items()}}
        yield Subject(member.name, (member.channels, member.height, member.width), files)


def engines(subject: Subject, backends: list[Backend]) -> Runners:
    """Every precision of every backend that the subject has a file for, and that builds."""
    found: Runners = {}
    for backend in backends:
        for precision in backend.supported_precisions():
            file = subject.files.get(backend.variant(precision))
            if file is None:
                continue
            try:
                engine = backend.compile(file, precision)
                engine.warm_up()
            except EngineBuildError as error:
                print(f"  {subject.name}: {backend.name} {precision} refused: {error}")
                continue
            how = f" ({engine.how})" if engine.how else ""
            found[f"{backend.name} {precision}{how}"] = engine.run
    return found


def pytorch(subject: Subject, *, gpu: bool) -> Runners:
    """The network in PyTorch: eager, and compiled where Inductor works; in half precision on a GPU as well."""
    if subject.module is None:
        return {}
    import copy

    import torch

    device = "cuda" if gpu else "cpu"

    def runner(module: Any, dtype: torch.dtype) -> Callable[[np.ndarray], object]:
        def run(batch: np.ndarray) -> object:
            with torch.inference_mode():
                picture = torch.from_numpy(batch).to(device, dtype)
                answers = module(picture.contiguous(memory_format=torch.channels_last))
                answers = answers if isinstance(answers, tuple) else (answers,)
                return [answer.float().cpu() for answer in answers]

        return run

    found: Runners = {}
    for dtype in (torch.float32, torch.float16) if gpu else (torch.float32, torch.bfloat16):
        module = copy.deepcopy(subject.module).to(device, dtype).to(memory_format=torch.channels_last)
        name = str(dtype).removeprefix("torch.")
        found[f"PyTorch eager {name}"] = runner(module, dtype)
        if gpu:
            found[f"PyTorch compiled {name}"] = runner(torch.compile(module, mode="reduce-overhead"), dtype)
    return found


def measure(subject: Subject, runners: Runners, batches: tuple[int, ...], rounds: int) -> None:
    """Note the best films a second of every runner at every batch size."""
    for size in batches:
        batch = np.random.default_rng(size).random((size, *subject.shape), np.float32)
        usable = dict(runners)
        for number in range(rounds + 1):
            for name, run in list(usable.items()):
                started = time.perf_counter()
                try:
                    run(batch)
                except Exception as error:
                    print(f"  {subject.name}: {name} fails at batch {size}: {str(error).splitlines()[0]}")
                    del usable[name]
                    continue
                if number:  # the first round warms up
                    speed = size / (time.perf_counter() - started)
                    subject.best[name, size] = max(speed, subject.best.get((name, size), 0.0))


def table(subject: Subject, batches: tuple[int, ...]) -> list[str]:
    """The subject's figures as Markdown."""
    names = list(dict.fromkeys(name for name, _ in subject.best))
    shape = " × ".join(map(str, subject.shape))
    lines = [
        f"**{subject.name}**, {shape}, films/s",
        "",
        "| | " + " | ".join(f"batch {size}" for size in batches) + " |",
    ]
    lines.append("|---|" + "---|" * len(batches))
    for name in names:
        cells = [f"{subject.best[name, size]:.1f}" if (name, size) in subject.best else "–" for size in batches]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def int8_ratios(subject: Subject) -> dict[str, float]:
    """8-bit engine of OpenVINO → how many times as fast as bf16 (or fp32) at batch 1."""
    speeds = {name: speed for (name, size), speed in subject.best.items() if size == 1}
    rival = speeds.get("openvino bf16", speeds.get("openvino fp32"))
    return {name: speed / rival for name, speed in speeds.items() if name.startswith("openvino int8") and rival}


def machine(backends: list[Backend]) -> list[str]:
    """Device, driver and versions, as Markdown."""
    lines = [
        f"- {datetime.now(UTC):%Y-%m-%d}, {platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    ]
    lines += [f"- {each.name} {each.version} on {each.device} ({', '.join(each.capabilities)})" for each in backends]
    with suppress(ImportError):
        import torch

        lines.append(f"- PyTorch {torch.__version__}")
    with suppress(OSError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        lines += [f"- {line}" for line in subprocess.run(query, capture_output=True, text=True).stdout.splitlines()]
    return lines


def topologies(options: argparse.Namespace, folder: Path) -> Iterator[Subject]:
    """The networks that were asked for, each made when it is needed."""
    return (topology(name, folder, options.size) for name in options.networks)


def write_between_marks(file: Path, lines: list[str]) -> None:
    """Put ``lines`` between the marks of a document."""
    before, _, rest = file.read_text("utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    if not rest:
        raise SystemExit(f"{file} has no line {MARKS[0]}")
    file.write_text("\n".join([before + MARKS[0], "", *lines, MARKS[1]]) + after, "utf-8")


def main() -> int:
    """Print the tables; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=TOPOLOGIES, default=["holste_unet", "densenet121"])
    parser.add_argument("--size", type=int, help="side of the pictures (default: the papers')")
    parser.add_argument("--bundle", type=Path, help="measure this bundle's networks instead")
    parser.add_argument("--twins", type=Path, help="first copy the bundle there, with 8-bit twins of its networks")
    parser.add_argument("--backend", default="auto", choices=["auto", *BACKENDS])
    parser.add_argument("--batches", type=int, nargs="+", help="default: 1 and 8, on a GPU all buckets")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--starts", type=int, default=5, help="cold and warm starts; 0 leaves them out")
    parser.add_argument("--write", type=Path, help="a document with the marks for the tables")
    options = parser.parse_args()
    if options.twins:
        options.bundle = with_twins(options.bundle, options.twins)
    gpu = count_gpus() > 0
    batches = tuple(options.batches or (BUCKETS if gpu else (1, 8)))
    backends: list[Backend] = []
    for name in backends_to_try(options.backend):
        try:
            backends.append(open_backend(name))
        except EngineBuildError as error:
            print(error)
    lines, missed = machine(backends), []
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subjects = []
        for subject in members_of(options.bundle) if options.bundle else topologies(options, folder):
            subjects.append(subject)
            measure(subject, {**engines(subject, backends), **pytorch(subject, gpu=gpu)}, batches, options.rounds)
            found = ["", *table(subject, batches)]
            ratios = int8_ratios(subject)
            for name, ratio in ratios.items():
                verdict = "met" if ratio >= INT8_TARGET else "missed"
                words = f"{name} is {ratio:.2f} times bf16 at batch 1 (target {INT8_TARGET}: {verdict})"
                found.append(f"{subject.name}: {words}")
            missed += [subject.name] if ratios and max(ratios.values()) < INT8_TARGET else []
            print("\n".join(found), flush=True)
            lines += found
        if options.starts:
            cold, warm = starts(options.bundle or as_bundle(subjects, folder), options.backend, options.starts)
            verdict = "met" if warm < WARM_TARGET * cold else "missed"
            missed += ["warm start"] if verdict == "missed" else []
            ratio = f"{warm / cold:.2f} (target below {WARM_TARGET}: {verdict})"
            lines += ["", f"Start: cold {cold:.2f} s, warm {warm:.2f} s, medians of {options.starts}; ratio {ratio}"]
            print("\n".join(lines[-2:]))
    if options.write:
        write_between_marks(options.write, lines)
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
