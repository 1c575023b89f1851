"""What a grid compares: its columns, and their figures in the evaluations of one or several trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from schema.regions import REGION_BY_NAME
from trainer.evaluation.network_costs import COSTS


@dataclass(frozen=True)
class Column:
    """What a grid can compare: its heading, and the task whose evaluation has a figure of the column's name.

    Columns of the task :data:`COST` are the network's own and need no training.
    """

    title: str
    task: str


#: Task of the columns of :mod:`trainer.evaluation.network_costs`.
COST = "cost"
#: Numbers of a region: ``lungs.jaccard`` is a column.
REGION_COLUMNS: Mapping[str, str] = {"dice": "Dice", "jaccard": "Jaccard", "surface": "surface distance, pixels"}


#: Every column a grid may name beside those of a region: ``figures`` of an evaluation on the test part
#: (:func:`trainer.evaluation.evaluate.evaluate_runs`), which measures a classifier's validation part too.
COLUMNS: Mapping[str, Column] = {
    "mean_dice": Column("mean Dice", "segmentation"),
    "foreground_dice": Column("mean Dice without background", "segmentation"),
    "foreground_jaccard": Column("mean Jaccard without background", "segmentation"),
    "mean_dice_age_0_4": Column("mean Dice, ages 0-4", "segmentation"),
    "mean_dice_age_5_plus": Column("mean Dice, ages 5+", "segmentation"),
    "missing_carina": Column("films without carina", "segmentation"),
    "disconnected_films": Column("films with disconnected classes", "segmentation"),
    "mean_auroc_validation": Column("mean AUROC, validation", "classification"),
    "mean_auroc": Column("mean AUROC", "classification"),
    "mean_f1": Column("mean F1", "classification"),
    **dict(
        zip(
            COSTS,
            (Column(title, COST) for title in ("parameters", "CPU, s", "GPU, s", "weights, MiB")),
            strict=True,
        )
    ),
}


def column_of(name: str) -> Column | None:
    """The column of that name, None if there is none."""
    region, dot, number = name.rpartition(".")
    if dot and region in REGION_BY_NAME and number in REGION_COLUMNS:
        return Column(f"{REGION_BY_NAME[region].title}, {REGION_COLUMNS[number]}", "segmentation")
    return COLUMNS.get(name)


def figure_of(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A column's figure in the summary of an evaluation; None where it has none."""
    region, dot, number = name.rpartition(".")
    found = summary.get("regions", {}).get(region, {}).get(number) if dot else summary["figures"].get(name)
    return dict(found) if found else None


def over_trainings(figures: Sequence[Mapping[str, Any]], films: Sequence[int]) -> dict[str, Any]:
    """One column of a cell that was trained several times, measured on ``films`` films each.

    Counted films are added up; another whole number that is the same each time stays what it is. Of other numbers the
    mean weighted by films, which is that over all films, and the standard deviation ``sd`` between the trainings
    (n - 1). A training without the number is left out; None if all are.
    """
    known = [(figure, count) for figure, count in zip(figures, films, strict=True) if figure["value"] is not None]
    values = [figure["value"] for figure, _ in known]
    if known and all("of" in figure for figure, _ in known):
        return {"value": sum(values), "of": sum(figure["of"] for figure, _ in known)}
    if known and isinstance(values[0], int) and len(set(values)) == 1:
        return {"value": values[0]}
    return {
        "value": fmean(values, [count for _, count in known]) if known else None,
        "sd": stdev(values) if len(known) > 1 else None,
        "trainings": len(known),
    }
