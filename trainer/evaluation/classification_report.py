"""The report on findings: ``report.md``, ``findings.csv``, ``films.csv``, ``members.csv``, figures, summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schema.findings import title
from trainer.data.store import Samples
from trainer.evaluation.classification import Calibration, ClassificationScores, Performance, calibration, performance
from trainer.evaluation.classification_figures import (
    CALIBRATION,
    CAM,
    ROC,
    draw_calibration,
    draw_heatmaps,
    draw_roc,
    films_to_show,
)
from trainer.evaluation.paper_figures import (
    CLASSIFIER_TABLE_3,
    CLASSIFIER_TABLE_5,
    CLASSIFIER_TABLE_5_MEAN,
    NOT_COMPARABLE,
    PAPER_TITLES,
)
from trainer.evaluation.subjects import Evaluation, Subject
from trainer.evaluation.tables import NOTHING, as_figure, markdown, with_interval, write_csv
from worker.bootstrap import Bootstrap, aurocs

#: Table 5's columns: key, heading.
MEASURES: tuple[tuple[str, str], ...] = (
    ("auroc", "AUROC"),
    ("sensitivity", "sensitivity"),
    ("specificity", "specificity"),
    ("f1", "F1"),
)


@dataclass(frozen=True)
class Parts:
    """Scores of the films that are reported, and of the validation part where that was predicted too.

    ``chosen_on`` says in words which films the thresholds come from.
    """

    reported: ClassificationScores
    validation: ClassificationScores | None
    thresholds: tuple[float, ...]
    chosen_on: str


@dataclass(frozen=True)
class _Results:
    measured: Performance
    curves: dict[int, Calibration]
    #: Member → macro mean on validation (or None) and reported part, and the ensemble's lead there.
    members: dict[str, tuple[Bootstrap | None, Bootstrap]]
    validation: Bootstrap | None

    @property
    def bootstraps(self) -> dict[str, Bootstrap]:
        return {"auroc": self.measured.auroc, **self.measured.operation}


def write_classification(evaluation: Evaluation, parts: Parts) -> tuple[list[str], dict[str, Any]]:
    """Write tables and figures.

    Returns
    -------
    The blocks of the report's Markdown, and the summary: ``figures`` (name → value and interval),
    ``findings``, ``members``, ``calibration``.
    """
    subject, out = evaluation.subject, evaluation.out
    results = _measure(parts, evaluation.replicates, evaluation.seed)
    scores = parts.reported
    _write_tables(evaluation.films, scores, results, out)
    pictures = [
        draw_roc(scores, results.measured, out / ROC),
        draw_calibration(scores, results.curves, out / CALIBRATION),
    ]
    chosen = films_to_show(scores, results.measured.auroc.values.tolist())
    if chosen:
        pictures.append(draw_heatmaps(evaluation, scores, chosen, out / CAM))
    blocks = [
        *_findings(subject, parts, results),
        *_members(subject, results),
        *_calibration(scores, results),
        *_figures(chosen),
    ]
    files = ["findings.csv", "films.csv", *(["members.csv"] if len(scores.members) > 1 else []), *pictures]
    return blocks, {**_summary(parts, results), "files": files}


def _measure(parts: Parts, replicates: int, seed: int) -> _Results:
    scores, validation = parts.reported, parts.validation

    def areas(labels: Any, values: Any) -> Bootstrap:
        return aurocs(labels, values, replicates=replicates, seed=seed)

    members = {
        name: (areas(validation.labels, validation.members[name]) if validation else None, areas(scores.labels, values))
        for name, values in scores.members.items()
    }
    return _Results(
        performance(scores.labels, scores.scores, parts.thresholds, replicates=replicates, seed=seed),
        {k: calibration(scores.labels[:, k], scores.scores[:, k]) for k in scores.known},
        members,
        areas(validation.labels, validation.scores) if validation else None,
    )


def _write_tables(films: Samples, scores: ClassificationScores, results: _Results, out: Path) -> None:
    keys = [key for key, _ in MEASURES]
    intervals = {key: bootstrap.intervals() for key, bootstrap in results.bootstraps.items()}
    headers = ["finding", "positive", "negative", "not_known", "threshold"]
    headers += [f"{key}{end}" for key in keys for end in ("", "_low", "_high", "_replicates")]
    headers.append("calibration_error")
    rows: list[list[object]] = []
    for k, finding in enumerate(scores.findings):
        truth = scores.labels[:, k]
        counts = [int((truth == 1).sum()), int((truth == 0).sum()), int(np.isnan(truth).sum())]
        numbers = [each for key in keys for each in vars(intervals[key][k]).values()]
        error = results.curves[k].error if k in results.curves else None
        rows.append([finding, *counts, results.measured.thresholds[k], *numbers, error])
    macro = [each for key in keys for each in vars(results.bootstraps[key].macro()).values()]
    rows.append(["mean", None, None, None, None, *macro, _mean_error(results)])
    write_csv(out / "findings.csv", headers, rows)
    if len(scores.members) > 1:
        write_csv(
            out / "members.csv",
            ["member", "finding", "auroc", "auroc_low", "auroc_high"],
            [
                [name, finding, interval.value, interval.low, interval.high]
                for name, (_, reported) in results.members.items()
                for finding, interval in zip(
                    [*scores.findings, "mean"], [*reported.intervals(), reported.macro()], strict=True
                )
            ],
        )
    headers = ["film", "name", *(f"{finding}{end}" for finding in scores.findings for end in ("", "_label"))]
    write_csv(
        out / "films.csv",
        headers,
        [
            [row + 1, films.names[row], *np.stack([scores.scores[row], scores.labels[row]], axis=1).ravel()]
            for row in range(len(scores.scores))
        ],
    )


def _summary(parts: Parts, results: _Results) -> dict[str, Any]:
    scores = parts.reported
    figures = {f"mean_{key}": as_figure(bootstrap.macro()) for key, bootstrap in results.bootstraps.items()}
    if results.validation is not None:
        figures["mean_auroc_validation"] = as_figure(results.validation.macro())
    figures["mean_calibration_error"] = {"value": _mean_error(results)}
    intervals = {key: bootstrap.intervals() for key, bootstrap in results.bootstraps.items()}
    return {
        "figures": figures,
        "thresholds_chosen_on": parts.chosen_on,
        "findings": {
            scores.findings[k]: {
                "positive": int((scores.labels[:, k] == 1).sum()),
                "negative": int((scores.labels[:, k] == 0).sum()),
                "threshold": results.measured.thresholds[k],
                **{key: as_figure(intervals[key][k]) for key, _ in MEASURES},
                "calibration_error": results.curves[k].error,
            }
            for k in scores.known
        },
        "members": {
            name: {
                "mean_auroc": as_figure(reported.macro()),
                **({"mean_auroc_validation": as_figure(validation.macro())} if validation else {}),
                "ensemble_above": as_figure(results.measured.auroc.macro_above(reported)),
            }
            for name, (validation, reported) in results.members.items()
        },
        "calibration": {
            scores.findings[k]: {
                "probability": curve.probability.tolist(),
                "observed": curve.observed.tolist(),
                "films": curve.films.tolist(),
            }
            for k, curve in results.curves.items()
        },
    }


def _findings(subject: Subject, parts: Parts, results: _Results) -> list[str]:
    scores = parts.reported
    paper = subject.paper == "pediatric_classifier"
    headers = ["finding", "positive films", "threshold", *(words for _, words in MEASURES)]
    headers += [f"*paper*: {words}" for _, words in MEASURES] if paper else []
    intervals = {key: bootstrap.intervals() for key, bootstrap in results.bootstraps.items()}
    rows: list[list[object]] = []
    for k in scores.known:
        finding, truth = scores.findings[k], scores.labels[:, k]
        known = int((~np.isnan(truth)).sum())
        row = [title(finding), f"{int((truth == 1).sum())} of {known}", results.measured.thresholds[k]]
        row += [with_interval(intervals[key][k]) for key, _ in MEASURES]
        rows.append([*row, *(CLASSIFIER_TABLE_5.get(finding, (NOTHING,) * 4) if paper else ())])
    mean = [with_interval(results.bootstraps[key].macro()) for key, _ in MEASURES]
    rows.append(["**Mean**", "", "", *mean, *(CLASSIFIER_TABLE_5_MEAN if paper else ())])
    blocks = [
        "## Findings",
        f"Thresholds maximise Youden's index on {parts.chosen_on}. The mean is over the findings of one and the same "
        "resample of films; a resample that lacks a class of a finding is left out of that finding and of the mean.",
        markdown(headers, rows),
    ]
    silent = [title(finding) for k, finding in enumerate(scores.findings) if k not in scores.known]
    if silent:
        blocks.append(f"No film says anything about: {', '.join(silent)}.")
    if paper:
        blocks.append(f"Table 5 of {PAPER_TITLES[subject.paper]} (its ensemble on 777 films). {NOT_COMPARABLE}")
    return blocks


def _members(subject: Subject, results: _Results) -> list[str]:
    paper = subject.paper == "pediatric_classifier"
    both = {**results.members, "ensemble": (results.validation, results.measured.auroc)}
    several = len(results.members) > 1
    headers = ["network", "validation", "these films", *(["the ensemble is better by"] if several else [])]
    headers += ["*paper*: validation", "*paper*: test"] if paper else []
    rows: list[list[object]] = []
    for name, (validation, reported) in (both if several else results.members).items():
        row: list[object] = [name, with_interval(validation.macro()) if validation else NOTHING]
        row.append(with_interval(reported.macro()))
        if several:
            lead = results.measured.auroc.macro_above(reported)
            row.append(NOTHING if name == "ensemble" else with_interval(lead))
        network = subject.recipes[name].network.name if name in subject.recipes else name
        printed = CLASSIFIER_TABLE_3.get(network, {})
        theirs = [printed.get(key, NOTHING) for key in ("mean_auroc_validation", "mean_auroc")]
        rows.append([*row, *(theirs if paper else ())])
    blocks = ["### Networks", "Macro mean AUROC; differences are taken resample by resample.", markdown(headers, rows)]
    if paper:
        blocks.append(f"Table 3 of {PAPER_TITLES[subject.paper]}. {NOT_COMPARABLE}")
    return blocks


def _calibration(scores: ClassificationScores, results: _Results) -> list[str]:
    rows: list[list[object]] = [[title(scores.findings[k]), curve.error] for k, curve in results.curves.items()]
    rows.append(["**Mean**", _mean_error(results)])
    return [
        "### Calibration",
        "Expected calibration error in ten bins of equally many films: 0 when of the films given 30 % three in ten are "
        "positive.",
        markdown(["finding", "expected calibration error"], rows),
    ]


def _figures(chosen: list[tuple[int, int]]) -> list[str]:
    blocks = [f"![ROC curves, operating points black]({ROC})", f"![Reliability curves]({CALIBRATION})"]
    if chosen:
        films = ", ".join(f"{chr(ord('A') + place)} is {row + 1}" for place, (row, _) in enumerate(chosen))
        blocks.append(f"![Films and their class activation maps]({CAM})")
        blocks.append(f"Positive films with the highest probability, by their number in `films.csv`: {films}.")
    return blocks


def _mean_error(results: _Results) -> float:
    return float(np.mean([curve.error for curve in results.curves.values()])) if results.curves else float("nan")
