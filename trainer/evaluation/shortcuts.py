"""Does a bundle find a finding by what films of the sick and of the healthy happen to differ in?

Beside the ensemble stand two probes that know no anatomy (:mod:`trainer.evaluation.probes`), on all films and on a
subset in which each film with the finding has a partner without it that the traits probe cannot tell from it; and
where the class activation maps lie (:mod:`trainer.evaluation.cam_mass`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schema.bundle import Manifest, Member, read_manifest
from schema.regions import LUNGS
from trainer.data.description import find_description
from trainer.data.records import Dataset, FilmRecord
from trainer.data.rows import read_rows
from trainer.errors import DataError
from trainer.evaluation.cam_mass import mass_inside
from trainer.evaluation.films import ALL, films_of_part, read_films, recipe_of
from trainer.evaluation.probes import (
    PIXELS_RIDGE,
    THUMBNAIL,
    TRAITS,
    TRAITS_RIDGE,
    fit_probe,
    matched_films,
    thumbnail,
    traits_of,
)
from trainer.evaluation.subjects import Evaluation, Progress, Subject, predict, subject_of_bundle
from trainer.evaluation.whole_films import WholeFilm, read_whole, some_of
from worker.film import preprocess

FloatArray = npt.NDArray[np.float64]

#: Film name → rows and columns of the original, for data sets whose makers resized the films.
Sizes = Mapping[str, tuple[float, float]]

ENSEMBLE = "ensemble"
_TRAIN = "train"


@dataclass(frozen=True)
class ShortcutScores:
    """What was found on N films; NaN where a film does not have a number.

    Attributes
    ----------
    findings
        F slugs.
    targets
        (N, F): 1 present, 0 absent, NaN not known.
    patients
        Of each film.
    ensemble
        (N, F): probabilities, 0-1.
    traits
        (N, T) in the order of :data:`trainer.evaluation.probes.TRAITS`.
    traits_probe, pixels_probe
        (N, F): log odds; NaN for a finding that could not be fitted.
    matched
        Finding → places of the films paired by the traits probe; findings that could not be fitted are absent.
    inside
        Network, or ``"ensemble"`` → (N, F): share of the map's positive mass inside the lungs, 0-1, of films that
        show the finding and whose lungs are known.
    lungs
        (N,): the lungs' share of the picture, 0-1.
    fitted_on
        Films the probes were fitted on.
    """

    findings: tuple[str, ...]
    targets: FloatArray
    patients: tuple[str, ...]
    ensemble: FloatArray
    traits: FloatArray
    traits_probe: FloatArray
    pixels_probe: FloatArray
    matched: Mapping[str, npt.NDArray[np.int64]]
    inside: Mapping[str, FloatArray]
    lungs: FloatArray
    fitted_on: int


def original_sizes(source: str, layout: str, columns: tuple[str, str]) -> Sizes:
    """The films' sizes before they were resized, as two columns of the data set's tables tell them.

    A film of which they say nothing gets the median of the others.

    Parameters
    ----------
    source, layout
        As for :func:`trainer.data.description.load_dataset`.
    columns
        Of the rows and of the columns, in pixels.

    Raises
    ------
    DataError
        There is no such column, or it holds something that is no positive number.
    """
    description, root = find_description(Path(source), layout)
    rows, _ = read_rows(description, root)
    told = np.array([[_pixels(row.value(column, "--film-size"), column) for column in columns] for row in rows])
    if np.isnan(told).all(axis=0).any():
        raise DataError(f"The columns {' and '.join(columns)} tell no film's size: name others with --film-size.")
    sizes = np.where(np.isnan(told), np.nanmedian(told, axis=0), told)
    return {row.name: (float(size[0]), float(size[1])) for row, size in zip(rows, sizes, strict=True)}


def measure_shortcuts(
    directory: Path,
    dataset: Dataset,
    part: str,
    cache: Path,
    *,
    sizes: Sizes | None = None,
    limit: int = 0,
    seed: int,
    progress: Progress,
) -> ShortcutScores:
    """Fit the probes on the training part and hold them against the bundle's ensemble on ``part``.

    Parameters
    ----------
    directory
        The bundle.
    dataset, part
        As for :func:`trainer.evaluation.evaluate.evaluate_bundle`; ``part`` must leave films to fit on.
    cache
        Keeps the films as the networks see them.
    sizes
        Of the films before they were resized; the files' own when None.
    limit
        At most so many films to fit on and so many to measure, drawn at random with ``seed``; 0 means all.
    progress
        Called with what is done, films done and films in all.

    Raises
    ------
    DataError
        The bundle has no classifier, the data set tells nothing about its findings, ``part`` leaves no film to fit
        on, or a film cannot be read.
    """
    manifest = read_manifest(directory)
    check_part(manifest, part)
    members = manifest.members_of("classification")
    learned = _records(dataset, manifest, members[0], _TRAIN)
    learned = [learned[place] for place in some_of(len(learned), limit, seed)]
    fitted = _see(learned, manifest, sizes, progress, fitting=True)
    with subject_of_bundle(directory, "classification", {}) as subject:
        samples = {m.name: read_films(dataset, recipe_of(manifest, m), part, cache, progress) for m in members}
        if limit:
            samples = {name: films.subset(some_of(len(films), limit, seed).tolist()) for name, films in samples.items()}
        evaluation = Evaluation(subject, samples, part, cache, 0, 0, progress)
        by_name = {record.name: record for record in _records(dataset, manifest, members[0], part)}
        films = [by_name[name] for name in evaluation.films.names]
        seen = _see(films, manifest, sizes, progress, fitting=False)
        targets = np.asarray(evaluation.films.targets, np.float64)
        ensemble, inside, lungs = _read(evaluation, seen.lungs, targets)
    traits_probe, pixels_probe = np.full(targets.shape, np.nan), np.full(targets.shape, np.nan)
    matched = {}
    told = np.array([[_label(record, finding) for finding in subject.findings] for record in learned])
    for k, finding in enumerate(subject.findings):
        known = ~np.isnan(told[:, k])
        if not {0.0, 1.0} <= set(told[known, k].tolist()):
            continue
        traits = fit_probe(fitted.traits[known], told[known, k], TRAITS_RIDGE)
        pixels = fit_probe(fitted.pixels[known], told[known, k], PIXELS_RIDGE)
        traits_probe[:, k], pixels_probe[:, k] = traits.logits(seen.traits), pixels.logits(seen.pixels)
        matched[finding] = matched_films(traits_probe[:, k], targets[:, k])
    return ShortcutScores(
        findings=subject.findings,
        targets=targets,
        patients=evaluation.films.patients,
        ensemble=ensemble,
        traits=seen.traits,
        traits_probe=traits_probe,
        pixels_probe=pixels_probe,
        matched=matched,
        inside=inside,
        lungs=lungs,
        fitted_on=len(learned),
    )


def check_part(manifest: Manifest, part: str) -> None:
    """Refuse what :func:`measure_shortcuts` would, before anything was measured; raises DataError."""
    if not manifest.members_of("classification"):
        raise DataError(f"{manifest.key} has no classifier: there is no shortcut to look for.")
    if part in (ALL, _TRAIN):
        raise DataError(f"The probes are fitted on the train part: measure the test or validation part, not {part}.")


@dataclass(frozen=True)
class _Seen:
    """What the probes see of films, and the films' lungs at their own size (None where they are not known)."""

    traits: FloatArray
    pixels: FloatArray
    lungs: tuple[npt.NDArray[np.bool_] | None, ...]


