"""Films read side by side: one record in, the arrays a network needs out."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from trainer.data import phantoms
from trainer.data.images import Steps, read_picture
from trainer.data.records import EIGHT, FilmRecord
from trainer.data.truth import as_bits, read_labels, renamed, to_network_grid
from trainer.errors import DataError
from worker.film import preprocess

#: Label value of every pixel of a film whose regions nobody drew.
UNDRAWN = 255

#: Side of the grid that says where a phantom's consolidation is.
CELLS = 16

#: Other processes take about so long to start.
_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True)
class FilmPlan:
    """What is made of each film: preprocessing, the regions wanted (None: no labels), and whether these may overlap."""

    steps: Steps
    regions: tuple[str, ...] | None
    overlapping: bool = False


@dataclass(frozen=True)
class Film:
    """One film's arrays.

    ``pictures`` float16 (height, width); ``labels`` uint8 (height, width), a label map or a bit field, or None;
    ``places`` float32 (16, 16), 0-1, or None; ``note`` what had to be decided about its truth, in words.
    """

    pictures: npt.NDArray[np.float16]
    labels: npt.NDArray[np.uint8] | None
    places: npt.NDArray[np.float32] | None
    note: str = ""


def read_films(records: Sequence[FilmRecord], plan: FilmPlan, processes: int) -> Generator[Film | str, None, None]:
    """Each film in order, or what is wrong with it in words.

    The first ones are read here; other processes start once it turns out to take long. Close the generator to stop
    early.

    Raises
    ------
    DataError
        A reading process died; the films it may have died of are named.
    """
    begun = time.monotonic()
    delivered = 0
    while delivered < len(records) and (processes < 2 or time.monotonic() - begun < _PATIENCE_SECONDS):
        yield read_film(records[delivered], plan)
        delivered += 1
    if delivered == len(records):
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start, initargs=(plan,))
    try:
        for film in pool.map(_read, records[delivered:]):
            yield film
            delivered += 1
    except BrokenProcessPool:
        suspects = ", ".join(record.name for record in records[delivered : delivered + processes])
        raise DataError(
            f"A process that read films died, of too little memory or of one of these films: {suspects}."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def read_film(record: FilmRecord, plan: FilmPlan) -> Film | str:
    """One film, or what is wrong with it in words."""
    try:
        return _phantom(record.seed, plan) if record.image is None else _from_files(record, plan)
    except DataError as error:
        return str(error)


_plan: FilmPlan


def _start(plan: FilmPlan) -> None:
    global _plan  # noqa: PLW0603 - a pool's process has no other way to keep what is the same for all films
    _plan = plan
    cv2.setNumThreads(1)


def _read(record: FilmRecord) -> Film | str:
    return read_film(record, _plan)


def _from_files(record: FilmRecord, plan: FilmPlan) -> Film:
    assert record.image is not None
    picture = read_picture(record.image, plan.steps, record.raw)
    labels, note = None, ""
    if plan.regions is not None:
        if record.truth_kind:
            drawn, note = read_labels(record, picture.geometry, plan.regions, overlapping=plan.overlapping)
            labels = to_network_grid(drawn, plan.steps)
        else:
            labels = np.full(picture.plane.shape, UNDRAWN, np.uint8)
    return Film(picture.plane.astype(np.float16), labels, None, note)


def _phantom(seed: int | None, plan: FilmPlan) -> Film:
    assert seed is not None
    phantom = phantoms.drawing_of(seed).draw()
    plane = preprocess.apply(plan.steps, phantom.image, None)[0]
    labels = None
    if plan.regions is not None:
        told = (as_bits if plan.overlapping else renamed)(phantom.labels, EIGHT, plan.regions)
        labels = to_network_grid(told, plan.steps)
    laid = preprocess.apply([step for step in plan.steps if step["step"] == "resize"], phantom.opacity, None)[0]
    places: Any = cv2.resize(laid, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    return Film(plane.astype(np.float16), labels, places)
