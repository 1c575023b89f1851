"""An ensemble's masks beside those of each of its networks alone (Novikov et al., Table III beside Table I)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from trainer.evaluation.segmentation import SegmentationScores, measure_films, row_means
from trainer.evaluation.subjects import Evaluation
from trainer.evaluation.tables import as_figure, markdown, with_interval
from worker.bootstrap import means

#: Keys of the figures of one network: its means, and what the ensemble has above them.
MEAN_DICE, MEAN_JACCARD, ENSEMBLE_ABOVE = "mean_dice", "mean_jaccard", "ensemble_above"


def compare_members(evaluation: Evaluation, together: SegmentationScores) -> tuple[list[str], dict[str, Any]]:
    """Measure each network of an ensemble alone, on the same films.

    Parameters
    ----------
    evaluation
        The ensemble's.
    together
        What was measured of the ensemble.

    Returns
    -------
    Blocks of the report's Markdown, and for its summary ``members``: network → ``mean_dice`` and ``mean_jaccard`` over
    the scored regions, 0-1, and ``ensemble_above``, by how much the ensemble's mean Dice is higher (-1 to 1, film by
    film). Both are empty where there is one network.
    """
    members = evaluation.subject.members
    if len(members) == 1:
        return [], {}
    rows, found = [], {}
    for member in members:
        scores = measure_films(replace(evaluation, subject=evaluation.subject.alone(member)))
        columns = [
            scores.mean_dice,
            row_means(scores.overlaps.jaccard[:, scores.scored]),
            together.mean_dice - scores.mean_dice,
        ]
        values = np.stack(columns, axis=1)
        intervals = means(values, replicates=evaluation.replicates, seed=evaluation.seed).intervals()
        rows.append([member.name, *map(with_interval, intervals)])
        keys = (MEAN_DICE, MEAN_JACCARD, ENSEMBLE_ABOVE)
        found[member.name] = {key: as_figure(each) for key, each in zip(keys, intervals, strict=True)}
    blocks = [
        "## Each network alone",
        markdown(["network", "mean Dice", "mean Jaccard", "the ensemble's mean Dice is higher by"], rows),
    ]
    return blocks, {"members": found}
