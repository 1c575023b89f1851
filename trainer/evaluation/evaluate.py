"""From a finished run, several runs or a bundle to a folder with tables, figures and a summary.

=================  ============================================================================
report.md          everything in words, tables and figures; names no film and no patient
summary.json       the same numbers for programs; names no film and no patient
films.csv          a row per film **with its file's name**: stays with the data
regions.csv        masks: every region's means and intervals
failures.csv       masks: failures before and after post-processing
findings.csv       findings: every finding's means and intervals, and their mean
members.csv        findings of several networks: each network's AUROC
stress/            bundles, on request: the stress table (:mod:`trainer.evaluation.stress_report`)
inside/            runs that segment, on request: :mod:`trainer.evaluation.inside_report`
shortcuts/         bundles, on request: probes (:mod:`trainer.evaluation.shortcuts_report`)
\\*.png             figures
=================  ============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from schema.bundle import Task, read_manifest
from trainer.data.records import Dataset
from trainer.data.store import Samples
from trainer.errors import DataError, RunError
from trainer.evaluation.classification import choose_thresholds, score_films
from trainer.evaluation.classification_report import Parts, write_classification
from trainer.evaluation.films import ALL, has_truth, read_films, recipe_of, trained_with
from trainer.evaluation.mask_members import compare_members
from trainer.evaluation.segmentation import measure_films
from trainer.evaluation.segmentation_report import write_segmentation
from trainer.evaluation.shortcuts import Sizes, check_part
from trainer.evaluation.shortcuts_report import write_shortcuts
from trainer.evaluation.stress_report import write_stress
from trainer.evaluation.subjects import (
    Evaluation,
    FilmSource,
    FinishedRun,
    Progress,
    subject_of_bundle,
    subject_of_runs,
)
from trainer.evaluation.tables import RESEARCH_USE, write_json
from worker.bootstrap import REPLICATES

SEED = 1
VALIDATION = "validation"

#: What a bundle's results are called → the members that give them.
_TASKS: tuple[tuple[str, Task], ...] = (("masks", "segmentation"), ("findings", "classification"))


def say_nothing(what: str, done: int, total: int) -> None:
    """Progress for nobody."""


def own_films(run: FinishedRun, part: str) -> Samples:
    """The films the run itself was split into."""
    return run.samples(part)


def evaluate_run(
    run: FinishedRun,
    part: str = "test",
    out: Path | None = None,
    *,
    films: FilmSource = own_films,
    replicates: int = REPLICATES,
    progress: Progress = say_nothing,
) -> dict[str, Any]:
    """Measure a run's network: :func:`evaluate_runs`; ``out`` is ``evaluation/PART`` in the run folder if not given."""
    return evaluate_runs(
        [run], part, out or run.folder / "evaluation" / part, films=films, replicates=replicates, progress=progress
    )


def evaluate_runs(
    runs: Sequence[FinishedRun],
    part: str,
    out: Path,
    *,
    films: FilmSource = own_films,
    replicates: int = REPLICATES,
    progress: Progress = say_nothing,
) -> dict[str, Any]:
    """Measure one run, or the average of several runs' probabilities (classifier paper, section 3.5.2).

    Parameters
    ----------
    runs
        Of the same task and classes; several must have split the same films alike.
    part
        ``train``, ``validation`` or ``test``.
    out
        Folder for the results; made when missing, files of an earlier evaluation are replaced.
    films
        Where the measured films come from. Thresholds are always chosen on the runs' own validation part.
    replicates
        Bootstrap replicates of every interval.
    progress
        Called with what is done, films done and films in all.

    Returns
    -------
    What ``summary.json`` holds. ``figures`` maps names such as ``mean_dice``, ``mean_dice_age_0_4``,
    ``missing_carina``, ``disconnected_films``, ``mean_auroc``, ``mean_auroc_validation`` and ``mean_f1`` to
    ``value``, ``low`` and ``high``.

    Raises
    ------
    RunError
        A run has no network, the runs do not fit together, or an engine failed.
    DataError
        The part has no films.
    """
    with subject_of_runs(runs) as subject:
        names = [member.name for member in subject.members]

        def seen(source: FilmSource, part: str) -> dict[str, Samples]:
            return {name: source(run, part) for name, run in zip(names, runs, strict=True)}

        samples = _alike(seen(films, part), part)
        told = subject.with_derived(next(iter(samples.values())).derived)
        evaluation = Evaluation(told, samples, part, out, replicates, SEED, progress)
        out.mkdir(parents=True, exist_ok=True)
        if subject.task == "segmentation":
            blocks, results = write_segmentation(evaluation, measure_films(evaluation))
        else:
            own = part == VALIDATION and films is own_films
            chooser = None if own else replace(evaluation, samples=seen(own_films, VALIDATION), part=VALIDATION)
            blocks, results = write_classification(evaluation, _findings_of_runs(evaluation, chooser))
        return _finish(evaluation, blocks, results)


