"""How fast do the networks of a grid run on this processor, beside each other?

    carina train families --grid --data /data/ped_cxr --layout ped_cxr --out runs/families
    python benchmarks/networks.py runs/families

One prepared film at a time through each network alone, in the worker's own engine in float32 and, where the processor
computes in it, bfloat16. The networks take turns, so that whatever else the machine does hits all of them: printed are
the median films a second over the rounds, and how many times as fast as the first network in the same precision it is
(median and range of the ratios round by round). A grid measures each network when it was trained, which may have been
on another day.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import Engine, FloatArray, Precision

#: So much time at least goes by between two looks at the clock.
_LEAST_SECONDS = 0.2


def engines_of(grid: Path) -> dict[tuple[str, Precision], tuple[Engine, FloatArray]]:
    """Network and precision → engine and a film for it, in the order in which the networks were trained."""
    backend = open_backend("openvino")
    found: dict[tuple[str, Precision], tuple[Engine, FloatArray]] = {}
    for onnx in sorted(grid.glob("*/member.onnx"), key=lambda file: file.stat().st_mtime):
        for precision in (Precision.FP32, Precision.BF16):
            if precision not in backend.supported_precisions():
                continue
            engine = backend.compile(onnx, precision)
            shape = [size or 1 for size in engine.spec.inputs[0].shape]
            found[onnx.parent.name, precision] = engine, np.random.default_rng(0).random(shape, np.float32)
    return found


def films_per_second(engine: Engine, film: FloatArray) -> float:
    """One film again and again, until it took long enough to be measured."""
    films, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < _LEAST_SECONDS:
        engine.run(film)
        films += 1
    return films / seconds


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="folder that carina train --grid wrote")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    engines = engines_of(options.grid)
    if not engines:
        print(f"{options.grid} holds no trained network.", file=sys.stderr)
        return 1
    speeds: dict[tuple[str, Precision], list[float]] = {key: [] for key in engines}
    for engine, film in engines.values():
        engine.run(film)
    for _ in range(options.rounds):
        for key, (engine, film) in engines.items():
            speeds[key].append(films_per_second(engine, film))
    print(f"{options.rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| network | precision | films/s | times the first |\n|---|---|---|---|")
    firsts: dict[Precision, list[float]] = {}
    for (name, precision), each in speeds.items():
        first = firsts.setdefault(precision, each)
        ratios = sorted(one / other for one, other in zip(each, first, strict=True))
        times = f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        print(f"| {name} | {precision} | {median(each):.1f} | {times} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
