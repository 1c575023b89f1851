"""The small classifier, its maps and its place head."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from trainer.networks.holste_unet import parameter_count  # noqa: E402
from trainer.networks.small_classifier import GuidedClassifier, SmallClassifier  # noqa: E402


def test_size_and_shapes() -> None:
    network = SmallClassifier(findings=2).eval()
    assert 300_000 <= parameter_count(network) <= 1_000_000
    logits, maps = network(torch.rand(3, 1, 256, 256))
    assert logits.shape == (3, 2)
    assert maps.shape == (3, 2, 16, 16)
    assert maps.min() >= 0


def test_a_map_without_cuts_averages_to_the_logit() -> None:
    network = SmallClassifier(findings=2, base_width=4).eval()
    with torch.no_grad():
        network.head.weight.abs_()
    logits, maps = network(torch.rand(3, 1, 64, 64))
    assert torch.allclose(maps.mean(dim=(2, 3)) + network.head.bias, logits, atol=1e-5)


def test_a_guided_classifier_answers_the_same_and_places_besides() -> None:
    network = GuidedClassifier(findings=2, base_width=4).eval()
    picture = torch.rand(3, 1, 64, 32)
    logits, maps, places = network.forward_guided(picture)
    assert places.shape == (3, 4, 2)
    for mine, guided in zip(network(picture), (logits, maps), strict=True):
        assert torch.equal(mine, guided)
    features = network.features(picture)
    expected = torch.einsum("k,nkhw->nhw", network.place.weight[0, :, 0, 0], features) + network.place.bias
    assert torch.allclose(places, expected, atol=1e-5)


def test_the_place_head_teaches_the_features() -> None:
    network = GuidedClassifier(findings=2, base_width=4)
    network.forward_guided(torch.rand(2, 1, 32, 32))[2].sum().backward()
    assert network.features[0][0].weight.grad.abs().max() > 0
    assert network.head.weight.grad is None
