"""Masks of regions that lie over each other: every number against plain numpy."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from handmade_runs import SIZE, HandmadeRun, make_recipe, make_samples  # noqa: E402

from schema.regions import REGION_SETS  # noqa: E402
from trainer.evaluation import evaluate_run  # noqa: E402
from trainer.evaluation.evaluate import say_nothing  # noqa: E402
from trainer.evaluation.segmentation import SegmentationScores, measure_films  # noqa: E402
from trainer.evaluation.subjects import Evaluation, subject_of_runs  # noqa: E402
from trainer.export.onnx_export import export_onnx, outputs_of  # noqa: E402

NOVIKOV = REGION_SETS["novikov"]
LUNGS, HEART, CLAVICLES = 1, 2, 3
#: A grey value of this bit makes the network unsure of all that it finds there.
UNSURE = 4
STEPS = 1 << (UNSURE + 1)
RECIPE: dict[str, Any] = {
    "network": {"name": "inverted_net", "activation": "sigmoid"},
    "data": {"regions": list(NOVIKOV), "overlapping": True},
    "loss": {"name": "class_frequency_dice"},
}


class BitReader(torch.nn.Module):
    """Reads the bits of a pixel from its grey value; probability 0.7 where it is unsure, else nearly 0 or 1."""

    def forward(self, picture: Any) -> Any:
        value = torch.round(picture * (STEPS - 1))
        bits = [
            torch.floor(value / 2**place) - 2 * torch.floor(value / 2 ** (place + 1)) for place in range(UNSURE + 1)
        ]
        found = torch.cat(bits[1:UNSURE], dim=1)
        return (found - 0.5) * 20 * (1 - bits[UNSURE]) + (found * 0.8473 - (1 - found) * 5) * bits[UNSURE]


def chest(shift: int = 0) -> np.ndarray:
    """A bit field (SIZE, SIZE): two lungs with clavicles across their tops, a heart that one of them overlaps."""
    bits = np.zeros((SIZE, SIZE), np.uint8)
    for first in (8, 38):
        bits[10:50, first : first + 18] |= 1 << LUNGS
        bits[14:18, first - 2 : first + 20] |= 1 << CLAVICLES
    bits[34:50, 24:42] |= 1 << HEART
    return np.roll(bits, shift, axis=1)


def seen(bits: np.ndarray) -> np.ndarray:
    return (bits / (STEPS - 1)).astype(np.float16)[None]


def mask(bits: np.ndarray, place: int) -> np.ndarray:
    return bits >> place & 1 > 0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    outputs = outputs_of(make_recipe("segmentation", **RECIPE), BitReader())
    export_onnx(outputs, folder / "member.onnx", (1, SIZE, SIZE), ["probabilities"])
    return folder


def run_of(
    folder: Path, truths: list[np.ndarray], found: list[np.ndarray], changes: dict[str, Any] | None = None
) -> HandmadeRun:
    """A run whose network finds ``found`` in films of which ``truths`` is true."""
    films = make_samples([seen(bits) for bits in found], labels=truths)
    recipe = make_recipe("segmentation", **{**RECIPE, **(changes or {})})
    return HandmadeRun(folder, recipe, {"test": replace(films, overlapping=recipe.data.overlapping)})


def measured(
    folder: Path, truths: list[np.ndarray], found: list[np.ndarray], changes: dict[str, Any] | None = None
) -> SegmentationScores:
    run = run_of(folder, truths, found, changes)
    with subject_of_runs([run]) as subject:
        return measure_films(
            Evaluation(subject, {subject.members[0].name: run.samples("test")}, "test", folder, 20, 1, say_nothing)
        )


def test_each_region_is_compared_whole(network: Path, tmp_path: Path) -> None:
    truths, found = [chest(), chest(2)], [chest(1), chest(-1)]
    summary = evaluate_run(run_of(network, truths, found), "test", tmp_path, replicates=20)
    with (tmp_path / "films.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    means = []
    for row, truth, bits in zip(rows, truths, found, strict=True):
        own = []
        for place, region in enumerate(NOVIKOV[1:], start=1):
            both = (mask(truth, place) & mask(bits, place)).sum()
            size = mask(truth, place).sum() + mask(bits, place).sum()
            assert float(row[f"dice_{region}"]) == pytest.approx(2 * both / size)
            assert float(row[f"surface_{region}"]) > 0
            own.append(2 * both / size)
        assert row["dice_background"] == row["surface_background"] == ""
        assert float(row["mean_dice"]) == pytest.approx(np.mean(own))
        means.append(np.mean(own))
    assert summary["figures"]["mean_dice"]["value"] == pytest.approx(np.mean(means))
    dice = [float(row["dice_lungs"]) for row in rows]
    # Jaccard = Dice / (2 - Dice): equation 11 as it must read.
    jaccard = summary["regions"]["lungs"]["jaccard"]["value"]
    assert jaccard == pytest.approx(np.mean([each / (2 - each) for each in dice]))
    assert summary["figures"]["lung_dice"]["value"] == pytest.approx(np.mean(dice))
    assert "Every region by itself, where its probability is above 0.75" in (tmp_path / "report.md").read_text()


def test_lungs_under_clavicles_are_lungs(network: Path) -> None:
    """As a label map the lungs would lose what lies under the clavicles; whole they are right."""
    scores = measured(network, [chest(), chest(3)], [chest(), chest(3)])
    assert np.isnan(scores.overlaps.dice[:, 0]).all()
    assert (scores.overlaps.dice[:, 1:] == 1.0).all() and (scores.overlaps.surface[:, 1:] == 0.0).all()
    assert (scores.accuracy == 1.0).all() and (scores.lungs == 1.0).all()
    assert not scores.failures["raw"]["failed_films"].any()


def test_what_the_network_is_unsure_of_does_not_count(network: Path) -> None:
    """Equation 9: a probability of 0.7 is not within 0.25 of 1; another recipe may ask for less."""
    unsure = chest()
    unsure[:, :32] |= 1 << UNSURE
    truth = mask(chest(), LUNGS)
    right = truth & (np.arange(SIZE) >= 32)
    strict = measured(network, [chest()], [unsure])
    assert strict.overlaps.dice[0, LUNGS] == pytest.approx(2 * right.sum() / (truth.sum() + right.sum()))
    lenient = measured(network, [chest()], [unsure], {"network": {**RECIPE["network"], "threshold": 0.6}})
    assert lenient.overlaps.dice[0, LUNGS] == 1.0


def test_a_label_map_is_the_truth_of_regions_that_do_not_overlap(network: Path) -> None:
    """Novikov's second truth: lungs without clavicles, learned channel by channel."""
    flat = np.zeros((SIZE, SIZE), np.uint8)
    for place in (LUNGS, HEART, CLAVICLES):
        flat[mask(chest(), place)] = place
    scores = measured(network, [flat], [chest()], {"data": {"regions": list(NOVIKOV)}})
    own, whole = (flat == LUNGS).sum(), mask(chest(), LUNGS).sum()
    assert scores.overlaps.dice[0, LUNGS] == pytest.approx(2 * own / (own + whole))
    assert scores.overlaps.dice[0, CLAVICLES] == 1.0
