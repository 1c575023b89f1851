"""The closed-form map against Grad-CAM by automatic differentiation (classifier paper, eq. 11-12)."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from trainer.networks.pooled import PooledClassifier  # noqa: E402
from trainer.networks.registry import make_network  # noqa: E402


def grad_cam(network: torch.nn.Module, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (N, F) and ReLU(sum_k alpha_ck A_k), alpha the mean over cells of dY_c/dA_k, at ``features``."""
    kept = []
    hook = network.features.register_forward_hook(lambda module, inputs, output: kept.append(output))
    probabilities = torch.sigmoid(network(picture)[0])
    hook.remove()
    (activations,) = kept
    maps = []
    for finding in range(probabilities.shape[1]):
        # Batch normalisation lies below the activations, so films do not mix above them.
        (gradient,) = torch.autograd.grad(probabilities[:, finding].sum(), activations, retain_graph=True)
        alpha = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append(torch.relu((alpha * activations).sum(dim=1)))
    return probabilities.detach(), torch.stack(maps, dim=1).detach()


@pytest.mark.parametrize("name", ["densenet121", "resnet101", "small_classifier"])
def test_maps_are_grad_cam_up_to_a_factor(name: str) -> None:
    torch.manual_seed(0)
    network = make_network(name, 3, 4).double()
    # Statistics of the batch keep the activations of untrained networks in bounds.
    network.train().dropout.eval()
    picture = torch.rand(2, 3, 64, 32, dtype=torch.float64)
    maps = network(picture)[1].detach()
    probabilities, expected = grad_cam(network, picture)
    cells = maps.shape[2] * maps.shape[3]
    factor = probabilities * (1 - probabilities) / cells
    assert cells > 1
    assert (factor > 1e-9).all()
    torch.testing.assert_close(maps * factor[:, :, None, None], expected, rtol=1e-8, atol=1e-12)

    def scaled(values: torch.Tensor) -> torch.Tensor:
        peak = values.amax(dim=(2, 3), keepdim=True)
        return values / torch.where(peak > 0, peak, torch.ones_like(peak))

    assert expected.max() > 0
    torch.testing.assert_close(scaled(maps), scaled(expected), rtol=1e-7, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_maps_are_the_weighted_sum_of_the_features(cells: int, channels: int, findings: int, seed: int) -> None:
    torch.manual_seed(seed)
    network = PooledClassifier(torch.nn.ReLU(), channels, findings).double()
    features = torch.randn(2, channels, cells, cells + 1, dtype=torch.float64).relu()
    logits, maps = network(features)
    weights, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    values = features.numpy()
    for film in range(2):
        for finding in range(findings):
            total = 0.0
            for row in range(cells):
                for column in range(cells + 1):
                    value = sum(weights[finding, k] * values[film, k, row, column] for k in range(channels))
                    total += value
                    assert maps[film, finding, row, column].item() == pytest.approx(max(value, 0.0), abs=1e-12)
            expected = total / (cells * (cells + 1)) + bias[finding]
            assert logits[film, finding].item() == pytest.approx(expected, abs=1e-12)
