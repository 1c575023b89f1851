"""Holste's U-Net to the last parameter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from trainer.networks.holste_unet import HolsteUNet, parameter_count  # noqa: E402


def test_has_the_papers_parameters() -> None:
    assert parameter_count(HolsteUNet(channels=1, regions=8, base_width=32)) == 8_637_000


def test_layers_have_the_papers_shapes() -> None:
    network = HolsteUNet()
    convolutions = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [
        (32, 1, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3),
        (256, 128, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3), (512, 512, 3, 3),
        (256, 512, 3, 3), (256, 256, 3, 3), (128, 256, 3, 3), (128, 128, 3, 3),
        (64, 128, 3, 3), (64, 64, 3, 3), (32, 64, 3, 3), (32, 32, 3, 3), (8, 32, 1, 1),
    ]  # fmt: skip
    transposed = [m for m in network.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [tuple(m.weight.shape) for m in transposed] == [
        (512, 256, 3, 3), (256, 128, 3, 3), (128, 64, 3, 3), (64, 32, 3, 3),
    ]  # fmt: skip
    assert all(m.stride == (2, 2) for m in transposed)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert norms == len(convolutions) - 1 + len(transposed)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (64, 96)])
def test_logits_lie_on_the_pictures_grid(height: int, width: int) -> None:
    logits = HolsteUNet(base_width=4).eval()(torch.rand(2, 1, height, width))
    assert logits.shape == (2, 8, height, width)
    assert torch.isfinite(logits).all()


def test_activation_comes_before_normalisation() -> None:
    block = HolsteUNet(base_width=4).upsampling[0]
    kinds = [type(layer).__name__ for layer in block]
    assert kinds == ["ConvTranspose2d", "ReLU", "BatchNorm2d"]
