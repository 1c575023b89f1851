"""Films at their own size, before any network's preprocessing, and which of them count for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schema.bundle import Manifest, Task
from schema.regions import Region
from trainer.data import phantoms
from trainer.data.images import read_picture
from trainer.data.records import EIGHT, LUNGS, Dataset, FilmRecord, tells
from trainer.data.truth import read_labels, renamed
from trainer.errors import DataError
from trainer.evaluation.films import films_of_part, has_truth, recipe_of

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WholeFilm:
    """A film as the reader gives it.

    Attributes
    ----------
    picture
        float32 (rows, columns), 0-1, white is dense, the patient's right on the image's left.
    labels
        uint8 of the same shape: places in the regions that were asked for; None without truth.
    """

    picture: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class MeasuredFilms:
    """N films of a data set and what each of them may be used for.

    Attributes
    ----------
    records
        The films.
    with_masks
        (N,): unseen by every segmentation network, and with a truth.
    targets
        (N, F): 1 present, 0 absent; NaN where not known, or where a classifier's part does not have the film.
    regions
        Names of the regions that may be scored, background not among them: drawn by people or exact.
    findings
        F slugs, in the bundle's order.
    """

    records: tuple[FilmRecord, ...]
    with_masks: BoolArray
    targets: FloatArray
    regions: tuple[str, ...]
    findings: tuple[str, ...]

    @property
    def patients(self) -> tuple[str, ...]:
        """The patient of each film."""
        return tuple(record.patient for record in self.records)

    @property
    def known(self) -> tuple[int, ...]:
        """The findings of which at least one film says something."""
        return tuple(int(k) for k in np.flatnonzero((~np.isnan(self.targets)).any(axis=0)))

    def some(self, count: int, seed: int) -> MeasuredFilms:
        """``count`` of them drawn at random, in their order; all where there are no more or ``count`` is 0."""
        rows = some_of(len(self.records), count, seed)
        return MeasuredFilms(
            tuple(self.records[row] for row in rows),
            self.with_masks[rows],
            self.targets[rows],
            self.regions,
            self.findings,
        )


def some_of(films: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """``count`` of ``films`` places drawn at random, ascending; all where there are no more or ``count`` is 0."""
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(films)
    return np.sort(drawn[: count or films])


def films_to_measure(manifest: Manifest, dataset: Dataset, part: str) -> MeasuredFilms:
    """The films that belong to ``part`` for the segmentation networks, for the classifiers, or for both.

    The two tasks may have split a data set differently, since one needs masks and the other labels: a film
    counts for a task only where it is in ``part`` for all networks of that task.

    Raises
    ------
    DataError
        The films say nothing about what the bundle does; the part is unknown or empty.
    """
    masks, judged = (_of_task(manifest, dataset, part, task) for task in ("segmentation", "classification"))
    every = {**masks, **judged}
    if not every:
        raise DataError(f"{dataset.name} has neither masks nor findings that {manifest.key} could be measured on.")
    names = sorted(every)
    findings = tuple(finding.finding for finding in manifest.findings)
    targets = np.full((len(names), len(findings)), np.nan)
    for row, name in enumerate(names):
        for column, finding in enumerate(findings):
            present = judged[name].findings.get(finding) if name in judged else None
            if present is not None:
                targets[row, column] = present
    return MeasuredFilms(
        tuple(every[name] for name in names),
        np.array([name in masks for name in names]),
        targets,
        scored_regions(manifest, dataset) if masks else (),
        findings,
    )


def scored_regions(manifest: Manifest, dataset: Dataset) -> tuple[str, ...]:
    """The regions whose truth was not derived by a rule, neither for the bundle nor for these films."""
    only_lungs = any(record.truth_kind == "lungs" for record in dataset.records)
    return tuple(
        region.name
        for region in manifest.regions
        if region.name != Region.BACKGROUND
        and region.origin != "derived"
        and (not only_lungs or tells(LUNGS, region.name))
    )


def read_whole(record: FilmRecord, regions: Sequence[str], manifest: Manifest) -> WholeFilm:
    """Read one film.

    Parameters
    ----------
    record
        The film.
    regions
        What the label values 1, 2, ... shall mean; empty when no truth is wanted.
    manifest
        Of the bundle: what the values of a label map mean that does not say so itself.

    Raises
    ------
    DataError
        The film or its truth cannot be read; the film is named.
    """
    wanted = (str(Region.BACKGROUND), *regions)
    if record.image is None:
        assert record.seed is not None
        drawn = phantoms.drawing_of(record.seed).draw()
        return WholeFilm(drawn.image, renamed(drawn.labels, EIGHT, wanted) if regions else None)
    # To ask of a mask of lungs for more than the lungs would have the rest derived.
    asked = wanted if record.truth_kind == "lungs" else tuple(region.name for region in manifest.regions)
    try:
        picture = read_picture(record.image, (), record.raw)
        if not regions or not record.truth_kind:
            return WholeFilm(picture.plane, None)
        labels, _ = read_labels(record, picture.geometry, asked)
    except DataError as error:
        raise DataError(f"{record.name} cannot be measured: {error}.") from None
    return WholeFilm(picture.plane, renamed(labels, asked, wanted))


def _of_task(manifest: Manifest, dataset: Dataset, part: str, task: Task) -> dict[str, FilmRecord]:
    members = manifest.members_of(task)
    if not members or not has_truth(dataset, manifest, task):
        return {}
    found: dict[str, FilmRecord] | None = None
    for member in members:
        usable, places = films_of_part(dataset, recipe_of(manifest, member), part)
        films = {usable.records[place].name: usable.records[place] for place in places}
        found = films if found is None else {name: record for name, record in found.items() if name in films}
    return found or {}
