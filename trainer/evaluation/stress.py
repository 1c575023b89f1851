"""How much a bundle's results change when its films come otherwise: every row of the stress table on every film.

A film is changed at its own size, stored as a DX object, and read, preprocessed, segmented, classified, cleaned
and flagged by the worker's own code. Dice is that of the masks after post-processing, as the night stores them,
against the truth that moved with the film. Regions whose truth was derived by a rule are never scored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schema.regions import LUNGS, REGION_BY_NAME
from trainer.data.records import Dataset
from trainer.data.truth import to_network_grid
from trainer.errors import RunError
from trainer.evaluation.perturbations import AS_IT_IS, Perturbation, as_dicom
from trainer.evaluation.subjects import Progress, whole_bundle
from trainer.evaluation.whole_films import MeasuredFilms, WholeFilm, films_to_measure, read_whole
from worker.errors import FilmError
from worker.film.prepare import prepare
from worker.film.source import FilmSource
from worker.findings.postprocess import PostprocessSettings
from worker.inference.bundles import LoadedBundle
from worker.inference.networks import NetworkOutput, infer
from worker.metrics import overlap
from worker.pipeline import CONCLUDE, Conclusion, FilmInWork

FloatArray = npt.NDArray[np.float64]
LabelMap = npt.NDArray[np.uint8]

#: Key of the union of both lungs among the Dice coefficients.
BOTH_LUNGS = "lungs"


@dataclass(frozen=True)
class Night:
    """A bundle that reads one film after the other as at night; see :func:`night`."""

    bundle: LoadedBundle
    folder: Path

    def read(self, film: WholeFilm, row: Perturbation, age_days: float | None) -> FilmInWork | FilmError:
        """The film after all steps, or the error with which it would have failed."""
        changed = row.change(film)
        path = self.folder / "film.dcm"
        path.write_bytes(as_dicom(changed, row.storage, key=0, age_days=age_days))
        try:
            prepared = prepare(FilmSource(path), self.bundle.plan)
        except FilmError as error:
            return error
        (output,) = infer(self.bundle, [prepared])
        if not isinstance(output, NetworkOutput):
            raise RunError(f"{self.bundle.manifest.key}: the engine failed on a film {row.title}: {output}.")
        manifest = self.bundle.manifest
        conclusion = Conclusion(manifest, PostprocessSettings.from_manifest(manifest.postprocess))
        work = FilmInWork(prepared, output)
        for _, step in CONCLUDE:
            step(work, conclusion)
        return work

    def truth(self, film: WholeFilm, row: Perturbation) -> LabelMap | None:
        """The changed film's truth under the segmentation network's picture; None without truth."""
        labels = row.change(film).labels
        steps = self.bundle.manifest.members_of("segmentation")[0].preprocess
        return None if labels is None else to_network_grid(labels, steps)


@contextmanager
def night(directory: Path) -> Iterator[Night]:
    """Load a bundle to read films with; engines are closed and films removed afterwards."""
    with whole_bundle(directory) as bundle, tempfile.TemporaryDirectory() as folder:
        yield Night(bundle, Path(folder))


@dataclass(frozen=True)
class StressScores:
    """P rows (the first is the film as it is) of N films; NaN where a film does not have a number.

    Attributes
    ----------
    rows
        The P perturbations.
    films
        The N films.
    dice
        Region, or ``"lungs"`` for the union of both → (P, N), 0-1.
    probabilities
        (P, N, F), 0-1, for films that a classifier may be judged by.
    flagged, flagged_result
        (P, N): 1 where a flag was raised at all, and where one was about the result and not only about the file.
    refused
        (P, N): 1 where the film would be ineligible.
    unread
        (P, N): 1 where it would have failed.
    swapped
        (P, N): 1 where the left lung's mask covers more of the true right lung than of the left one.
    """

    rows: tuple[Perturbation, ...]
    films: MeasuredFilms
    dice: Mapping[str, FloatArray]
    probabilities: FloatArray
    flagged: FloatArray
    flagged_result: FloatArray
    refused: FloatArray
    unread: FloatArray
    swapped: FloatArray


def measure_stress(
    at_night: Night,
    dataset: Dataset,
    part: str,
    rows: Sequence[Perturbation],
    *,
    limit: int = 0,
    seed: int,
    progress: Progress,
) -> StressScores:
    """Read every film of ``part`` as it is and in every row.

    Parameters
    ----------
    at_night
        The bundle.
    dataset, part
        As for :func:`trainer.evaluation.whole_films.films_to_measure`.
    rows
        The perturbations; the film as it is comes first by itself.
    limit
        At most so many films, drawn at random with ``seed``; 0 means all.
    progress
        Called with films done and films in all.

    Raises
    ------
    DataError
        There are no such films, or one cannot be read.
    RunError
        An engine failed.
    """
    films = films_to_measure(at_night.bundle.manifest, dataset, part).some(limit, seed)
    every = (AS_IT_IS, *rows)
    shape = (len(every), len(films.records))
    dice = {name: np.full(shape, np.nan) for name in _dice_names(films.regions)}
    probabilities = np.full((*shape, len(films.findings)), np.nan)
    counted = {name: np.full(shape, np.nan) for name in ("flagged", "flagged_result", "refused", "unread", "swapped")}
    any_masks = bool(films.with_masks.any())
    for n, record in enumerate(films.records):
        masks = bool(films.with_masks[n])
        film = read_whole(record, films.regions if masks else (), at_night.bundle.manifest)
        chest = film.labels is None or bool(film.labels.any())
        for p, row in enumerate(every):
            work = at_night.read(film, row, record.age_days)
            # Flags tell of masks: on films the segmentation learned from they would flatter.
            if chest and (masks or not any_masks):
                for key, value in _outcome(work).items():
                    counted[key][p, n] = value
            if isinstance(work, FilmError):
                continue
            if not np.isnan(films.targets[n]).all():
                probabilities[p, n] = [score.probability for score in work.scores]
            truth = at_night.truth(film, row) if masks and chest else None
            if truth is not None:
                found = masks_of(work, at_night, films.regions)
                values, counted["swapped"][p, n] = _compare(truth, found, tuple(dice), sides_told=row.sides_told)
                for name, value in values.items():
                    dice[name][p, n] = value
        progress("films of the stress table", n + 1, len(films.records))
    return StressScores(every, films, dice, probabilities, **counted)


def masks_of(work: FilmInWork, at_night: Night, regions: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Region → its cleaned mask on the network's grid, bool (height, width)."""
    assert work.segmentation is not None
    values = {region.name: region.value for region in at_night.bundle.manifest.regions}
    return {name: np.asarray(work.segmentation.cleaned == values[name]) for name in regions}


