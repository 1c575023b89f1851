"""Films ready for a network, on disk: read once by several processes, found again by what they were made of."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import worker
from trainer.data.hashes import FileHashes
from trainer.data.reading import CELLS, FilmPlan, read_films
from trainer.data.records import LUNGS, MOST_NAMED, Dataset, FilmRecord, tells
from trainer.data.truth import flattened
from trainer.errors import DataError
from trainer.recipe import Recipe

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_FORMAT = 1  # raised when the arrays of the same films would differ
_FLUSH_EVERY = 64
_MOST_OVERLAPPING = 8  # regions that a bit field has room for


@dataclass(frozen=True)
class Samples:
    """Films as a network is shown them, and what is true of them.

    Attributes
    ----------
    pictures
        float16 (N, C, H, W), preprocessed, on disk and read-only; all channels are one plane in memory.
    labels
        uint8 (N, H, W), values in the order of :attr:`trainer.recipe.Recipe.drawn_regions`, on disk and read-only; None
        where a recipe draws none. A film without truth is ``trainer.data.reading.UNDRAWN`` everywhere. With
        ``overlapping`` a bit field instead: bit r is set where region r is (:mod:`trainer.data.truth`).
    targets
        float32 (N, F): 1 present, 0 absent, NaN not known, in the order of the recipe's findings.
    places
        float32 (N, 16, 16): mean consolidation of each cell of the network's grid, 0-1; None unless all films are
        phantoms.
    names, patients
        Of each film, as in :class:`trainer.data.records.FilmRecord`.
    ages
        float32 (N,), days; NaN where not known.
    digest
        SHA-256, hex, of everything above but ages and patients: films, preprocessing, truth, order.
    derived
        Regions nobody drew on some of the films: derived by rule, never to be scored as truth.
    overlapping
        Whether a pixel of ``labels`` may belong to several regions.
    """

    pictures: npt.NDArray[np.float16]
    labels: npt.NDArray[np.uint8] | None
    targets: npt.NDArray[np.float32]
    places: npt.NDArray[np.float32] | None
    names: tuple[str, ...]
    patients: tuple[str, ...]
    ages: npt.NDArray[np.float32]
    digest: str
    derived: tuple[str, ...] = ()
    overlapping: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def label_map(self, row: int) -> npt.NDArray[np.uint8]:
        """A film's truth as a label map, uint8 (H, W); where regions overlap the later one is seen."""
        assert self.labels is not None
        stored = np.asarray(self.labels[row], np.uint8)
        return flattened(stored, _MOST_OVERLAPPING) if self.overlapping else stored

    def subset(self, indices: Sequence[int]) -> Samples:
        """The films at ``indices`` in that order; pictures and labels are copied into memory."""
        rows = np.asarray(indices, np.intp)
        channels = self.pictures.shape[1]
        planes = self.pictures[rows, 0]
        return replace(
            self,
            pictures=np.broadcast_to(planes[:, None], (len(rows), channels, *planes.shape[1:])),
            labels=None if self.labels is None else self.labels[rows],
            targets=self.targets[rows],
            places=None if self.places is None else self.places[rows],
            names=tuple(self.names[row] for row in rows),
            patients=tuple(self.patients[row] for row in rows),
            ages=self.ages[rows],
            digest=hashlib.sha256(f"{self.digest}{rows.tolist()}".encode()).hexdigest(),
        )


def build_samples(
    dataset: Dataset,
    indices: Sequence[int],
    recipe: Recipe,
    folder: Path,
    progress: Progress | None = None,
    *,
    processes: int = 0,
) -> Samples:
    """Read, preprocess and keep films.

    The arrays lie in ``folder`` under a digest of the files' bytes and of the settings that shape them; the same
    films and settings are never read twice. A build that was cut off goes on where it stopped, and two processes
    that want the same films wait for each other.

    Parameters
    ----------
    dataset
        As :meth:`trainer.data.records.Dataset.for_recipe` gives it.
    indices
        Which of its records, in which order.
    recipe
        Its preprocessing, task, regions and findings.
    folder
        Is made when missing.
    progress
        Called with films done and films in all.
    processes
        That read; 0 means one per usable core.

    Raises
    ------
    DataError
        Films that cannot be read or whose truth does not fit, up to twenty named; no film; the disk is full.
    """
    records = [dataset.records[index] for index in indices]
    if not records:
        raise DataError(f"No film of {dataset.name} was asked for.")
    for record in records:
        if recipe.task == "segmentation" and not record.truth_kind:
            raise DataError(f"{record.name} has no truth to learn regions from: leave it out.")
    folder.mkdir(parents=True, exist_ok=True)
    plan = FilmPlan(recipe.preprocess, recipe.drawn_regions, recipe.data.overlapping)
    with FileHashes(folder / "hashes.json") as hashes:
        contents = _contents(records, hashes, with_truth=plan.regions is not None)
    asked = [plan.regions, "overlapping"] if plan.overlapping else plan.regions
    key = _digest([_FORMAT, worker.__version__, [dict(step) for step in plan.steps], asked, contents])
    place = folder / key
    with _locked(folder / f"{key}.lock"):
        if not place.is_dir():
            _build(records, plan, recipe.input_shape[1:], place, progress=progress, processes=processes or _cores())
    if progress:
        progress(len(records), len(records))
    channels, height, width = recipe.input_shape
    planes = np.load(place / "pictures.npy", mmap_mode="r")
    targets = _targets(records, recipe.data.findings if recipe.task == "classification" else ())
    return Samples(
        pictures=np.broadcast_to(planes[:, None], (len(records), channels, height, width)),
        labels=_load(place / "labels.npy"),
        targets=targets,
        places=_load(place / "places.npy"),
        names=tuple(record.name for record in records),
        patients=tuple(record.patient for record in records),
        ages=np.asarray([np.nan if r.age_days is None else r.age_days for r in records], np.float32),
        digest=_digest([key, [record.name for record in records], targets.tobytes().hex()]),
        derived=_derived(records, plan.regions or ()),
        overlapping=plan.overlapping,
    )


