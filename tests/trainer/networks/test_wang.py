"""Wang's U-Net on a ResNet-34."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from trainer.networks.holste_unet import parameter_count  # noqa: E402
from trainer.networks.registry import make_network  # noqa: E402


def test_the_encoder_is_the_published_resnet34() -> None:
    with torch.device("meta"):
        network = make_network("resnet34_unet", 3, 1)
    # Those of the 1000-class network, 21,797,672, without its last layer.
    assert parameter_count(network.encoder) == 21_797_672 - (512 * 1000 + 1000)
    assert parameter_count(network) == 24_436_369
    names = {"layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer4.2.bn2.running_var"}
    assert names <= set(network.encoder.state_dict())


def test_features_of_every_size_are_joined() -> None:
    joined: list[tuple[int, ...]] = []
    with torch.device("meta"):
        network = make_network("resnet34_unet", 3, 5)
        for block in network.expanding:
            block.register_forward_hook(lambda _block, given, _output: joined.append(tuple(given[0].shape[1:])))
        assert network(torch.rand(2, 3, 256, 128)).shape == (2, 5, 256, 128)
    assert joined == [
        (512 + 256, 16, 8),
        (256 + 128, 32, 16),
        (128 + 64, 64, 32),
        (64 + 64, 128, 64),
        (32, 256, 128),
    ]
