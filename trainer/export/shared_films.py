"""Films on which several runs may be judged together: the same ones, and nobody's training material."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from trainer.data.store import Samples
from trainer.errors import RunError
from trainer.training.run_folder import Run, RunFolder
from trainer.training.stored import open_samples

#: Part → the parts that decided something about a network before it is looked at.
_EARLIER = {"validation": ("train",), "test": ("train", "validation")}


def shared_films(runs: Sequence[Run], part: str) -> list[Samples]:
    """The films that every run has in ``part``, as each run's network sees them, in one order.

    A film is left out when any run learned from, or was chosen by, another film of its patient. Runs of differently
    named data sets share no film, whatever their films are called.

    Raises
    ------
    RunError
        There is no such film, or the runs do not agree on what is known of one.
    """
    tables = [_table(run) for run in runs]
    barred = {patient for table in tables for _, patient, where in table if where in _EARLIER[part]}
    names = [name for name, _, _ in tables[0]]
    for table in tables:
        usable = {name for name, patient, where in table if where == part and patient not in barred}
        names = [name for name in names if name in usable]
    data = {str(run.data["name"]) for run in runs}
    if not names or len(data) > 1:
        raise RunError(
            f"{_listed(runs)} share no film of their {part} parts"
            f"{f' (they learned from {_and(sorted(data))})' if len(data) > 1 else ''}: "
            "train them on the same data with the same split, or package them apart."
            if len(runs) > 1
            else f"{runs[0].folder} has no films in its {part} part: change data.split and train again."
        )
    shared = []
    for run in runs:
        samples = run.samples(part)
        place = {name: index for index, name in enumerate(samples.names)}
        shared.append(samples.subset([place[name] for name in names]))
    if any(samples.targets.tobytes() != shared[0].targets.tobytes() for samples in shared):
        raise RunError(f"{_listed(runs)} disagree about the findings of the same films: train them on the same data.")
    return shared


def some_training_films(run: Run, count: int) -> Samples:
    """At most ``count`` films of the training part, spread evenly over it; the others are not read.

    Raises
    ------
    RunError
        The cache was deleted.
    """
    places = run.split.train
    step = max(1, len(places) // count)
    try:
        return open_samples(RunFolder(run.folder).films).subset(places[::step][:count])
    except FileNotFoundError:
        raise RunError(f"The preprocessed films of {run.folder} are gone: train it again.") from None


def _table(run: Run) -> list[tuple[str, str, str]]:
    """Name, patient and part of every film."""
    with RunFolder(run.folder).split.open(newline="", encoding="utf-8") as file:
        return [(row["name"], row["patient"], row["part"]) for row in csv.DictReader(file)]


def _listed(runs: Sequence[Run]) -> str:
    return _and([str(run.folder) for run in runs])


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