def data_digest(dataset: Dataset, folder: Path) -> str:
    """SHA-256, hex, of a data set: every film's bytes, truth, findings, patient and part, whatever their order.

    ``folder`` keeps the files' hashes, so that a large set is not read twice.

    Raises
    ------
    DataError
        A file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileHashes(folder / "hashes.json") as hashes:
        contents = _contents(dataset.records, hashes, with_truth=True)
    facts = [
        [r.name, r.patient, r.group, r.part, r.age_days, r.sex, sorted(r.findings.items()), content]
        for r, content in zip(dataset.records, contents, strict=True)
    ]
    return _digest(sorted(facts, key=lambda fact: fact[0]))


def _contents(records: Sequence[FilmRecord], hashes: FileHashes, *, with_truth: bool) -> list[list[Any]]:
    """What each film is made of: hashes of its files, or a phantom's seed."""
    wanted = [record.image for record in records if record.image is not None]
    wanted += [file for record in records if with_truth for file in record.truth_files]
    known = hashes.of(wanted)
    return [
        [
            record.seed if record.image is None else known[record.image],
            known[record.truth] if with_truth and record.truth is not None else "",
            record.truth_kind if with_truth else "",
            [*record.truth_regions, *record.truth_labels.items()] if with_truth else [],
            *([known[mask] for mask in record.masks.values()] if with_truth else []),
            *([record.raw.model_dump()] if record.raw else []),
        ]
        for record in records
    ]


def _targets(records: Sequence[FilmRecord], findings: Sequence[str]) -> npt.NDArray[np.float32]:
    targets = np.full((len(records), len(findings)), np.nan, np.float32)
    for row, record in enumerate(records):
        for column, finding in enumerate(findings):
            present = record.findings.get(finding)
            if present is not None:
                targets[row, column] = present
    return targets


def _derived(records: Sequence[FilmRecord], regions: Sequence[str]) -> tuple[str, ...]:
    drawn = any(record.truth_kind == "lungs" for record in records)
    return tuple(region for region in regions if drawn and not tells(LUNGS, region))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _build(
    records: Sequence[FilmRecord],
    plan: FilmPlan,
    grid: tuple[int, int],
    place: Path,
    *,
    progress: Progress | None,
    processes: int,
) -> None:
    part = place.with_suffix(".part")
    part.mkdir(exist_ok=True)
    arrays = {"pictures": _array(part / "pictures.npy", np.float16, (len(records), *grid))}
    if plan.regions is not None:
        arrays["labels"] = _array(part / "labels.npy", np.uint8, (len(records), *grid))
    if all(record.seed is not None for record in records):
        arrays["places"] = _array(part / "places.npy", np.float32, (len(records), CELLS, CELLS))
    done = _array(part / "done.npy", np.uint8, (len(records),))
    missing = [row for row in range(len(records)) if not done[row]]
    bad: list[str] = []
    pending: list[int] = []
    films = read_films([records[row] for row in missing], plan, processes)
    for finished, (row, film) in enumerate(zip(missing, films, strict=False), 1 + len(records) - len(missing)):
        if isinstance(film, str):
            bad.append(f"{_called(records[row])}: {film}")
            if len(bad) == MOST_NAMED:
                break
            continue
        if film.note:
            log.warning("%s: %s", records[row].name, film.note)
        for name, array in arrays.items():
            array[row] = getattr(film, name)
        pending.append(row)
        if len(pending) == _FLUSH_EVERY:
            _keep(arrays, done, pending)
        if progress:
            progress(finished, len(records))
    films.close()
    if bad:
        shutil.rmtree(part)
        more = " at least" if len(bad) == MOST_NAMED else ""
        raise DataError(f"Films that cannot be used,{more} {len(bad)}: {'; '.join(bad)}. Mend or remove them.")
    _keep(arrays, done, pending)
    part.replace(place)


def _called(record: FilmRecord) -> str:
    return record.name if record.image is None else f"{record.name} ({record.image})"


def _keep(arrays: Mapping[str, np.memmap], done: np.memmap, rows: list[int]) -> None:
    """Mark films as done once their arrays are on disk."""
    for array in arrays.values():
        array.flush()
    done[rows] = 1
    done.flush()
    rows.clear()


def _array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """An array on disk, as an earlier build left it or all zero, with its space reserved."""
    if path.is_file():
        return np.lib.format.open_memmap(path, "r+")
    unfinished = path.with_suffix(".new")
    array = np.lib.format.open_memmap(unfinished, "w+", dtype, shape)
    try:
        with unfinished.open("r+b") as stream:
            # Writing to a mapped file on a full disk kills the process.
            os.posix_fallocate(stream.fileno(), 0, unfinished.stat().st_size)
    except OSError as error:
        unfinished.unlink()
        raise DataError(
            f"{array.nbytes / 1e9:.1f} GB for prepared films do not fit into {path.parent.parent}: {error.strerror}."
        ) from None
    unfinished.replace(path)
    return array


def _load(path: Path) -> Any:
    return np.load(path, mmap_mode="r") if path.is_file() else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
