"""The stress table for people, spreadsheets and programs: ``report.md``, ``stress.csv``, ``films.csv``, figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.findings import title
from trainer.data.records import Dataset
from trainer.evaluation.patients import patient_aurocs, patient_means
from trainer.evaluation.perturbations import PERTURBATIONS
from trainer.evaluation.stress import BOTH_LUNGS, StressScores, measure_stress, night, title_of
from trainer.evaluation.stress_figures import draw_worst
from trainer.evaluation.subjects import Progress
from trainer.evaluation.tables import (
    NOTHING,
    RESEARCH_USE,
    as_figure,
    markdown,
    number,
    with_interval,
    write_csv,
    write_json,
)
from worker.bootstrap import Bootstrap, Interval

FloatArray = npt.NDArray[np.float64]

WORST_MASKS = "worst-masks.png"
WORST_FINDINGS = "worst-findings.png"

#: Counted over films: key, heading.
_COUNTED: tuple[tuple[str, str], ...] = (
    ("flagged", "flagged"),
    ("flagged_result", "flagged for the result, not only the file"),
    ("refused", "refused as no frontal chest"),
    ("unread", "failed"),
)


@dataclass(frozen=True)
class _Row:
    """One perturbation's numbers: name → interval, and the number of films behind it."""

    numbers: dict[str, Interval]
    films: dict[str, int]


