"""Networks that look at half the size: what they see and where their answer lies."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from trainer.networks.half_size import HalfSizeClassifier, HalfSizeSegmenter  # noqa: E402
from trainer.networks.small_classifier import GuidedClassifier  # noqa: E402


class _Spy(torch.nn.Module):
    """Answers with what it was shown."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return picture


def test_a_segmenter_sees_means_and_answers_on_the_full_grid() -> None:
    ramp = torch.arange(8.0).repeat(1, 1, 8, 1)
    answer = HalfSizeSegmenter(_Spy())(ramp)
    assert answer.shape == (1, 1, 8, 8)
    # Means of two columns lie half-way between them, so a ramp comes back as it was, but for the edge.
    assert torch.allclose(answer[..., 1:-1], ramp[..., 1:-1])
    assert answer[0, 0, 0, 0] == 0.5


def test_a_segmenters_logits_lie_where_the_picture_does() -> None:
    picture = torch.zeros(1, 1, 16, 16)
    picture[..., 4:8, 10:12] = 1
    answer = HalfSizeSegmenter(_Spy())(picture)
    assert torch.equal(answer > 0.5, picture > 0.5)


def test_a_classifier_answers_as_its_network_does_at_half_the_size() -> None:
    network = GuidedClassifier(findings=3, base_width=4).eval()
    half = HalfSizeClassifier(network).eval()
    picture = torch.rand(2, 1, 64, 96)
    means = picture.reshape(2, 1, 32, 2, 48, 2).mean(dim=(3, 5))
    logits, maps, places = half.forward_guided(picture)
    assert maps.shape == (2, 3, 2, 3)
    assert places.shape == (2, 2, 3)
    for mine, expected in zip((logits, maps, places), network.forward_guided(means), strict=True):
        assert torch.allclose(mine, expected, atol=1e-5)
    assert torch.equal(half(picture)[0], logits)