def _see(
    records: Sequence[FilmRecord], manifest: Manifest, sizes: Sizes | None, progress: Progress, *, fitting: bool
) -> _Seen:
    """Read films; their lungs only where the probes are not to be fitted on them."""
    traits, pixels = np.empty((len(records), len(TRAITS))), np.empty((len(records), THUMBNAIL**2))
    lungs = []
    for row, record in enumerate(records):
        film = read_whole(record, LUNGS if not fitting and _tells_lungs(record, manifest) else (), manifest)
        traits[row] = traits_of(film.picture, sizes[record.name] if sizes is not None else None)
        pixels[row] = thumbnail(film.picture)
        lungs.append(_lungs_of(film))
        progress("films to fit the probes on" if fitting else "films for the probes", row + 1, len(records))
    return _Seen(traits, pixels, tuple(lungs))


def _read(
    evaluation: Evaluation, lungs: Sequence[npt.NDArray[np.bool_] | None], targets: FloatArray
) -> tuple[FloatArray, dict[str, FloatArray], FloatArray]:
    """Probabilities, the maps' shares inside the lungs, and the lungs' share of the picture."""
    subject = evaluation.subject
    ensemble, share = np.empty(targets.shape), np.full(len(targets), np.nan)
    alone = {member.name: member for member in subject.members} if len(subject.members) > 1 else {}
    inside = {name: np.full(targets.shape, np.nan) for name in (ENSEMBLE, *alone)}
    for row, film in enumerate(predict(evaluation, range(len(targets)), f"{evaluation.part} films")):
        ensemble[row] = [score.probability for score in film.scores]
        mask = lungs[row]
        if mask is None or film.output.cam is None:
            continue
        maps = {ENSEMBLE: (film.output.cam, subject.members[0])}
        maps |= {name: (_map(subject, member, film.prepared.tensors[name]), member) for name, member in alone.items()}
        for name, (cam, member) in maps.items():
            seen = _under(mask, member)
            for k in np.flatnonzero(targets[row] == 1):
                inside[name][row, k], share[row] = mass_inside(cam[k], seen)
    return ensemble, inside, share


def _map(subject: Subject, member: Member, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """One member's maps as they leave its engine, (findings, h, w)."""
    return np.asarray(subject.bundle.engines[member.name].run(tensor[None])["cam"][0], np.float32)


def _under(mask: npt.NDArray[np.bool_], member: Member) -> npt.NDArray[np.float32]:
    """How much of each pixel of a member's picture the mask covers, stretched or fitted as the film was."""
    resizes = [step for step in member.preprocess if step["step"] == "resize"]
    return np.asarray(preprocess.apply(resizes, mask.astype(np.float32), None)[0], np.float32)


def _records(dataset: Dataset, manifest: Manifest, member: Member, part: str) -> list[FilmRecord]:
    usable, places = films_of_part(dataset, recipe_of(manifest, member), part)
    return [usable.records[place] for place in places]


def _label(record: FilmRecord, finding: str) -> float:
    present = record.findings.get(finding)
    return float("nan") if present is None else float(present)


def _tells_lungs(record: FilmRecord, manifest: Manifest) -> bool:
    """Whether a film's truth has both lungs in it."""
    if record.truth_kind != "label_map":
        return bool(record.truth_kind)
    return set(LUNGS) <= set(record.truth_regions or (region.name for region in manifest.regions))


def _lungs_of(film: WholeFilm) -> npt.NDArray[np.bool_] | None:
    return film.labels > 0 if film.labels is not None and film.labels.any() else None


def _pixels(said: str, column: str) -> float:
    """A length; NaN where nothing is said."""
    try:
        pixels = float(said or "nan")
    except ValueError:
        pixels = 0.0
    if pixels <= 0.0:
        raise DataError(f"The column {column} holds {said!r}, which is no size in pixels: see --film-size.")
    return pixels
