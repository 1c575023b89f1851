"""The report on masks: ``report.md``, ``regions.csv``, ``films.csv``, ``failures.csv``, figures, summary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from schema.regions import Region, is_lung
from trainer.data.store import Samples
from trainer.evaluation.outline_figures import OUTLINES, PROBABILITIES, draw_outlines, draw_probabilities
from trainer.evaluation.paper_figures import (
    HOLSTE_ACCURACY,
    HOLSTE_FILMS,
    HOLSTE_TABLE_2,
    HOLSTE_TABLE_3,
    HOLSTE_TABLE_4,
    NOT_COMPARABLE,
    PAPER_TITLES,
    holste_label,
)
from trainer.evaluation.segmentation import FAILURES, SOURCES, SegmentationScores, row_means
from trainer.evaluation.segmentation_figures import COMPARISON, SPREAD, draw_comparison, draw_spread, ranked_films
from trainer.evaluation.subjects import Evaluation, Subject
from trainer.evaluation.tables import (
    NOTHING,
    as_figure,
    markdown,
    number,
    with_interval,
    write_csv,
)
from worker.bootstrap import Interval, means

#: Numbers per region: key, column of :class:`trainer.evaluation.segmentation.Overlaps`.
_PER_REGION = ("dice", "jaccard", "surface", "surface_95", "dice_cleaned")


def write_segmentation(evaluation: Evaluation, scores: SegmentationScores) -> tuple[list[str], dict[str, Any]]:
    """Write tables and figures.

    Returns
    -------
    The blocks of the report's Markdown, and the summary: ``figures`` (name → value and interval),
    ``regions``, ``failures``, ``age_groups``, ``no_chest``.
    """
    out = evaluation.out
    intervals = _intervals(scores, evaluation.replicates, evaluation.seed)
    failures = {source: {key: int(fails.sum()) for key, fails in scores.failures[source].items()} for source in SOURCES}
    _write_tables(evaluation.films, scores, intervals, failures, out)
    pictures = [draw_spread(scores, out / SPREAD)]
    chosen = ranked_films(scores)
    if chosen:
        pictures.append(draw_comparison(evaluation, scores, chosen, out / COMPARISON))
        pictures.append(draw_outlines(evaluation, scores, chosen, out / OUTLINES))
    if chosen and scores.threshold is not None:
        pictures.append(draw_probabilities(evaluation, scores, chosen[len(chosen) // 2][1], out / PROBABILITIES))
    summary = _summary(scores, intervals, failures)
    blocks = [
        *_overall(scores, intervals),
        *_regions(scores, intervals),
        *_age_groups(scores, intervals),
        *_failures(scores, failures),
        *_figures(scores, chosen),
        *_paper(evaluation.subject, scores, intervals, failures),
    ]
    return blocks, {**summary, "files": ["regions.csv", "films.csv", "failures.csv", *pictures]}


def _intervals(scores: SegmentationScores, replicates: int, seed: int) -> dict[str, Interval]:
    """Every mean over films with its interval, from one and the same draws."""
    overlaps, scored = scores.overlaps, scores.scored
    foreground = np.array([region.name != Region.BACKGROUND for region in scores.regions])
    lungs = np.array([is_lung(region.name) for region in scores.regions]) & scored
    columns = {
        "accuracy": scores.accuracy,
        "mean_dice": scores.mean_dice,
        "mean_jaccard": row_means(overlaps.jaccard[:, scored]),
        "foreground_dice": row_means(overlaps.dice[:, scored & foreground]),
        "foreground_jaccard": row_means(overlaps.jaccard[:, scored & foreground]),
        "mean_dice_cleaned": row_means(overlaps.dice_cleaned[:, scored]),
        "lung_dice": row_means(overlaps.dice[:, lungs]),
        "lungs_together": scores.lungs,
        "carina_distance": scores.carina,
    }
    for key, _, members in scores.age_groups():
        columns[f"mean_dice_{key}"] = np.where(members, scores.mean_dice, np.nan)
    for name in _PER_REGION:
        values = getattr(overlaps, name)
        columns |= {f"{region.name}.{name}": values[:, place] for place, region in enumerate(scores.regions)}
    results = means(np.stack(list(columns.values()), axis=1), replicates=replicates, seed=seed).intervals()
    return dict(zip(columns, results, strict=True))


def _write_tables(
    films: Samples,
    scores: SegmentationScores,
    intervals: Mapping[str, Interval],
    failures: Mapping[str, Mapping[str, int]],
    out: Path,
) -> None:
    headers = ["region", "truth", "scored", "films"]
    headers += [f"{name}{end}" for name in _PER_REGION for end in ("", "_low", "_high")]
    headers += [f"{what}_{source}" for source in SOURCES for what in ("missing", "broken")]
    rows = []
    for place, region in enumerate(scores.regions):
        numbers = [intervals[f"{region.name}.{name}"] for name in _PER_REGION]
        counts = [int(table[source][:, place].sum()) for source in SOURCES for table in (scores.missing, scores.broken)]
        flat = [each for interval in numbers for each in (interval.value, interval.low, interval.high)]
        films_with = int((~np.isnan(scores.overlaps.dice[:, place])).sum())
        rows.append([region.name, region.origin, bool(scores.scored[place]), films_with, *flat, *counts])
    write_csv(out / "regions.csv", headers, rows)
    write_csv(
        out / "failures.csv",
        ["failure", *SOURCES, "films"],
        [
            [key, *(failures[source][key] for source in SOURCES), len(scores.rows)]
            for key, _ in FAILURES
            if key in failures["raw"]
        ],
    )
    _write_films(films, scores, out / "films.csv")


def _write_films(films: Samples, scores: SegmentationScores, path: Path) -> None:
    names = [region.name for region in scores.regions]
    kinds = [key for key, _ in FAILURES if key in scores.failures["raw"]]
    headers = [
        "film",
        "name",
        "age_days",
        "accuracy",
        "mean_dice",
        "lungs_together",
        *(f"dice_{name}" for name in names),
        *(f"jaccard_{name}" for name in names),
    ]
    headers += [*(f"surface_{name}" for name in names), "carina_distance", "repaired_pixels", "refused"]
    headers += [f"{kind}_{source}" for source in SOURCES for kind in kinds]
    rows = [
        [
            row + 1,
            films.names[row],
            float(films.ages[row]),
            scores.accuracy[place],
            scores.mean_dice[place],
            scores.lungs[place],
            *scores.overlaps.dice[place],
            *scores.overlaps.jaccard[place],
            *scores.overlaps.surface[place],
            scores.carina[place],
            int(scores.repaired[place]),
            scores.verdicts[place],
            *(bool(scores.failures[source][kind][place]) for source in SOURCES for kind in kinds),
        ]
        for place, row in enumerate(scores.rows.tolist())
    ]
    write_csv(path, headers, rows)


def _summary(
    scores: SegmentationScores, intervals: Mapping[str, Interval], failures: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    overall = {name: as_figure(interval) for name, interval in intervals.items() if "." not in name}
    counted = {key: {"value": count, "of": len(scores.rows)} for key, count in failures["cleaned"].items()}
    return {
        "figures": {**overall, **counted},
        "lungs_together_lowest_percent": _lowest_lungs(scores),
        "grid": list(scores.grid),
        "regions": {
            region.name: {
                "truth": region.origin,
                "scored": bool(scored),
                **{name: as_figure(intervals[f"{region.name}.{name}"]) for name in _PER_REGION},
            }
            for region, scored in zip(scores.regions, scores.scored, strict=True)
        },
        "failures": failures,
        "age_groups": {key: int(members.sum()) for key, _, members in scores.age_groups()},
        "refused": sum(bool(code) for code in scores.verdicts),
        "no_chest": {"films": len(scores.no_chest), "refused": sum(bool(code) for code in scores.no_chest)},
    }


def _lowest_lungs(scores: SegmentationScores) -> float:
    """The 1st percentile of the Dice of both lungs as one; NaN where it was not measured."""
    known = scores.lungs[~np.isnan(scores.lungs)]
    return float(np.percentile(known, 1, method="lower")) if known.size else float("nan")


def _overall(scores: SegmentationScores, intervals: Mapping[str, Interval]) -> list[str]:
    titles = {
        "accuracy": "pixel accuracy",
        "mean_dice": "mean Dice over all scored regions, background included where it is measured",
        "mean_jaccard": "mean Jaccard, likewise",
        "foreground_dice": "mean Dice without background",
        "foreground_jaccard": "mean Jaccard without background",
        "mean_dice_cleaned": "mean Dice after post-processing",
        "lung_dice": "mean Dice of the two lungs",
        "lungs_together": "mean Dice of both lungs as one, after post-processing",
    }
    rows: list[list[object]] = [[words, with_interval(intervals[key])] for key, words in titles.items()]
    lowest = _lowest_lungs(scores)
    if not np.isnan(lowest):
        rows.append([f"the same of the film that 1 % of {len(scores.rows)} are worse than", number(lowest, 3)])
    carina = intervals["carina_distance"]
    if any(region.name == Region.CARINA and region.origin != "derived" for region in scores.regions):
        both = int((~np.isnan(scores.carina)).sum())
        share = 100 * carina.value / scores.diagonal
        rows.append(
            [
                f"distance of the carina's centroids after post-processing, {both} films that have both",
                f"{with_interval(carina, 1)} pixels, {number(share, 1)} % of the diagonal",
            ]
        )
    blocks = [
        "## Masks",
        f"{_how_found(scores)} on the network's {scores.grid[0]} x {scores.grid[1]} grid; means over the "
        f"{len(scores.rows)} films that show a chest, with 95 % bootstrap intervals.",
        markdown(["", "mean (95 % interval)"], rows),
    ]
    refused = sum(bool(code) for code in scores.verdicts)
    if refused:
        blocks.append(f"At night {refused} of these {len(scores.rows)} films would be refused as not a frontal chest.")
    if scores.no_chest:
        strange = sum(bool(code) for code in scores.no_chest)
        blocks.append(
            f"{len(scores.no_chest)} further films show no chest (their truth is background everywhere); "
            f"{strange} of them would be refused at night. They enter no other number."
        )
    return blocks


def _how_found(scores: SegmentationScores) -> str:
    if scores.threshold is None:
        return "Raw winner-takes-all masks"
    return (
        f"Every region by itself, where its probability is above {scores.threshold:g}, and no background; what is said "
        "of masks after post-processing and of single pixels is of label maps, where the later of two regions lies on "
        "top. All"
    )


def _regions(scores: SegmentationScores, intervals: Mapping[str, Interval]) -> list[str]:
    headers = ["region", "truth", "Dice", "Jaccard", "surface distance, pixels", "% of diagonal", "95th percentile"]
    headers.append("Dice after post-processing")

    def rows(scored: bool) -> list[list[object]]:
        return [
            [
                region.title,
                region.origin,
                with_interval(intervals[f"{region.name}.dice"]),
                with_interval(intervals[f"{region.name}.jaccard"]),
                with_interval(intervals[f"{region.name}.surface"], 2),
                100 * intervals[f"{region.name}.surface"].value / scores.diagonal,
                with_interval(intervals[f"{region.name}.surface_95"], 2),
                with_interval(intervals[f"{region.name}.dice_cleaned"]),
            ]
            for place, region in enumerate(scores.regions)
            if scores.scored[place] is np.bool_(scored)
        ]

    blocks = ["### By region", markdown(headers, rows(True))]
    if not scores.scored.all():
        blocks += [
            "### Agreement with a rule: not accuracy",
            "The truth of these regions was derived by a rule, not drawn by anyone. The numbers say how well the "
            "network learned the rule and enter no mean above.",
            markdown(headers, rows(False)),
        ]
    return blocks


def _age_groups(scores: SegmentationScores, intervals: Mapping[str, Interval]) -> list[str]:
    rows = [
        [words, int(members.sum()), with_interval(intervals[f"mean_dice_{key}"])]
        for key, words, members in scores.age_groups()
    ]
    return ["### By age", markdown(["age", "films", "mean Dice"], rows)]


def _failures(scores: SegmentationScores, failures: Mapping[str, Mapping[str, int]]) -> list[str]:
    rows: list[list[object]] = [
        [words, *(failures[source][key] for source in SOURCES)] for key, words in FAILURES if key in failures["raw"]
    ]
    rows += [
        [f"{words}: {region.title}", *(int(table[source][:, place].sum()) for source in SOURCES)]
        for words, table in (("missing", scores.missing), ("disconnected or interrupted", scores.broken))
        for place, region in enumerate(scores.regions)
        if any(table[source][:, place].any() for source in SOURCES)
    ]
    return [
        "### Failures",
        f"Films of {len(scores.rows)}, by the flags the night raises. The mediastinum may continue behind the spine "
        "and around the carina, so pieces that meet there count as one.",
        markdown(["failure", "before post-processing", "after post-processing"], rows),
    ]


def _figures(scores: SegmentationScores, chosen: list[tuple[str, int]]) -> list[str]:
    blocks = [f"![Mean Dice of the films, and Dice by region]({SPREAD})"]
    if chosen:
        films = ", ".join(f"{what} {int(scores.rows[place]) + 1}" for what, place in chosen)
        blocks.append(f"![Film, truth and prediction of the best, the median and the worst film]({COMPARISON})")
        blocks.append(
            f"![Outlines on the same films, the truth's green, the prediction's red, both yellow; Jaccards]({OUTLINES})"
        )
        if scores.threshold is not None:
            blocks.append(f"![Probability of each region on the median film]({PROBABILITIES})")
        blocks.append(f"Shown by their number in `films.csv`: {films}.")
    return blocks


def _paper(
    subject: Subject,
    scores: SegmentationScores,
    intervals: Mapping[str, Interval],
    failures: Mapping[str, Mapping[str, int]],
) -> list[str]:
    if subject.paper != "holste" or len(subject.members) > 1:
        return []
    recipe = next(iter(subject.recipes.values()))
    label = holste_label(recipe)
    ages, broken = HOLSTE_TABLE_4.get(label, {}), HOLSTE_TABLE_3.get(label, {})
    counted = {key: int(members.sum()) for key, _, members in scores.age_groups()}

    def ours(name: str, films: int) -> str:
        return f"{with_interval(intervals[name])}, n = {films}" if name in intervals and films else NOTHING

    def theirs(printed: str | None, films: int) -> str:
        return f"{printed}, n = {films}" if printed else NOTHING

    total, of = len(scores.rows), HOLSTE_FILMS["all"]
    rows: list[list[object]] = [
        ["pixel accuracy", ours("accuracy", total), theirs(HOLSTE_ACCURACY.get(label), of)],
        ["mean Dice (Table 2)", ours("mean_dice", total), theirs(HOLSTE_TABLE_2.get(label), of)],
    ]
    for key, words in (("age_0_4", "mean Dice, ages 0-4 (Table 4)"), ("age_5_plus", "mean Dice, ages 5+ (Table 4)")):
        name = f"mean_dice_{key}"
        rows.append([words, ours(name, counted.get(key, 0)), theirs(ages.get(name), HOLSTE_FILMS[key])])
    for key, words in (("missing_carina", "missing carina"), ("disconnected_films", "disconnected classes")):
        count = failures["cleaned"].get(key)
        mine = NOTHING if count is None else f"{count}, n = {total}"
        rows.append([f"films with {words} (Table 3)", mine, theirs(broken.get(key), of)])
    return [
        "## Beside the paper",
        f"{PAPER_TITLES['holste']}. {NOT_COMPARABLE}",
        markdown(["", "ours", f"*paper*, {label.replace('*', chr(92) + '*')}"], rows),
    ]
