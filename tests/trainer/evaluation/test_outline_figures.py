"""Outlines and maps of probability, pixel by pixel."""

from __future__ import annotations

import numpy as np
from handmade_runs import chest_map, make_samples, map_picture, pixels_of

from trainer.evaluation import evaluate_run
from trainer.evaluation.outline_figures import BOTH, FOUND, OUTLINES, TRUTH, outlined


def square(top: int, left: int, side: int = 6) -> np.ndarray:
    mask = np.zeros((20, 20), np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


class TestOutlines:
    def test_truth_is_green_prediction_red_and_both_yellow(self):
        picture = np.full((20, 20), 90, np.uint8)
        drawn = outlined(picture, [(square(2, 2), square(2, 4))])
        assert tuple(drawn[4, 2]) == TRUTH
        assert tuple(drawn[4, 9]) == FOUND
        assert tuple(drawn[2, 5]) == BOTH
        assert tuple(drawn[5, 5]) == tuple(drawn[15, 15]) == (90, 90, 90)

    def test_every_region_is_drawn(self):
        drawn = outlined(np.zeros((20, 20), np.uint8), [(square(1, 1), square(1, 1)), (square(12, 12), square(13, 13))])
        assert tuple(drawn[1, 1]) == BOTH
        assert tuple(drawn[12, 12]) == TRUTH
        assert tuple(drawn[18, 18]) == FOUND

    def test_the_report_has_them(self, make_run, tmp_path):
        run = make_run(
            "segmentation", test=make_samples([map_picture(chest_map(1).astype(float))], labels=[chest_map()])
        )
        evaluate_run(run, "test", tmp_path, replicates=20)
        picture = pixels_of(tmp_path / OUTLINES)[..., ::-1].astype(int)
        for colour in (TRUTH, FOUND, BOTH):
            assert (np.abs(picture - np.array(colour)).sum(axis=2) < 60).sum() > 100
        assert f"]({OUTLINES})" in (tmp_path / "report.md").read_text()
