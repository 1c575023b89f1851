"""From channels to regions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

torch = pytest.importorskip("torch")

from trainer.networks.heads import competing, region_channels  # noqa: E402

_PROBABILITIES = arrays.arrays(np.float32, (2, 3, 4, 5), elements=st.integers(0, 64).map(lambda k: k / 64))


@settings(deadline=None)
@given(_PROBABILITIES, st.sampled_from([0.25, 0.5, 0.75]))
def test_the_highest_is_the_last_region_above_the_threshold(values: np.ndarray, threshold: float) -> None:
    found = competing(torch.from_numpy(values), threshold).numpy()
    assert found.shape == (2, 4, 4, 5)
    assert found.min() >= 0 and found.max() <= 1
    for place in np.ndindex(2, 4, 5):
        film, row, column = place
        above = np.flatnonzero(values[film, :, row, column] > threshold)
        assert found[film, :, row, column].argmax() == (above[-1] + 1 if len(above) else 0)


@settings(deadline=None)
@given(_PROBABILITIES, st.sampled_from([0.25, 0.5, 0.75]))
def test_every_region_can_still_be_told(values: np.ndarray, threshold: float) -> None:
    regions = torch.from_numpy(values)
    found = competing(regions, threshold)
    assert torch.equal(found[:, 1:] > threshold, regions > threshold)
    alone = (regions > threshold).sum(1, keepdim=True) < 2
    assert torch.equal(torch.where(alone, found[:, 1:], 0), torch.where(alone, regions, 0))
    assert torch.equal(found[:, -1], regions[:, -1])


def test_novikovs_threshold_by_hand() -> None:
    values = torch.tensor([0.1, 0.76, 0.74, 0.99]).view(1, 1, 2, 2)
    found = competing(values, 0.75)
    expected = torch.tensor([1.0, 0.74, 0.76, 0.51]).view(1, 1, 2, 2)
    torch.testing.assert_close(found[:, :1], expected)
    assert found.argmax(1).flatten().tolist() == [0, 1, 0, 1]


def by_hand(*probabilities: float) -> list[float]:
    """The mean (background, region) of networks that say so of one pixel, at Novikov's threshold."""
    said = [competing(torch.tensor([[[[each]]]]), 0.75) for each in probabilities]
    mean: list[float] = torch.stack(said).mean(0).flatten().tolist()
    return mean


@given(st.floats(0, 1), st.floats(0, 1))
def test_two_networks_average_their_own_probabilities(one: float, other: float) -> None:
    background, region = by_hand(one, other)
    if abs((one + other) / 2 - 0.75) > 1e-4:
        assert (region > background) == ((one + other) / 2 > 0.75)


def test_of_three_networks_two_that_are_sure_win() -> None:
    background, region = by_hand(1.0, 1.0, 0.1)
    assert region == pytest.approx(0.7) and region > background
    background, region = by_hand(0.8, 0.8, 0.1)
    assert region < background


def test_labels_and_bit_fields_as_channels() -> None:
    labels = torch.tensor([[[0, 1], [2, 1]]], dtype=torch.uint8)
    channels = region_channels(labels, 3, overlapping=False)
    assert channels.tolist() == [[[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[0, 0], [1, 0]]]]
    bits = torch.tensor([[[0, 2], [4, 6]]], dtype=torch.uint8)
    channels = region_channels(bits, 3, overlapping=True)
    assert channels.tolist() == [[[[1, 0], [0, 0]], [[0, 1], [0, 1]], [[0, 0], [1, 1]]]]
    assert channels.dtype == torch.float32


def test_the_last_bit_of_a_field() -> None:
    channels = region_channels(torch.full((1, 1, 1), 128, dtype=torch.uint8), 8, overlapping=True)
    assert channels.flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
