from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from finished_runs import run_recipe  # noqa: E402
from handmade_runs import SIZE, MapReader, chest_map, make_samples, map_picture  # noqa: E402

from trainer.export.operating_point import (  # noqa: E402
    NO_THRESHOLD,
    best_temperature,
    settle_carina,
    stored_thresholds,
    weighs_the_carina,
)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-values))).astype(np.float32)


def negative_log_likelihood(members: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The plain definition, one number after the other."""
    total, count = 0.0, 0
    for film in range(labels.shape[0]):
        for finding in range(labels.shape[1]):
            if math.isnan(labels[film, finding]):
                continue
            scaled = []
            for member in members:
                p = float(member[film, finding])
                scaled.append(1 / (1 + math.exp(-math.log(p / (1 - p)) / temperature)))
            mean = sum(scaled) / len(scaled)
            total -= math.log(mean if labels[film, finding] == 1 else 1 - mean)
            count += 1
    return total / count


@pytest.mark.parametrize(("sharpness", "members"), [(2.0, 1), (2.0, 3), (0.6, 1)])
def test_temperature_is_the_most_likely_one(sharpness: float, members: int) -> None:
    random = np.random.default_rng(3)
    logits = random.normal(0, 1.5, (members, 120, 2))
    labels = (random.random((120, 2)) < sigmoid(logits.mean(axis=0))).astype(float)
    labels[::7, 1] = np.nan
    probabilities = sigmoid(sharpness * logits)
    found = best_temperature(probabilities, labels)
    ours = negative_log_likelihood(probabilities, labels, found)
    others = [negative_log_likelihood(probabilities, labels, other) for other in np.geomspace(0.25, 4, 60)]
    assert ours <= min(others) + 1e-4
    assert (found > 1) == (sharpness > 1)


def test_temperature_of_films_of_which_nothing_is_known() -> None:
    assert best_temperature(np.full((1, 3, 2), 0.5, np.float32), np.full((3, 2), np.nan)) == 1.0


@given(st.floats(0, 1))
def test_a_stored_threshold_never_loses_the_film_that_gave_it(score: float) -> None:
    (stored,) = stored_thresholds([score])
    assert score - 1.1e-6 <= stored <= score


def test_where_there_is_no_threshold_something_stands_in() -> None:
    assert stored_thresholds([math.nan, 1.0]) == (NO_THRESHOLD, 1.0)


@pytest.mark.parametrize(
    ("regions", "weights", "weighs"),
    [
        (("background", "carina"), {"carina": 28.0}, True),
        (("background", "carina"), {"carina": 1.0}, False),
        (("background", "carina"), {"spine": 2.0}, False),
        (("background", "left_lung"), {"carina": 28.0}, False),
    ],
)
def test_only_a_class_weight_calls_for_settling(
    regions: tuple[str, ...], weights: dict[str, float], weighs: bool
) -> None:
    loss = {"name": "cross_entropy", "options": {"class_weights": weights}}
    assert weighs_the_carina(run_recipe("segmentation", data={"regions": list(regions)}, loss=loss)) is weighs


class Eager(torch.nn.Module):
    """A map reader whose carina, label 7, is ``too_high`` everywhere."""

    def __init__(self, too_high: float) -> None:
        super().__init__()
        self.reader, self.too_high = MapReader(), too_high

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        # Neighbouring labels are 20 apart: soft enough for a carina that is too high to swallow them.
        logits = self.reader(picture) / 10
        logits[:, 7] += self.too_high
        return logits


def test_a_carina_that_wins_too_often_is_lowered_to_its_best_dice() -> None:
    grey = chest_map().astype(float)
    grey[30:40, 40:50] = 6.7  # more like the carina than the mediastinum
    truth = chest_map()
    truth[30:40, 40:50] = 6
    films = make_samples([map_picture(grey), map_picture(np.zeros((SIZE, SIZE)))], labels=[truth, np.zeros_like(truth)])
    network = Eager(0.5)
    lowered = settle_carina(network, films, 7)

    def dice(shift: float) -> float:
        logits = network(torch.from_numpy(np.asarray(films.pictures[:1], np.float32))).detach().numpy()[0]
        logits[7] -= shift
        found = logits.argmax(axis=0) == 7
        return 2 * (found & (truth == 7)).sum() / (found.sum() + (truth == 7).sum())

    assert 0 < lowered <= 3
    assert dice(lowered) == pytest.approx(max(dice(step / 10) for step in range(31)))
    assert dice(lowered) > dice(0)


def test_films_without_a_carina_settle_nothing() -> None:
    empty = np.zeros((SIZE, SIZE), np.uint8)
    assert settle_carina(MapReader(), make_samples([map_picture(empty)], labels=[empty]), 7) == 0.0
