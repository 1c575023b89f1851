"""The three published classifiers: parameters, layers, and what they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from torch.nn import functional  # noqa: E402

from trainer.networks.checkpoints import initialise  # noqa: E402
from trainer.networks.holste_unet import parameter_count  # noqa: E402
from trainer.networks.registry import make_network  # noqa: E402

Weights = Mapping[str, torch.Tensor]
NAMES = ("densenet121", "densenet169", "resnet101")


@pytest.mark.parametrize(
    ("name", "parameters"), [("densenet121", 6_964_106), ("densenet169", 12_501_130), ("resnet101", 42_520_650)]
)
def test_has_the_published_parameters_with_the_papers_ten_outputs(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = make_network(name, channels=3, outputs=10)
    assert parameter_count(network) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_layers_have_the_published_shapes_in_order(name: str, published_shapes: Callable[..., dict]) -> None:
    with torch.device("meta"):
        network = make_network(name, channels=3, outputs=10)
    own = [tuple(p.shape) for key, p in network.state_dict().items() if "num_batches" not in key]
    assert own == list(published_shapes(name, 10).values())
    strides = [m.stride[0] for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    # ResNet's stages 2-4 each begin with a strided 3 x 3 convolution and a strided shortcut; DenseNet pools instead.
    assert (strides[0], strides.count(2)) == (2, 7 if name == "resnet101" else 1)


@pytest.mark.parametrize(("name", "channels"), [("densenet121", 1), ("densenet169", 3), ("resnet101", 1)])
def test_answers_logits_and_maps_a_cell_every_32_pixels(name: str, channels: int) -> None:
    with torch.device("meta"):
        network = make_network(name, channels, 5)
        logits, maps = network(torch.rand(2, channels, 512, 512))
    assert logits.shape == (2, 5)
    assert maps.shape == (2, 5, 16, 16)


def _normalised(weights: Weights, name: str, values: torch.Tensor) -> torch.Tensor:
    mean, variance, scale, shift = (
        weights[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (values - mean) / torch.sqrt(variance + 1e-5) * scale + shift


def _stem(weights: Weights, convolution: str, norm: str, picture: torch.Tensor) -> torch.Tensor:
    values = functional.conv2d(picture, weights[f"{convolution}.weight"], stride=2, padding=3)
    return functional.max_pool2d(_normalised(weights, norm, values).relu(), 3, 2, 1)


def _densenet(weights: Weights, picture: torch.Tensor) -> torch.Tensor:
    """The last features of Huang et al., sections 3-4, from torchvision's names alone."""
    values = _stem(weights, "features.conv0", "features.norm0", picture)
    for block in range(1, 5):
        layer = 1
        while f"features.denseblock{block}.denselayer{layer}.conv1.weight" in weights:
            where = f"features.denseblock{block}.denselayer{layer}"
            new = _normalised(weights, f"{where}.norm1", values).relu()
            new = functional.conv2d(new, weights[f"{where}.conv1.weight"])
            new = _normalised(weights, f"{where}.norm2", new).relu()
            values = torch.cat([values, functional.conv2d(new, weights[f"{where}.conv2.weight"], padding=1)], dim=1)
            layer += 1
        if block < 4:
            where = f"features.transition{block}"
            values = functional.conv2d(
                _normalised(weights, f"{where}.norm", values).relu(), weights[f"{where}.conv.weight"]
            )
            values = functional.avg_pool2d(values, 2)
    return _normalised(weights, "features.norm5", values).relu()


def _resnet(weights: Weights, picture: torch.Tensor) -> torch.Tensor:
    """The last features of He et al., Figure 5, with the stride in the 3 x 3 convolution as torchvision has it."""
    values = _stem(weights, "conv1", "bn1", picture)
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in weights:
            where = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            new = functional.conv2d(values, weights[f"{where}.conv1.weight"])
            new = _normalised(weights, f"{where}.bn1", new).relu()
            new = functional.conv2d(new, weights[f"{where}.conv2.weight"], stride=stride, padding=1)
            new = _normalised(weights, f"{where}.bn2", new).relu()
            new = _normalised(weights, f"{where}.bn3", functional.conv2d(new, weights[f"{where}.conv3.weight"]))
            if block == 0:
                values = functional.conv2d(values, weights[f"{where}.downsample.0.weight"], stride=stride)
                values = _normalised(weights, f"{where}.downsample.1", values)
            values = (new + values).relu()
            block += 1
    return values


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_the_published_network_does_with_its_weights(
    name: str, published_shapes: Callable[..., dict], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for key, shape in published_shapes(name, 5).items():
        value = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            value *= (2 / torch.Size(shape[1:]).numel()) ** 0.5
        elif key.endswith(("running_var", "weight")):  # small, so that a hundred sums stay in bounds
            value = 0.5 + 0.5 * torch.rand(shape, generator=generator)
        weights[key] = value.half()
    torch.save(weights, tmp_path / "published.pth")
    with torch.device("meta"):
        network = make_network(name, 3, 5)
    network.to_empty(device="cpu")
    assert not initialise(network, tmp_path / "published.pth").left_fresh
    picture = torch.rand(2, 3, 64, 32, generator=generator).double()
    doubled = {key: value.double() for key, value in weights.items()}
    head = "fc" if name == "resnet101" else "classifier"
    with torch.no_grad():
        features = (_resnet if name == "resnet101" else _densenet)(doubled, picture)
        logits, maps = network.double().eval()(picture)
    expected = features.mean(dim=(2, 3)) @ doubled[f"{head}.weight"].T + doubled[f"{head}.bias"]
    expected_maps = torch.einsum("fk,nkhw->nfhw", doubled[f"{head}.weight"], features).relu()
    assert expected.std() > 0
    torch.testing.assert_close(logits, expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())
    torch.testing.assert_close(maps, expected_maps, rtol=1e-8, atol=1e-8 * expected_maps.max().item())