def write_stress(
    directory: Path,
    dataset: Dataset,
    part: str,
    out: Path,
    *,
    limit: int,
    replicates: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measure a bundle by the stress table and write the report to ``out``.

    Arguments and errors as for :func:`trainer.evaluation.stress.measure_stress`. Returns what ``summary.json``
    holds: ``figures`` (the worst of every column), ``rows`` (perturbation → number → value and interval).
    """
    out.mkdir(parents=True, exist_ok=True)
    with night(directory) as at_night:
        scores = measure_stress(at_night, dataset, part, PERTURBATIONS, limit=limit, seed=seed, progress=progress)
        pictures = []
        worst = worst_films(scores)
        for kind, name in ((BOTH_LUNGS, WORST_MASKS), ("findings", WORST_FINDINGS)):
            if worst[kind]:
                pictures.append(draw_worst(at_night, scores, worst[kind], kind == BOTH_LUNGS, out / name))
        key = at_night.bundle.manifest.key
    rows = [_numbers(scores, p, replicates, seed) for p in range(len(scores.rows))]
    films = scores.films
    summary: dict[str, Any] = {
        "bundle": key,
        "part": part,
        "films": len(films.records),
        "patients": len(set(films.patients)),
        "films_with_masks": int(films.with_masks.sum()),
        "films_with_findings": int((~np.isnan(films.targets)).any(axis=1).sum()) if films.findings else 0,
        "regions": list(films.regions),
        "replicates": replicates,
        "seed": seed,
        "research_use": RESEARCH_USE,
        "figures": _worst_figures(scores, rows),
        "rows": {
            row.name: {
                "title": row.title,
                "imitates": row.imitates,
                **{name: as_figure(interval) for name, interval in numbers.numbers.items()},
            }
            for row, numbers in zip(scores.rows, rows, strict=True)
        },
        "files": ["stress.csv", "films.csv", *pictures],
    }
    blocks = [*_head(summary), *_masks(scores, rows), *_findings(scores, rows), *_counts(scores, rows)]
    blocks += [*_imitated(scores), *_pictures(pictures)]
    (out / "report.md").write_text("\n\n".join(blocks) + "\n", "utf-8")
    _write_tables(scores, rows, out)
    write_json(out / "summary.json", summary)
    return summary


def worst_films(scores: StressScores) -> dict[str, dict[int, int]]:
    """``"lungs"`` and ``"findings"`` → row → the film that lost most: Dice of the lungs, or probability of its label.

    A probability's loss is the move away from the label, over the findings of the film.
    """
    worst: dict[str, dict[int, int]] = {BOTH_LUNGS: {}, "findings": {}}
    labels = scores.films.targets
    for p in range(1, len(scores.rows)):
        if BOTH_LUNGS in scores.dice:
            _keep_worst(worst[BOTH_LUNGS], p, scores.dice[BOTH_LUNGS][0] - scores.dice[BOTH_LUNGS][p])
        if scores.films.known:
            moved = scores.probabilities[p] - scores.probabilities[0]
            away = np.where(labels == 1, -moved, moved)[:, list(scores.films.known)]
            _keep_worst(worst["findings"], p, np.where(np.isnan(away), -np.inf, away).max(axis=1))
    return worst


def _keep_worst(kept: dict[int, int], row: int, loss: FloatArray) -> None:
    usable = np.where(np.isfinite(loss), loss, -np.inf)
    if usable.size and np.isfinite(usable).any():
        kept[row] = int(usable.argmax())


def _numbers(scores: StressScores, p: int, replicates: int, seed: int) -> _Row:
    """Everything told of row ``p``, over one and the same draws of patients."""
    films = scores.films
    columns: dict[str, FloatArray] = {}
    for name, dice in scores.dice.items():
        columns |= {f"dice.{name}": dice[p], f"dice_change.{name}": dice[p] - dice[0]}
    for k in films.known:
        moved = np.where(np.isnan(films.targets[:, k]), np.nan, scores.probabilities[p, :, k])
        moved = moved - scores.probabilities[0, :, k]
        columns |= {f"change.{films.findings[k]}": moved, f"size_of_change.{films.findings[k]}": np.abs(moved)}
    columns |= {key: getattr(scores, key)[p] for key, _ in _COUNTED}
    columns["swapped"] = scores.swapped[p]
    table = np.stack(list(columns.values()), axis=1)
    intervals = patient_means(table, films.patients, replicates=replicates, seed=seed).intervals()
    numbers = dict(zip(columns, intervals, strict=True))
    counts = {name: int((~np.isnan(column)).sum()) for name, column in columns.items()}
    for k in films.known:
        labels, now, before = films.targets[:, k], scores.probabilities[p, :, k], scores.probabilities[0, :, k]
        # A film that failed has no probability in this row and is left out of the comparison too.
        labels = np.where(np.isnan(now) | np.isnan(before), np.nan, labels)
        values = np.stack([np.nan_to_num(now), np.nan_to_num(before)], axis=1)
        areas = patient_aurocs(
            np.stack([labels, labels], axis=1), values, films.patients, replicates=replicates, seed=seed
        )
        name = films.findings[k]
        numbers[f"auroc.{name}"] = areas.intervals()[0]
        counts[f"auroc.{name}"] = int((~np.isnan(labels)).sum())
        change = Bootstrap(areas.values[:1] - areas.values[1:], areas.replicates[:, :1] - areas.replicates[:, 1:])
        (numbers[f"auroc_change.{name}"],) = change.intervals()
        counts[f"auroc_change.{name}"] = counts[f"auroc.{name}"]
    return _Row(numbers, counts)


def _worst_figures(scores: StressScores, rows: list[_Row]) -> dict[str, Any]:
    """The lowest lung Dice and AUROC among the perturbed rows, with the row they belong to."""
    wanted = {"worst_lung_dice": f"dice.{BOTH_LUNGS}"} if BOTH_LUNGS in scores.dice else {}
    wanted |= {
        f"worst_auroc_{scores.films.findings[k]}": f"auroc.{scores.films.findings[k]}" for k in scores.films.known
    }
    figures = {}
    for name, key in wanted.items():
        values = [row.numbers[key].value for row in rows[1:]]
        if not values or np.isnan(values).all():
            continue
        p = 1 + int(np.nanargmin(values))
        figures[name] = {**as_figure(rows[p].numbers[key]), "row": scores.rows[p].title}
    return figures


def _head(summary: dict[str, Any]) -> list[str]:
    return [
        f"# Stress table of {summary['bundle']}",
        f"**{RESEARCH_USE}**",
        f"{summary['films']} films of {summary['patients']} patients, {summary['part']}: "
        f"{summary['films_with_masks']} to measure masks on, {summary['films_with_findings']} to measure findings on. "
        "Each film was changed at its own size, stored as a DX object, and went through the worker's own reader, "
        "networks, post-processing and flags. Changes are against the same films stored unchanged. Intervals: "
        f"{summary['replicates']:,} bootstrap resamples of patients, percentiles.",
        "`films.csv` and the pictures stay with the data; the words and numbers of this report name no film.",
    ]


def _masks(scores: StressScores, rows: list[_Row]) -> list[str]:
    names = list(scores.dice)
    if not names:
        return []
    first = names[0]
    headers = ["", f"Dice, {title_of(first).lower()}"]
    headers += [f"change, {title_of(name).lower()}" for name in names]
    table: list[list[object]] = []
    for row, numbers in zip(scores.rows, rows, strict=True):
        changes = [_change(numbers.numbers[f"dice_change.{name}"]) for name in names]
        own = [""] * len(names) if row is scores.rows[0] else changes
        table.append([row.title, with_interval(numbers.numbers[f"dice.{first}"]), *own])
    blocks = [
        "## Masks",
        "Dice after post-processing against the truth that was moved with the film, mean over films. Regions whose "
        "truth was derived by a rule are not scored.",
        markdown(headers, table),
    ]
    for row, numbers in zip(scores.rows, rows, strict=True):
        if not row.sides_told and not np.isnan(numbers.numbers["swapped"].value):
            blocks.append(
                f"*{row.title}*: nothing in film or header tells that it is mirrored. Sides are named by their place, "
                f"so left and right are swapped on {100 * numbers.numbers['swapped'].value:.0f} % of these films; only "
                "the union of the lungs is compared, and a side marker on the film is the only warning."
            )
    return blocks


def _findings(scores: StressScores, rows: list[_Row]) -> list[str]:
    blocks = []
    for k in scores.films.known:
        name = scores.films.findings[k]
        table: list[list[object]] = []
        for row, numbers in zip(scores.rows, rows, strict=True):
            own = [_change(numbers.numbers[f"{what}.{name}"]) for what in ("auroc_change", "change")]
            own.append(with_interval(numbers.numbers[f"size_of_change.{name}"]))
            told = [""] * len(own) if row is scores.rows[0] else own
            table.append([row.title, with_interval(numbers.numbers[f"auroc.{name}"]), *told])
        blocks += [
            f"## {title(name)}",
            "AUROC of the ensemble, and how the probability moved: its mean change and the mean of its size.",
            markdown(["", "AUROC", "change of AUROC", "mean change of probability", "mean size of the change"], table),
        ]
    return blocks


def _change(interval: Interval) -> str:
    """``-0.014 (-0.031 to -0.004)``; without films a dash."""
    if np.isnan(interval.value):
        return NOTHING
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def _counts(scores: StressScores, rows: list[_Row]) -> list[str]:
    films = rows[0].films["flagged"]
    return [
        "## Flags",
        f"Share of {films} films. A flag of the file says what was odd about it (a border left out, a mirrored "
        "picture turned back); the others are about the result.",
        markdown(
            ["", *(heading for _, heading in _COUNTED)],
            [
                [row.title, *(f"{number(100 * numbers.numbers[key].value, 1)} %" for key, _ in _COUNTED)]
                for row, numbers in zip(scores.rows, rows, strict=True)
            ],
        ),
    ]


def _imitated(scores: StressScores) -> list[str]:
    return ["## What each row imitates", markdown(["", "imitates"], [[row.title, row.imitates] for row in scores.rows])]


def _pictures(pictures: list[str]) -> list[str]:
    words = {
        WORST_MASKS: "The film of each row whose lungs lost most Dice: truth green, result magenta",
        WORST_FINDINGS: "The film of each row whose probabilities moved furthest from its labels",
    }
    return [f"![{words[name]}]({name})\n\n{words[name]}." for name in pictures]


def _write_tables(scores: StressScores, rows: list[_Row], out: Path) -> None:
    write_csv(
        out / "stress.csv",
        ["perturbation", "number", "value", "low", "high", "films"],
        [
            [row.name, name, interval.value, interval.low, interval.high, numbers.films[name]]
            for row, numbers in zip(scores.rows, rows, strict=True)
            for name, interval in numbers.numbers.items()
        ],
    )
    films = scores.films
    counted = [key for key, _ in _COUNTED]
    write_csv(
        out / "films.csv",
        ["film", "name", "perturbation", *(f"dice_{name}" for name in scores.dice), *films.findings, *counted],
        [
            [
                n + 1,
                record.name,
                row.name,
                *(dice[p, n] for dice in scores.dice.values()),
                *scores.probabilities[p, n],
                *(getattr(scores, key)[p, n] for key in counted),
            ]
            for n, record in enumerate(films.records)
            for p, row in enumerate(scores.rows)
        ],
    )