@dataclass(frozen=True)
class Extras:
    """What of a bundle is measured besides masks and findings.

    Attributes
    ----------
    stress
        The stress table: see :mod:`trainer.evaluation.stress`.
    shortcuts
        The shortcut probes: see :mod:`trainer.evaluation.shortcuts`.
    sizes
        Of the films before they were resized, for the probes; the files' own when None.
    films
        At most so many films of each part for these two; 0 means all.
    """

    stress: bool = False
    shortcuts: bool = False
    sizes: Sizes | None = None
    films: int = 0


def evaluate_bundle(
    directory: Path,
    dataset: Dataset,
    part: str,
    out: Path,
    *,
    extras: Extras | None = None,
    replicates: int = REPLICATES,
    progress: Progress = say_nothing,
) -> dict[str, Any]:
    """Measure a packaged bundle: its segmentation and its ensemble, each on the films whose truth is known.

    Parameters
    ----------
    directory
        The bundle.
    dataset
        Films; masks are measured if any film has a truth, findings if any of the bundle's is known.
    part
        ``train``, ``validation`` or ``test`` of the split the bundle was trained with (of the data set's own where it
        fixes the parts), or ``all``.
    out
        As for :func:`evaluate_runs`; ``masks``, ``findings``, ``stress`` and ``shortcuts`` are written to folders of
        these names below it.
    extras
        What else is measured; nothing if None.

    Returns
    -------
    ``{"bundle": ..., "masks": summary or None, "findings": summary or None}``, with summaries as
    :func:`evaluate_runs` returns them, and ``stress`` and ``shortcuts`` where asked for. Thresholds and temperature
    are the bundle's.

    Raises
    ------
    DataError
        The films say nothing about what the bundle does, or cannot be read; see also
        :func:`trainer.evaluation.shortcuts.measure_shortcuts`.
    """
    extras = extras or Extras()
    manifest = read_manifest(directory)
    if extras.shortcuts:
        check_part(manifest, part)
    summary: dict[str, Any] = {"bundle": manifest.key, "part": part, "research_use": RESEARCH_USE}
    reports = []
    for name, task in _TASKS:
        summary[name] = None
        members = manifest.members_of(task)
        if not members or not has_truth(dataset, manifest, task):
            continue
        samples = _shared(
            {
                member.name: read_films(dataset, recipe_of(manifest, member), part, out / "cache", progress)
                for member in members
            },
            f"The {part} part of {dataset.name}",
        )
        recipes = {member.name: recipe for member in members if (recipe := trained_with(manifest, member))}
        with subject_of_bundle(directory, task, recipes) as subject:
            told = subject.with_derived(next(iter(samples.values())).derived)
            evaluation = Evaluation(told, samples, part, out / name, replicates, SEED, progress)
            evaluation.out.mkdir(parents=True, exist_ok=True)
            if task == "segmentation":
                scores = measure_films(evaluation)
                blocks, results = write_segmentation(evaluation, scores)
                compared, alone = compare_members(evaluation, scores)
                blocks, results = [*blocks, *compared], {**results, **alone}
            else:
                blocks, results = write_classification(evaluation, _findings_of_bundle(evaluation))
            summary[name] = _finish(evaluation, blocks, results)
        reports.append(f"- [{name}]({name}/report.md)")
    if not reports:
        raise DataError(f"{dataset.name} has neither masks nor findings that {manifest.key} could be measured on.")
    if extras.stress:
        summary["stress"] = write_stress(
            directory,
            dataset,
            part,
            out / "stress",
            limit=extras.films,
            replicates=replicates,
            seed=SEED,
            progress=progress,
        )
        reports.append("- [stress table](stress/report.md)")
    if extras.shortcuts:
        summary["shortcuts"] = write_shortcuts(
            directory,
            dataset,
            part,
            out / "shortcuts",
            cache=out / "cache",
            sizes=extras.sizes,
            limit=extras.films,
            replicates=replicates,
            seed=SEED,
            progress=progress,
        )
        reports.append("- [shortcuts](shortcuts/report.md)")
    title = f"# Evaluation of {manifest.key}\n\n**{RESEARCH_USE}**\n"
    (out / "report.md").write_text("\n".join([title, *reports, ""]), "utf-8")
    write_json(out / "summary.json", summary)
    return summary


