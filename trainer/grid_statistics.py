"""What is said of a grid's cells film by film: whether two differ, and how their Jaccards are spread."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

#: (training, film) → region → Jaccard, NaN where the region is in neither map.
FilmJaccards = Mapping[tuple[int, str], Mapping[str, float]]

_PREFIX = "jaccard_"


@dataclass(frozen=True)
class Comparison:
    """Two cells by Wilcoxon's signed-rank test on the films' Jaccards: Novikov et al., Table VII.

    Attributes
    ----------
    first, second
        Labels of the cells.
    films
        Region → films that both measured.
    p
        Region → two-sided p-value, 0-1; 1 where no film differs, NaN without films.
    paper
        The paper's own, as printed; ``""`` where it has none.
    """

    first: str
    second: str
    films: Mapping[str, int]
    p: Mapping[str, float]
    paper: str = ""


def read_jaccards(evaluations: Sequence[Path]) -> dict[tuple[int, str], dict[str, float]]:
    """Jaccards of every measured film from the ``films.csv`` of evaluations, one for each training of a cell."""
    found = {}
    for turn, folder in enumerate(evaluations):
        with (folder / "films.csv").open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                found[turn, row["name"]] = {
                    key.removeprefix(_PREFIX): float(value) if value else math.nan
                    for key, value in row.items()
                    if key.startswith(_PREFIX)
                }
    return found


def compare(
    cells: Mapping[str, FilmJaccards], regions: Sequence[str], paper: Mapping[str, str] | None = None
) -> list[Comparison]:
    """Every pair of ``cells`` (label → films), by each of ``regions``; ``paper`` as in the recipe's table.

    Zero differences are left out, as Wilcoxon did.
    """
    comparisons = []
    for first, second in combinations(cells, 2):
        common = cells[first].keys() & cells[second].keys()
        p, films = {}, {}
        for region in regions:
            pairs = np.array([[cells[each][film].get(region, math.nan) for each in (first, second)] for film in common])
            pairs = pairs.reshape(-1, 2)
            pairs = pairs[~np.isnan(pairs).any(axis=1)]
            films[region] = len(pairs)
            p[region] = signed_rank(pairs[:, 0] - pairs[:, 1])
        printed = (paper or {}).get(f"{first} / {second}", "")
        comparisons.append(Comparison(first, second, films, p, printed))
    return comparisons


def signed_rank(differences: Any) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; NaN without differences, 1 where all are zero."""
    values = np.asarray(differences, np.float64)
    if not len(values):
        return math.nan
    return float(wilcoxon(values).pvalue) if values.any() else 1.0


def p_value(p: float) -> str:
    """As the paper prints it: ``< 0.01``, ``0.23``, and three digits where two would show nothing."""
    if math.isnan(p):
        return "–"
    return "< 0.01" if p < 0.01 else f"{p:.2f}"