def title_of(region: str) -> str:
    """A region's or the lungs' name for a person."""
    return "Both lungs" if region == BOTH_LUNGS else REGION_BY_NAME[region].title


def _outcome(work: FilmInWork | FilmError) -> dict[str, float]:
    """What the night would count of one film."""
    if isinstance(work, FilmError):
        return {"unread": 1.0}
    assert work.verdict is not None
    return {
        "unread": 0.0,
        "flagged": float(bool(work.flags)),
        "flagged_result": float(any(flag.source != "input" for flag in work.flags)),
        "refused": float(work.verdict.code is not None),
    }


def _dice_names(regions: Sequence[str]) -> tuple[str, ...]:
    return (*((BOTH_LUNGS,) if set(LUNGS) <= set(regions) else ()), *regions)


def _compare(
    truth: LabelMap, found: Mapping[str, npt.NDArray[np.bool_]], names: Sequence[str], *, sides_told: bool
) -> tuple[dict[str, float], float]:
    """One film's Dice by name, and whether its lungs changed sides (1 or 0; NaN where that cannot be said)."""
    true = {name: truth == value for value, name in enumerate(found, 1)}
    dice = {name: overlap(true[name], found[name]).dice for name in found if sides_told}
    if not {*LUNGS} <= {*found}:
        return dice, float("nan")
    left, right = LUNGS
    dice[BOTH_LUNGS] = overlap(true[left] | true[right], found[left] | found[right]).dice
    own, other = (np.count_nonzero(found[left] & true[side]) for side in LUNGS)
    return dice, float(other > own) if own or other else float("nan")