def _findings_of_runs(evaluation: Evaluation, chooser: Evaluation | None) -> Parts:
    """Scores and thresholds; without a ``chooser`` the measured films choose them too."""
    reported = score_films(evaluation, evaluation.films.targets)
    validation = score_films(chooser, chooser.films.targets) if chooser else reported
    chosen_on = f"the validation part ({len(validation.labels)} films)"
    if chooser is None:
        chosen_on += ", which is also what is measured here: the numbers at the threshold flatter"
    return Parts(reported, validation, choose_thresholds(validation.labels, validation.scores), chosen_on)


def _findings_of_bundle(evaluation: Evaluation) -> Parts:
    thresholds = tuple(finding.threshold for finding in evaluation.subject.manifest.findings)
    scores = score_films(evaluation, evaluation.films.targets)
    return Parts(scores, None, thresholds, "the validation part when the bundle was made")


def _alike(samples: dict[str, Samples], part: str) -> dict[str, Samples]:
    first = next(iter(samples.values()))
    if any(each.names != first.names for each in samples.values()):
        raise RunError("The runs were split differently and cannot be averaged: train them on the same data and split.")
    if not len(first):
        raise DataError(f"The {part} part has no films: choose another part, or change data.split and train again.")
    return samples


def _shared(samples: Mapping[str, Samples], part: str) -> dict[str, Samples]:
    """The films that every network may be judged on: networks of an ensemble may have split them differently."""
    names = set.intersection(*(set(each.names) for each in samples.values()))
    if not names:
        raise DataError(f"{part} has no film that is in it for {' and '.join(samples)}: choose another part, or {ALL}.")
    order = [name for name in next(iter(samples.values())).names if name in names]
    shared = {}
    for member, each in samples.items():
        places = {name: place for place, name in enumerate(each.names)}
        shared[member] = each if tuple(order) == tuple(each.names) else each.subset([places[name] for name in order])
    return shared


def _finish(evaluation: Evaluation, blocks: list[str], results: dict[str, Any]) -> dict[str, Any]:
    """Write ``report.md`` and ``summary.json``."""
    subject, films = evaluation.subject, evaluation.films
    patients = len(set(films.patients))
    description = subject.bundle.engine_description
    engine = f"{description['backend']} {description['backend_version']}, {description['precision']}"
    summary = {
        "subject": subject.title,
        "task": subject.task,
        "part": evaluation.part,
        "films": len(films),
        "patients": patients,
        "films_digest": films.digest,
        "networks": [member.name for member in subject.members],
        "engine": engine,
        "replicates": evaluation.replicates,
        "seed": evaluation.seed,
        "research_use": RESEARCH_USE,
        **results,
    }
    which = "all films" if evaluation.part == ALL else f"the {evaluation.part} part"
    alone = patients == len(films)
    head = [
        f"# Evaluation of {subject.title}",
        f"**{RESEARCH_USE}**",
        f"{len(films)} films of {patients} patients, {which}. Predictions by the worker's engine ({engine}), through "
        f"its own post-processing and flags. Intervals: {evaluation.replicates:,} bootstrap resamples of films, "
        f"percentiles{'.' if alone else '; films of one patient count as independent, so they are too narrow.'}",
        "`films.csv` names the films' files and stays with the data; this report names none.",
    ]
    (evaluation.out / "report.md").write_text("\n\n".join([*head, *blocks]) + "\n", "utf-8")
    write_json(evaluation.out / "summary.json", summary)
    return summary
