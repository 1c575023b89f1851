"""The networks of Novikov et al.: parameters as printed, shapes, and what sets each apart."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from trainer.errors import RecipeError  # noqa: E402
from trainer.networks.holste_unet import parameter_count  # noqa: E402
from trainer.networks.novikov import DelayedPool, GaussianDropout  # noqa: E402
from trainer.networks.registry import make_network  # noqa: E402

FAMILY = ("all_dropout", "all_convolutional", "inverted_net")


@pytest.mark.parametrize(
    ("name", "outputs", "parameters"),
    [
        ("original_unet", 4, 31_030_788),
        ("all_dropout", 4, 31_377_988),
        ("all_convolutional", 4, 34_512_388),
        ("inverted_net", 3, 3_140_771),
        ("inverted_net", 4, 3_141_028),
    ],
)
def test_parameters_are_the_papers(name: str, outputs: int, parameters: int) -> None:
    with torch.device("meta"):
        assert parameter_count(make_network(name, 1, outputs)) == parameters


@pytest.mark.parametrize("name", ["original_unet", *FAMILY])
def test_features_of_every_depth(name: str) -> None:
    shapes: list[tuple[int, ...]] = []
    with torch.device("meta"):
        network = make_network(name, 1, 4)
        for block in network.contracting:
            block.register_forward_hook(lambda _block, _inputs, output: shapes.append(tuple(output.shape[1:])))
        assert network(torch.rand(2, 1, 128, 64)).shape == (2, 4, 128, 64)
    widths = [256, 128, 64, 32, 16] if name == "inverted_net" else [64, 128, 256, 512, 1024]
    assert shapes == [(width, 128 // 2**depth, 64 // 2**depth) for depth, width in enumerate(widths)]


def test_subsampling_is_delayed_after_the_first_pooling() -> None:
    with torch.device("meta"):
        network = make_network("inverted_net", 1, 3)
    assert [type(down) for down in network.downward] == [nn.MaxPool2d] + [DelayedPool] * 3
    assert [block[0][0].stride for block in network.contracting] == [(1, 1), (1, 1), (2, 2), (2, 2), (2, 2)]


def test_all_convolutional_pools_nothing() -> None:
    with torch.device("meta"):
        network = make_network("all_convolutional", 1, 4)
    assert not any(isinstance(module, nn.MaxPool2d | DelayedPool) for module in network.modules())
    assert [(down[0].kernel_size, down[0].stride) for down in network.downward] == [((3, 3), (2, 2))] * 4


@pytest.mark.parametrize("name", FAMILY)
def test_dropout_follows_every_activated_convolution(name: str) -> None:
    with torch.device("meta"):
        network = make_network(name, 1, 4, {"elu": True})
        without = make_network(name, 1, 4, {"dropout": 0.0})
    kinds = [type(module) for module in network.modules() if not list(module.children())]
    for place, kind in enumerate(kinds):
        if kind is nn.Conv2d and place + 1 < len(kinds):
            assert kinds[place + 1 : place + 3] == [nn.ELU, GaussianDropout]
    assert not any(isinstance(module, GaussianDropout) for module in without.modules())


def test_gaussian_dropout_has_the_papers_deviation_and_rests_in_evaluation() -> None:
    torch.manual_seed(1)
    dropout, ones = GaussianDropout(0.2), torch.ones(200_000)
    noisy = dropout(ones)
    assert float(noisy.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(noisy.std()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(dropout.eval()(ones), ones)
    with pytest.raises(ValueError, match="below 1"):
        GaussianDropout(1.0)


def test_delayed_pool_is_a_maximum_over_pixels_that_are_there() -> None:
    features = torch.randn(1, 2, 5, 4)
    pooled = DelayedPool()(features)
    assert pooled.shape == features.shape
    for row in range(5):
        for column in range(4):
            window = features[:, :, row : row + 2, column : column + 2]
            assert torch.equal(pooled[:, :, row, column], window.amax(dim=(2, 3)))


def test_widths_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(RecipeError, match="multiple of 16"):
        make_network("inverted_net", 1, 3, {"base_width": 40})
    with pytest.raises(RecipeError, match="from 0 to below 1"):
        make_network("all_dropout", 1, 3, {"dropout": 1.0})
