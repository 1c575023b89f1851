"""The report on shortcuts: ``report.md``, ``shortcuts.csv``, ``traits.csv``, ``summary.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schema.findings import title
from trainer.data.records import Dataset
from trainer.evaluation.patients import patient_aurocs, patient_means
from trainer.evaluation.probes import CALIPER, TRAITS, standardised_differences
from trainer.evaluation.shortcuts import ENSEMBLE, ShortcutScores, Sizes, measure_shortcuts
from trainer.evaluation.subjects import Progress
from trainer.evaluation.tables import (
    NOTHING,
    RESEARCH_USE,
    as_figure,
    markdown,
    with_interval,
    write_csv,
    write_json,
)
from worker.bootstrap import Bootstrap, Interval
from worker.metrics import auroc

FloatArray = npt.NDArray[np.float64]

#: Who tells the finding: key, heading.
_READERS: tuple[tuple[str, str], ...] = (
    ("traits_probe", "probe of size, borders and marks"),
    ("pixels_probe", "probe of 28 x 28 pixels"),
    ("ensemble", "ensemble"),
)
_LEAD = "ensemble_above_pixels"


@dataclass(frozen=True)
class _Subset:
    """AUROCs on some of the films of one finding."""

    films: npt.NDArray[np.int64]
    positive: int
    negative: int
    numbers: dict[str, Interval]


def write_shortcuts(
    directory: Path,
    dataset: Dataset,
    part: str,
    out: Path,
    *,
    cache: Path,
    sizes: Sizes | None,
    limit: int,
    replicates: int,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Look for shortcuts and write the report to ``out``.

    Arguments and errors as for :func:`trainer.evaluation.shortcuts.measure_shortcuts`. Returns what
    ``summary.json`` holds: ``figures``, and ``findings`` with everything.
    """
    out.mkdir(parents=True, exist_ok=True)
    scores = measure_shortcuts(directory, dataset, part, cache, sizes=sizes, limit=limit, seed=seed, progress=progress)
    everything = {
        finding: {
            "all": _subset(scores, k, np.arange(len(scores.targets)), replicates, seed),
            "matched": _subset(scores, k, scores.matched[finding], replicates, seed),
        }
        for k, finding in enumerate(scores.findings)
        if finding in scores.matched
    }
    cams = {
        finding: _cam(scores, k, replicates, seed)
        for k, finding in enumerate(scores.findings)
        if any(np.isfinite(inside[:, k]).any() for inside in scores.inside.values())
    }
    summary: dict[str, Any] = {
        "part": part,
        "films": len(scores.targets),
        "patients": len(set(scores.patients)),
        "fitted_on": scores.fitted_on,
        "replicates": replicates,
        "seed": seed,
        "research_use": RESEARCH_USE,
        "figures": _figures(everything, cams),
        "findings": {
            finding: {
                subset: {"positive": each.positive, "negative": each.negative}
                | {name: as_figure(interval) for name, interval in each.numbers.items()}
                for subset, each in subsets.items()
            }
            for finding, subsets in everything.items()
        },
        "cam_inside_lungs": {
            finding: {name: {**as_figure(interval), "films": films} for name, (interval, films) in networks.items()}
            for finding, networks in cams.items()
        },
        "files": ["shortcuts.csv", "traits.csv"],
    }
    traits = {finding: _traits(scores, k) for k, finding in enumerate(scores.findings) if finding in scores.matched}
    blocks = [*_head(scores, part, sizes, replicates), *_probes(everything), *_balance(traits), *_cams(scores, cams)]
    (out / "report.md").write_text("\n\n".join(blocks) + "\n", "utf-8")
    write_csv(
        out / "shortcuts.csv",
        ["finding", "films", "positive", "negative", "number", "value", "low", "high"],
        [
            [finding, subset, each.positive, each.negative, name, interval.value, interval.low, interval.high]
            for finding, subsets in everything.items()
            for subset, each in subsets.items()
            for name, interval in each.numbers.items()
        ],
    )
    write_csv(
        out / "traits.csv",
        ["finding", "trait", "auroc_alone", "difference", "difference_matched"],
        [[finding, *row] for finding, rows in traits.items() for row in rows],
    )
    write_json(out / "summary.json", summary)
    return summary


def _subset(scores: ShortcutScores, k: int, films: npt.NDArray[np.int64], replicates: int, seed: int) -> _Subset:
    labels = scores.targets[films, k]
    values = np.stack([getattr(scores, key)[films, k] for key, _ in _READERS], axis=1)
    patients = [scores.patients[film] for film in films]
    three = np.repeat(labels[:, None], len(_READERS), axis=1)
    areas = patient_aurocs(three, values, patients, replicates=replicates, seed=seed)
    numbers = dict(zip((key for key, _ in _READERS), areas.intervals(), strict=True))
    lead = areas.replicates[:, 2] - areas.replicates[:, 1]
    (numbers[_LEAD],) = Bootstrap(areas.values[2:] - areas.values[1:2], lead[:, None]).intervals()
    return _Subset(films, int((labels == 1).sum()), int((labels == 0).sum()), numbers)


