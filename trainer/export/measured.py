"""A bundle's numbers: operating point from the validation films, figures with intervals from the test films.

Everything is computed by the worker's engine from the bundle's own ONNX files, through
:mod:`trainer.evaluation`. What is returned holds no name of a film or a patient.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.bundle import FindingThreshold, Manifest, Member
from trainer.data.store import Samples
from trainer.errors import RunError
from trainer.evaluation.classification import choose_thresholds, score_films
from trainer.evaluation.classification_figures import CALIBRATION
from trainer.evaluation.classification_report import Parts, write_classification
from trainer.evaluation.evaluate import SEED
from trainer.evaluation.mask_members import compare_members
from trainer.evaluation.segmentation import measure_films
from trainer.evaluation.segmentation_report import write_segmentation
from trainer.evaluation.subjects import Evaluation, Progress, Subject, subject_of_bundle
from trainer.evaluation.tables import plain
from trainer.export.operating_point import best_temperature, stored_thresholds
from trainer.recipe import Recipe
from worker.bootstrap import REPLICATES
from worker.inference.engines.backends import open_backend
from worker.inference.engines.base import EngineBuildError, Precision
from worker.inference.parity import ParityReport, check_parity

#: What of a summary is of use without the films it was measured on.
_KEPT = (
    "figures",
    "grid",
    "regions",
    "failures",
    "age_groups",
    "refused",
    "no_chest",
    "findings",
    "members",
    "thresholds_chosen_on",
    "calibration",
)

#: The reliability curves in a bundle; they show no film.
RELIABILITY = "reliability.png"

#: The backend that every machine has.
_EVERYWHERE = "openvino"

Films = Mapping[str, Samples]


@dataclass(frozen=True)
class Findings:
    """The classifiers' operating point and figures; ``unsettled`` are findings whose threshold is a stand-in."""

    temperature: float
    thresholds: tuple[FindingThreshold, ...]
    unsettled: tuple[str, ...]
    metrics: dict[str, Any]


def measure_segmentation(
    directory: Path, recipes: Mapping[str, Recipe], test: Films, *, replicates: int = REPLICATES, progress: Progress
) -> dict[str, Any]:
    """The masks' figures on ``test`` (member name → the same films); an ensemble's networks are measured alone too."""
    with subject_of_bundle(directory, "segmentation", recipes) as subject, tempfile.TemporaryDirectory() as folder:
        evaluation = Evaluation(subject, test, "test", Path(folder), replicates, SEED, progress)
        scores = measure_films(evaluation)
        _, results = write_segmentation(evaluation, scores)
        _, alone = compare_members(evaluation, scores)
    return _metrics(evaluation, {**results, **alone})


def measure_findings(
    directory: Path,
    recipes: Mapping[str, Recipe],
    validation: Films,
    test: Films | None,
    *,
    replicates: int = REPLICATES,
    progress: Progress,
) -> Findings:
    """Temperature and thresholds from ``validation``, figures of the ensemble and its members from ``test``.

    ``validation`` and ``test`` are member name → the same films; without ``test`` there are no figures. With it the
    reliability curves are drawn into ``directory`` as :data:`RELIABILITY`.
    """
    with subject_of_bundle(directory, "classification", recipes) as subject, tempfile.TemporaryDirectory() as folder:
        evaluation = Evaluation(subject, validation, "validation", Path(folder), replicates, SEED, progress)
        labels = evaluation.films.targets
        unscaled = score_films(evaluation, labels)
        temperature = best_temperature(np.stack(list(unscaled.members.values())).astype(np.float32), unscaled.labels)
        settled = replace(evaluation, subject=_at(subject, temperature))
        chosen = score_films(settled, labels)
        thresholds = choose_thresholds(chosen.labels, chosen.scores)
        findings = tuple(map(FindingThreshold, subject.findings, stored_thresholds(thresholds)))
        unsettled = tuple(name for name, each in zip(subject.findings, thresholds, strict=True) if math.isnan(each))
        if test is None:
            return Findings(temperature, findings, unsettled, {})
        on_test = replace(settled, samples=test, part="test")
        scores = score_films(on_test, on_test.films.targets)
        chosen_on = f"the validation part ({len(labels)} films)"
        _, results = write_classification(on_test, Parts(scores, chosen, thresholds, chosen_on))
        shutil.copyfile(on_test.out / CALIBRATION, directory / RELIABILITY)
    metrics = {**_metrics(on_test, results), "reference": reference_scores(subject.findings, scores.scores)}
    return Findings(temperature, findings, unsettled, metrics)


def reference_scores(findings: Sequence[str], scores: npt.NDArray[np.floating[Any]]) -> dict[str, list[int]]:
    """How many films had a probability in each tenth: what a site compares its own nights with (``carina drift``).

    Parameters
    ----------
    scores
        (films, findings): the ensemble's probabilities, 0-1.

    Returns
    -------
    Finding → ten counts: below 0.1, from 0.1 to below 0.2, ..., from 0.9 on.
    """
    # As the view score_drift counts: from the lower end on, the last with its upper one.
    edges = np.linspace(0, 1, 11)
    return {name: np.histogram(scores[:, place], edges)[0].tolist() for place, name in enumerate(findings)}


def check_engines(directory: Path, manifest: Manifest) -> None:
    """See that the exported networks say what the trained ones said on the parity films.

    Raises
    ------
    RunError
        One does not: no worker would take the bundle.
    """
    for member in manifest.members:
        report = parity_of(directory, manifest, member, member.onnx)
        if not report.passed:
            raise RunError(
                f"The exported network {member.name} does not say what the trained one says "
                f"({'; '.join(report.sentences)}): train it further, or report this."
            )


def parity_of(
    directory: Path, manifest: Manifest, member: Member, onnx: str, precision: Precision = Precision.FP32
) -> ParityReport:
    """The parity gate on one of a member's files, by the CPU's engine.

    Raises
    ------
    RunError
        The file does not compile.
    """
    try:
        engine = open_backend(_EVERYWHERE).compile(directory / onnx, precision)
    except EngineBuildError as error:
        raise RunError(f"The exported network {onnx} cannot be run: {error}") from error
    try:
        return check_parity(engine, member, manifest, directory)
    finally:
        engine.close()


def _at(subject: Subject, temperature: float) -> Subject:
    manifest = replace(subject.manifest, temperature=temperature)
    return replace(subject, bundle=replace(subject.bundle, manifest=manifest))


def _metrics(evaluation: Evaluation, results: Mapping[str, Any]) -> dict[str, Any]:
    films = evaluation.films
    about = {
        "part": evaluation.part,
        "films": len(films),
        "patients": len(set(films.patients)),
        "films_digest": films.digest,
        "replicates": evaluation.replicates,
    }
    kept: dict[str, Any] = plain({**about, **{key: results[key] for key in _KEPT if key in results}})
    return kept
