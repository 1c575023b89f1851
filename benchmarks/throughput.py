"""How many films a second, from files to rows, beside a plain script and beside the engine alone?

    python benchmarks/throughput.py                          # the papers' four networks, bf16 and int8
    python benchmarks/throughput.py --cores 1                # on a machine whose other cores are busy
    python benchmarks/throughput.py --networks holste_unet densenet121 --films 16 --rounds 2
    python benchmarks/throughput.py --json

Films are phantoms of 2500 x 2048 pixels and 12 bits (8 for JPEG baseline); the networks are the trainer's, with
random weights: eight regions at 256 x 256 pixels by Holste's U-Net, ten findings by each of the three classifiers at
512 x 512. Their answers are pulled towards one plausible chest, so that every film is read to its end and the
parity gate finds nothing to refuse; that costs an addition. It says nothing about accuracy.

plain   what one would write first: for every file pydicom, OpenCV, eager PyTorch at batch 1 in float32, one
        INSERT with its commit. Targets: ours at least 3 times as fast with bf16, 5 times with int8.
ours    the parts of ``carina run``: registration, claims, decoder children, engines, post-processing,
        results in SQLite. A few films go ahead; starting is a figure of its own. From the beginning of
        the registration to the last film's time in the database.
memory  the same engines, fed the prepared pictures from memory, and nothing else. Target: ours at least 0.9 of it, for
        every transfer syntax but JPEG 2000. ``bound`` is what is possible where the engine computes on the same cores
        as the decoders: a film costs engine time on all of them, and preparation and conclusion on one.
start   a bundle loaded into an empty home, and again. Target: warm less than a quarter of cold.

All take turns, round by round, in one process and on the same cores (--cores), PyTorch with one thread for
each; ratios are medians over the rounds. Other programs on the machine make all slower and the ratios restless.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cv2
import numpy as np
import pydicom
from passthrough import chest_labels
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit
from sqlalchemy import func, select
from topologies import TOPOLOGIES, WARM_TARGET, Subject, as_bundle, starts, topology

from schema.bundle import read_manifest
from schema.database import Database
from schema.tables import JobState, job
from trainer.recipe import load_recipe
from worker.film.prepare import prepare
from worker.film.prepared import PreparedFilm
from worker.film.source import FilmSource
from worker.inference.networks import infer
from worker.inference.site_set import add_films
from worker.intake.scan import submit
from worker.phantom import Phantom, dicom_bytes, make_phantom, phantom_dataset
from worker.phantom.dicom import ENCODERS, phantom_uid
from worker.pipeline import CONCLUDE, Pipeline
from worker.queue.loop import WorkerLoop
from worker.queue.outcomes import ClaimedJob, Outcome
from worker.queue.workers import register_worker
from worker.service import open_database, open_first
from worker.settings import Settings

PLAIN_TARGETS = {"bf16": 3.0, "int8": 5.0}
MEMORY_TARGET = 0.9
ROWS, COLUMNS = 2500, 2048
#: Stages after the networks.
_CONCLUDE = tuple(name for name, _ in CONCLUDE)
SYNTAXES = (ExplicitVRLittleEndian, *ENCODERS)
WARM_FILMS, SITE_FILMS, DRAWN = 4, 30, 4
#: Network → recipe whose preprocessing it takes; the classifiers share one.
RECIPES = {"holste_unet": "holste"}
_CLASSIFIERS = "densenet121"


# Networks and films


def settled(network: Any, task: str) -> Any:
    """The network with its logits close to a plausible chest, its probabilities close to a half."""
    import torch

    class Settled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            size = TOPOLOGIES["holste_unet"][2]
            labels = torch.from_numpy(chest_labels(size).astype(np.int64))
            self.register_buffer("chest", 6.0 * torch.nn.functional.one_hot(labels, 8).permute(2, 0, 1)[None].float())

        def forward(self, image: torch.Tensor) -> Any:
            if task == "segmentation":
                return 0.01 * self.network(image) + self.chest
            logits, maps = self.network(image)
            return 0.02 * torch.tanh(logits), 1.0 + 0.05 * torch.tanh(maps)

    return Settled()


def preprocessing(names: Sequence[str]) -> dict[str, tuple[dict[str, Any], ...]]:
    """Network → the steps of its paper's recipe."""
    return {name: tuple(load_recipe(RECIPES.get(name, _CLASSIFIERS)).preprocess) for name in names}


