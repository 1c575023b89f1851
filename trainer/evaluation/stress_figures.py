"""The worst film of every row of the stress table, drawn as the network saw it."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from schema.findings import title
from schema.regions import is_lung
from trainer.evaluation.drawing import canvas, save
from trainer.evaluation.stress import BOTH_LUNGS, Night, StressScores, masks_of
from trainer.evaluation.whole_films import read_whole
from worker.pipeline import FilmInWork

_COLUMNS = 4
_TRUTH, _FOUND = (40, 200, 40), (255, 0, 255)


def draw_worst(at_night: Night, scores: StressScores, worst: Mapping[int, int], masks: bool, path: Path) -> str:
    """Draw the film ``worst[row]`` of each row, with its lungs' outlines where ``masks``; the file's name.

    Outlines are green for the truth and magenta for the result; the numbers are the film's as it is and in the row.
    """
    figure = canvas(2.6 * _COLUMNS, 2.95 * ceil(len(worst) / _COLUMNS))
    axes = figure.subplots(ceil(len(worst) / _COLUMNS), _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (p, n) in zip(axes, worst.items(), strict=False):
        axis.imshow(_picture(at_night, scores, p, n, masks=masks))
        words = _lungs_of(scores, p, n) if masks else _finding_of(scores, p, n)
        axis.set_title(f"{scores.rows[p].title}, film {n + 1}\n{words}", fontsize=7)
    return save(figure, path)


def _picture(at_night: Night, scores: StressScores, p: int, n: int, *, masks: bool) -> npt.NDArray[np.uint8]:
    record, row = scores.films.records[n], scores.rows[p]
    regions = scores.films.regions
    film = read_whole(record, regions if masks else (), at_night.bundle.manifest)
    work = at_night.read(film, row, record.age_days)
    assert isinstance(work, FilmInWork), "only films that were read have numbers to be worst by"
    member = at_night.bundle.manifest.members_of("segmentation" if masks else "classification")[0]
    plane = work.prepared.tensors[member.name][0]
    low, high = float(plane.min()), float(plane.max())
    shown = cv2.cvtColor(np.rint((plane - low) / max(high - low, 1e-6) * 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    truth = at_night.truth(film, row) if masks else None
    if truth is None:
        return np.asarray(shown, np.uint8)
    found = masks_of(work, at_night, regions)
    lungs = [region for region in regions if is_lung(region)]
    for colour, drawn in (
        (_TRUTH, [truth == 1 + regions.index(lung) for lung in lungs]),
        (_FOUND, [found[lung] for lung in lungs]),
    ):
        for mask in drawn:
            large = cv2.resize(mask.astype(np.uint8), shown.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(shown, outlines, -1, colour, 1)
    return np.asarray(shown, np.uint8)


def _lungs_of(scores: StressScores, p: int, n: int) -> str:
    dice = scores.dice[BOTH_LUNGS]
    return f"lungs' Dice {dice[0, n]:.3f} → {dice[p, n]:.3f}"


def _finding_of(scores: StressScores, p: int, n: int) -> str:
    """The finding that moved furthest from its label."""
    labels = scores.films.targets[n]
    moved = scores.probabilities[p, n] - scores.probabilities[0, n]
    away = np.where(np.isnan(labels), -np.inf, np.where(labels == 1, -moved, moved))
    k = int(away.argmax())
    was, now = scores.probabilities[0, n, k], scores.probabilities[p, n, k]
    truth = "present" if labels[k] == 1 else "absent"
    return f"{title(scores.films.findings[k])} ({truth}) {was:.2f} → {now:.2f}"
