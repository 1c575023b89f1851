"""What the packaged bundle's figures rest on: films of patients it never saw, through ``carina evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")

from click.testing import CliRunner

from worker.cli import main
from worker.inference.bundles import PACKAGED_BUNDLE

FILMS = Path(__file__).resolve().parents[3] / "shared" / "data" / "ped_cxr"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILMS.is_dir(), reason="the shared radiographs are not here"),
]
DRAWINGS = (
    "carina:1 reaches 0.954 and 0.857. Two drawings of one film, one made right after the other, agree at 0.969 "
    "(docs/evidence.md, The packaged bundle)"
)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("evaluation")
    words = ["evaluate", str(PACKAGED_BUNDLE), "--data", str(FILMS), "--layout", "ped_cxr", "--out", str(out)]
    ended = CliRunner().invoke(main, words)
    assert ended.exit_code == 0, ended.output
    found: dict[str, Any] = json.loads((out / "summary.json").read_text("utf-8"))
    return found


def share(masks: dict[str, Any], name: str) -> float:
    counted = masks["figures"][name]
    return float(counted["value"]) / float(counted["of"])


def test_both_lungs_and_the_carina_are_there(figures: dict[str, Any]) -> None:
    masks = figures["masks"]
    assert masks["films"] == 897
    assert share(masks, "missing_region") <= 0.005
    assert share(masks, "missing_carina") + share(masks, "carina_astray") <= 0.01
    assert masks["figures"]["lung_dice"]["value"] >= 0.95


@pytest.mark.xfail(reason=DRAWINGS, strict=True)
def test_lungs_are_drawn_as_well_as_was_asked(figures: dict[str, Any]) -> None:
    masks = figures["masks"]
    assert masks["figures"]["lung_dice"]["value"] >= 0.965 and masks["lungs_together_lowest_percent"] >= 0.90


def test_pneumonia_is_told_and_its_probability_means_what_it_says(figures: dict[str, Any]) -> None:
    pneumonia = figures["findings"]["findings"]["pneumonia"]
    assert pneumonia["auroc"]["value"] >= 0.985
    assert pneumonia["calibration_error"] <= 0.05