def draw(count: int, rows: int, columns: int, first_seed: int) -> Iterator[Phantom]:
    """``count`` different films, of a few phantoms that are moved sideways: drawing is slow."""
    drawn = [make_phantom(first_seed + number, rows=rows, columns=columns) for number in range(min(count, DRAWN))]
    for number in range(count):
        phantom = drawn[number % len(drawn)]
        image = np.roll(phantom.image, number // len(drawn), axis=1)
        yield replace(phantom, seed=first_seed + number, image=image)


def write_films(folder: Path, phantoms: Sequence[Phantom], syntax: str) -> list[Path]:
    """The films as DICOM files in ``syntax``."""
    folder.mkdir(parents=True)
    bits = 8 if syntax == JPEGBaseline8Bit else 12
    files = []
    for phantom in phantoms:
        uid = phantom_uid("benchmark", syntax, phantom.seed)
        dataset = phantom_dataset(phantom, bits_stored=bits, transfer_syntax=syntax, sop_instance_uid=uid)
        files.append(folder / f"{phantom.seed}.dcm")
        files[-1].write_bytes(dicom_bytes(dataset))
    return files


# Plain


def plain_script(subjects: Sequence[Subject], folder: Path) -> Callable[[Sequence[Path]], float]:
    """Films a second of what one would write first, over some files."""
    import torch

    connection = sqlite3.connect(folder / "plain.sqlite")
    connection.execute("CREATE TABLE IF NOT EXISTS result (uid TEXT, mask BLOB, scores TEXT)")

    def run(files: Sequence[Path]) -> float:
        started = time.perf_counter()
        for file in files:
            dataset = pydicom.dcmread(file)
            picture = dataset.pixel_array.astype(np.float32)
            picture = (picture - picture.min()) / (picture.max() - picture.min())
            equalised = cv2.equalizeHist((picture * 255).astype(np.uint8))
            mask, scores = b"", {}
            for subject in subjects:
                channels, *size = subject.shape
                source = picture if channels == 1 else equalised.astype(np.float32) / 255
                small = cv2.resize(source, size[::-1], interpolation=cv2.INTER_AREA)
                batch = torch.from_numpy(small).expand(1, channels, *size).contiguous()
                with torch.inference_mode():
                    answer = subject.module(batch)
                if isinstance(answer, tuple):
                    scores[subject.name] = answer[0][0].tolist()
                else:
                    mask = answer[0].argmax(0).to(torch.uint8).numpy().tobytes()
            row = (str(dataset.SOPInstanceUID), mask, json.dumps(scores))
            connection.execute("INSERT INTO result VALUES (?, ?, ?)", row)
            connection.commit()
        return len(files) / (time.perf_counter() - started)

    return run


# Ours


@dataclass
class Site:
    """A home with one precision's engines in its cache; every run gets a database of its own."""

    home: Path
    bundle: Path
    precision: str
    runs: int = 0
    #: Stage → seconds of each film.
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def films_per_second(
        self, warm: Sequence[Path], files: Sequence[Path], prepared: Sequence[PreparedFilm]
    ) -> tuple[float, float]:
        """From files to rows, and of the same engines fed from memory."""
        with self.opened() as (settings, database, pipeline):
            self._work(settings, database, pipeline, warm)
            self.seconds.clear()
            began = time.time()
            self._work(settings, database, pipeline, files)
            with database.read() as connection:
                done = select(func.count(), func.max(job.c.finished_at)).where(job.c.state == JobState.DONE.value)
                count, last = connection.execute(done).one()
            if count != len(warm) + len(files):
                raise SystemExit(f"only {count} of {len(warm) + len(files)} films were done")
            started = time.perf_counter()
            for number in range(len(files)):
                infer(pipeline.bundle, [prepared[number % len(prepared)]])
            return len(files) / (last.timestamp() - began), len(files) / (time.perf_counter() - started)

    @contextmanager
    def opened(self) -> Iterator[tuple[Settings, Database, Pipeline]]:
        """A new database, and a pipeline with the engines of the cache."""
        self.runs += 1
        settings = Settings(
            home=self.home,
            bundle=str(self.bundle),
            precision=self.precision,
            database_url=f"sqlite:///{self.home / f'{self.runs}.sqlite'}",
            poll_seconds=0.05,
        )
        self.home.mkdir(exist_ok=True)
        database = Database(settings.url)
        database.upgrade()
        database.close()
        with open_database(settings) as database:
            opened = open_first(settings, database)
            try:
                assert isinstance(opened.processor, Pipeline)
                yield settings, database, opened.processor
            finally:
                opened.close()

    def _work(self, settings: Settings, database: Database, pipeline: Pipeline, files: Sequence[Path]) -> None:
        submit(database, settings, files)
        worker = register_worker(database, settings, "benchmark", bundle_id=pipeline.bundle_id)
        loop = WorkerLoop(settings, database, worker, _Noting(pipeline, self.seconds), solo_command=["false"])
        loop.run(threading.Event(), until_idle=True)


class _Noting:
    """A pipeline, and the seconds each of its stages took."""

    def __init__(self, pipeline: Pipeline, seconds: dict[str, list[float]]) -> None:
        self.pipeline, self.seconds, self.bundle_id = pipeline, seconds, pipeline.bundle_id

    def process(self, jobs: Sequence[ClaimedJob], progress: Callable[[], None]) -> list[Outcome]:
        outcomes = self.pipeline.process(jobs, progress)
        for outcome in outcomes:
            for name, value in (outcome.result.seconds if outcome.result else {}).items():
                self.seconds.setdefault(name, []).append(value)
        return outcomes


def processor_seconds(files: Sequence[Path], plan: Mapping[str, Any]) -> float:
    """Processor seconds that preparing one film takes, median."""
    taken = []
    for file in files:
        began = time.process_time()
        prepare(FilmSource(file), plan)
        taken.append(time.process_time() - began)
    return median(taken)


# What takes turns


class Speeds(dict[str, list[float]]):
    """Films a second of everything that takes turns, round by round."""

    def note(self, **speeds: float) -> None:
        """One round's figures."""
        for name, speed in speeds.items():
            self.setdefault(name, []).append(speed)

    def ratio(self, one: str, other: str) -> dict[str, float]:
        """Median, least and greatest of the rounds' ratios."""
        ratios = [mine / his for mine, his in zip(self[one], self[other], strict=True)]
        return {"ratio": median(ratios), "least": min(ratios), "most": max(ratios)}


@dataclass
class Bench:
    """Everything that is measured."""

    folder: Path
    subjects: list[Subject]
    plan: dict[str, Any]
    bundle: Path
    sites: dict[str, Site]
    films: dict[str, list[Path]]
    #: Syntax → a few of its films as the networks see them.
    prepared: dict[str, list[PreparedFilm]]
    speeds: Speeds = field(default_factory=Speeds)

    def against_plain(self, rounds: int, plain_films: int) -> None:
        """The plain script, and every precision beside it."""
        plain = plain_script(self.subjects, self.folder)
        native = self.films[ExplicitVRLittleEndian]
        plain(native[:WARM_FILMS])
        for _ in range(rounds):
            self.speeds.note(plain=plain(native[WARM_FILMS : WARM_FILMS + plain_films]))
            tell(f"plain: {self.speeds['plain'][-1]:.2f} films/s")
            for precision in self.sites:
                self._note(precision, ExplicitVRLittleEndian)

    def syntaxes(self, rounds: int) -> None:
        """Every other transfer syntax, with the first precision."""
        for _ in range(rounds):
            for syntax in self.films:
                if syntax != ExplicitVRLittleEndian:
                    self._note(next(iter(self.sites)), syntax)

    def _note(self, precision: str, syntax: str) -> None:
        files = self.films[syntax]
        ours, memory = self.sites[precision].films_per_second(
            files[:WARM_FILMS], files[WARM_FILMS:], self.prepared[syntax]
        )
        self.speeds.note(**{f"{precision} {syntax}": ours, f"{precision} {syntax} memory": memory})
        tell(f"{precision} {UID(syntax).name}: {ours:.2f} films/s, from memory {memory:.2f}")

    def figures(self, cores: int) -> dict[str, Any]:
        """What is printed, as plain values."""
        speeds = self.speeds
        found: dict[str, Any] = {"films_per_second": {name: median(values) for name, values in speeds.items()}}
        found["plain"] = {
            precision: {
                **speeds.ratio(f"{precision} {ExplicitVRLittleEndian}", "plain"),
                "target": PLAIN_TARGETS[precision],
            }
            for precision in self.sites
        }
        found["memory"] = {}
        for syntax in self.films:
            for precision in self.sites:
                name = f"{precision} {syntax}"
                if name in speeds:
                    preparing = processor_seconds(self.films[syntax][:5], self.plan)
                    concluding = sum(median(self.sites[precision].seconds[stage]) for stage in _CONCLUDE)
                    engine = 1.0 / median(speeds[f"{name} memory"])
                    found["memory"][name] = {
                        **speeds.ratio(name, f"{name} memory"),
                        "target": 0.0 if syntax == JPEG2000Lossless else MEMORY_TARGET,
                        "engine_ms": 1000.0 * engine,
                        "prepare_ms": 1000.0 * preparing,
                        "conclude_ms": 1000.0 * concluding,
                        "bound": engine / (engine + (preparing + concluding) / cores),
                    }
        return found


def make_bench(folder: Path, names: Sequence[str], precisions: Sequence[str], films: int, syntaxes: bool) -> Bench:
    """Draw, write, export, quantise, build and gate; minutes."""
    tell("films")
    phantoms = list(draw(films + WARM_FILMS, ROWS, COLUMNS, 1))
    written = {
        syntax: write_films(folder / "films" / syntax, phantoms, syntax)
        for syntax in (SYNTAXES if syntaxes else SYNTAXES[:1])
    }
    site_films = write_films(folder / "site", list(draw(SITE_FILMS, 1000, 900, 1000)), ExplicitVRLittleEndian)
    plan = preprocessing(names)
    seen = [prepare(FilmSource(file), plan).tensors for file in site_films[:4]]
    pictures = {name: [tensors[name] for tensors in seen] for name in names}
    subjects = []
    for name in names:
        tell(name)
        subjects.append(topology(name, folder, pictures=pictures[name], settle=settled, program=False))
    bundle = as_bundle(subjects, folder, preprocess=plan, pictures=pictures)
    sites = {}
    for precision in precisions:
        tell(f"engines, {precision}")
        sites[precision] = site = Site(folder / precision, bundle, precision)
        if precision == "int8":
            added = add_films(
                site.home, [read_manifest(bundle)], site_films, memory_bytes=3 << 30, timeout_seconds=60.0
            )
            assert added.added == SITE_FILMS, added
        with site.opened() as (_, _, pipeline):
            members = pipeline.bundle.engine_description["members"]
            refused = {name: used for name, used in members.items() if used != precision}
            if refused:
                notes = getattr(pipeline.bundle, "notes", ())
                raise SystemExit(f"{precision} is not used for {refused}:\n" + "\n".join(notes))
    prepared = {syntax: [prepare(FilmSource(file), plan) for file in files[:4]] for syntax, files in written.items()}
    return Bench(folder, subjects, plan, bundle, sites, written, prepared)


# What is said


def tell(words: str) -> None:
    """Say what is being done, on standard error."""
    print(f"  {words} ...", file=sys.stderr, flush=True)


def missed(figures: dict[str, Any]) -> list[str]:
    """The targets that were missed."""
    names = [
        f"{part} {name}"
        for part in ("plain", "memory")
        for name, figure in figures[part].items()
        if figure["ratio"] < figure["target"]
    ]
    return names + (["start"] if figures["start"] and figures["start"]["ratio"] >= WARM_TARGET else [])


def lines(figures: dict[str, Any]) -> Iterator[str]:
    """The figures as a person reads them."""
    speeds = figures["films_per_second"]
    yield f"{'plain':44}{speeds['plain']:7.2f} films/s"
    for precision, figure in figures["plain"].items():
        speed = speeds[f"{precision} {ExplicitVRLittleEndian}"]
        yield (
            f"{'ours, ' + precision:44}{speed:7.2f} films/s, {figure['ratio']:.2f} times plain "
            f"({figure['least']:.2f}-{figure['most']:.2f}; target {figure['target']:g})"
        )
    yield ""
    heading = "against the engine fed from memory"
    yield f"{heading:44}{'ratio':>7}{'range':>12}{'bound':>7}  engine prepare conclude (ms)"
    for name, figure in figures["memory"].items():
        precision, syntax = name.split()
        title = f"{precision} {UID(syntax).name.split(',')[0].split('(')[0].strip()}"[:43]
        target = f"target {figure['target']:g}" if figure["target"] else "no target"
        between = f"{figure['least']:.2f}-{figure['most']:.2f}"
        yield (
            f"{title:44}{figure['ratio']:7.2f}{between:>12}{figure['bound']:7.2f}{figure['engine_ms']:8.0f}"
            f"{figure['prepare_ms']:8.0f}{figure['conclude_ms']:9.0f}  {target}"
        )
    if figures["start"]:
        start = figures["start"]
        yield ""
        yield (
            f"start: cold {start['cold']:.2f} s, warm {start['warm']:.2f} s, ratio {start['ratio']:.2f} "
            f"(target below {WARM_TARGET})"
        )


def main() -> int:
    """Print the figures; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--precisions", nargs="+", choices=PLAIN_TARGETS, default=list(PLAIN_TARGETS))
    parser.add_argument("--cores", type=int, help="use so many cores only (default: all)")
    parser.add_argument("--films", type=int, default=24, help="films of ours in a round")
    parser.add_argument("--plain-films", type=int, default=5, help="films of the plain script in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=3, help="cold and warm starts; 0 leaves them out")
    parser.add_argument("--native-only", action="store_true", help="leave the other transfer syntaxes out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    usable = sorted(os.sched_getaffinity(0))
    cores = min(options.cores or len(usable), len(usable))
    os.sched_setaffinity(0, usable[:cores])

    import torch

    torch.set_num_threads(cores)
    cv2.setNumThreads(cores)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        bench = make_bench(
            Path(name), options.networks, options.precisions, options.films, syntaxes=not options.native_only
        )
        tell("rounds")
        bench.against_plain(options.rounds, options.plain_films)
        bench.syntaxes(options.rounds)
        figures = bench.figures(cores)
        figures["start"] = {}
        if options.starts:
            tell("starts")
            cold, warm = starts(bench.bundle, "openvino", options.starts, options.precisions[0])
            figures["start"] = {"cold": cold, "warm": warm, "ratio": warm / cold}
    figures["machine"] = {"cores": cores, "load_before": load, "load_after": os.getloadavg()[0]}
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print(f"{cores} cores, load {load:.1f} before, {figures['machine']['load_after']:.1f} after")
        print("\n".join(lines(figures)))
        print(f"missed: {', '.join(missed(figures)) or 'nothing'}")
    return int(bool(missed(figures)))


if __name__ == "__main__":
    raise SystemExit(main())