def _cam(scores: ShortcutScores, k: int, replicates: int, seed: int) -> dict[str, tuple[Interval, int]]:
    """Network → mean share inside the lungs and films; ``"uniform"`` is a map that is the same everywhere."""
    inside = {name: shares[:, k] for name, shares in scores.inside.items()}
    measured = np.isfinite(inside[ENSEMBLE])
    columns = {**inside, "uniform": np.where(measured, scores.lungs, np.nan)}
    table = np.stack(list(columns.values()), axis=1)
    intervals = patient_means(table, scores.patients, replicates=replicates, seed=seed).intervals()
    counts = np.isfinite(table).sum(axis=0).tolist()
    return dict(zip(columns, zip(intervals, counts, strict=True), strict=True))


def _traits(scores: ShortcutScores, k: int) -> list[list[object]]:
    """Each trait: AUROC by itself, and how far the classes are apart on all films and on the matched ones."""
    labels, matched = scores.targets[:, k], scores.matched[scores.findings[k]]
    known = ~np.isnan(labels)
    before = standardised_differences(scores.traits[known], labels[known])
    after = standardised_differences(scores.traits[matched], labels[matched])
    return [
        [name, auroc(labels[known] == 1, scores.traits[known, t]), before[t], after[t]] for t, name in enumerate(TRAITS)
    ]


def _figures(
    everything: dict[str, dict[str, _Subset]], cams: dict[str, dict[str, tuple[Interval, int]]]
) -> dict[str, Any]:
    figures = {
        f"{finding}_{subset}_{name}": as_figure(interval)
        for finding, subsets in everything.items()
        for subset, each in subsets.items()
        for name, interval in each.numbers.items()
    }
    for finding, networks in cams.items():
        for name in (ENSEMBLE, "uniform"):
            figures[f"{finding}_cam_{name}"] = as_figure(networks[name][0])
    return figures


def _head(scores: ShortcutScores, part: str, sizes: Sizes | None, replicates: int) -> list[str]:
    size = "the original's, from the data set's table" if sizes is not None else "the file's"
    return [
        "# Shortcuts",
        f"**{RESEARCH_USE}**",
        f"{len(scores.targets)} films of {len(set(scores.patients))} patients, {part}; the probes were fitted on "
        f"{scores.fitted_on} films of the train part. Height and width are {size}. Intervals: {replicates:,} bootstrap "
        "resamples of patients, percentiles. No film is named here.",
    ]


def _probes(everything: dict[str, dict[str, _Subset]]) -> list[str]:
    blocks = [
        "## Probes",
        "AUROC. The first probe never sees a lung, the second only a blur of grey: what they reach needs no reading of "
        "the film. In the matched subset every film with the finding has a partner without it of nearly the same "
        "size, borders and marks: the "
        f"nearest free one by the first probe's log odds within {CALIPER:g} of their standard deviation.",
    ]
    for finding, subsets in everything.items():
        rows: list[list[object]] = []
        for subset, each in subsets.items():
            numbers = [with_interval(each.numbers[key]) for key, _ in _READERS]
            lead = each.numbers[_LEAD]
            shown = NOTHING if np.isnan(lead.value) else f"{lead.value:+.3f} ({lead.low:+.3f} to {lead.high:+.3f})"
            rows.append([subset, f"{each.positive} / {each.negative}", *numbers, shown])
        headers = ["films", "with / without", *(words for _, words in _READERS), "ensemble above 28 x 28 pixels"]
        blocks += [f"### {title(finding)}", markdown(headers, rows)]
    return blocks if everything else [*blocks, "No finding has both classes in the train part: nothing was fitted."]


def _balance(traits: dict[str, list[list[object]]]) -> list[str]:
    blocks = [
        "## Size, borders and marks one by one",
        "AUROC of each by itself (0.5 says nothing; near 0 says as much as near 1), and the difference of the means "
        "of films with and without the finding in standard deviations, on all films and on the matched ones.",
    ]
    for finding, rows in traits.items():
        headers = ["trait", "AUROC", "difference, all films", "difference, matched"]
        blocks += [f"### {title(finding)}", markdown(headers, rows)]
    return blocks if traits else []


def _cams(scores: ShortcutScores, cams: dict[str, dict[str, tuple[Interval, int]]]) -> list[str]:
    if not cams:
        return []
    words = {ENSEMBLE: "ensemble", "uniform": "*a map that is the same everywhere*"}
    rows = [
        [title(finding), words.get(name, name), films, with_interval(interval)]
        for finding, networks in cams.items()
        for name, (interval, films) in networks.items()
    ]
    silent = [
        f"{title(finding)}: {count}"
        for k, finding in enumerate(scores.findings)
        if finding in cams and (count := _silent(scores, k))
    ]
    blocks = [
        "## Where the evidence lies",
        "Share of the class activation map's positive mass inside the lungs, mean over the films that show the finding "
        "and whose lungs are known. Maps are the networks' own, before any scaling; lungs are the truth's.",
        markdown(["finding", "network", "films", "inside the lungs"], rows),
    ]
    return [*blocks, f"Films whose map has no positive part, left out: {', '.join(silent)}."] if silent else blocks


def _silent(scores: ShortcutScores, k: int) -> int:
    """Films with the finding and known lungs on which the ensemble's map says nothing for it."""
    return int(
        ((scores.targets[:, k] == 1) & np.isfinite(scores.lungs) & np.isnan(scores.inside[ENSEMBLE][:, k])).sum()
    )
