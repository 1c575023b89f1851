"""The published networks, written down a second time: torchvision's names and shapes from the papers' tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

Shapes = dict[str, tuple[int, ...]]

#: Layers per dense block: Huang et al., "Densely connected convolutional networks", Table 1.
DENSE_BLOCKS = {"densenet121": (6, 12, 24, 16), "densenet169": (6, 12, 32, 32)}
GROWTH = 32
#: Bottleneck blocks per stage: He et al., "Deep residual learning for image recognition", Table 1.
RESIDUAL_STAGES = (3, 4, 23, 3)


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def _densenet(name: str, outputs: int) -> Shapes:
    shapes: Shapes = {"features.conv0.weight": (64, 3, 7, 7), **_norm("features.norm0", 64)}
    channels = 64
    blocks = DENSE_BLOCKS[name]
    for block, layers in enumerate(blocks, 1):
        for layer in range(1, layers + 1):
            where = f"features.denseblock{block}.denselayer{layer}"
            shapes |= _norm(f"{where}.norm1", channels)
            shapes[f"{where}.conv1.weight"] = (4 * GROWTH, channels, 1, 1)
            shapes |= _norm(f"{where}.norm2", 4 * GROWTH)
            shapes[f"{where}.conv2.weight"] = (GROWTH, 4 * GROWTH, 3, 3)
            channels += GROWTH
        if block < len(blocks):
            shapes |= _norm(f"features.transition{block}.norm", channels)
            shapes[f"features.transition{block}.conv.weight"] = (channels // 2, channels, 1, 1)
            channels //= 2
    shapes |= _norm("features.norm5", channels)
    return shapes | {"classifier.weight": (outputs, channels), "classifier.bias": (outputs,)}


def _resnet101(outputs: int) -> Shapes:
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    channels = 64
    for stage, blocks in enumerate(RESIDUAL_STAGES, 1):
        width = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            where = f"layer{stage}.{block}"
            shapes[f"{where}.conv1.weight"] = (width, channels, 1, 1)
            shapes |= _norm(f"{where}.bn1", width)
            shapes[f"{where}.conv2.weight"] = (width, width, 3, 3)
            shapes |= _norm(f"{where}.bn2", width)
            shapes[f"{where}.conv3.weight"] = (4 * width, width, 1, 1)
            shapes |= _norm(f"{where}.bn3", 4 * width)
            if block == 0:
                shapes[f"{where}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                shapes |= _norm(f"{where}.downsample.1", 4 * width)
            channels = 4 * width
    return shapes | {"fc.weight": (outputs, channels), "fc.bias": (outputs,)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small wait for their threads longer than they compute, above all beside other tests."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def published_shapes() -> Callable[..., Shapes]:
    """``(name, outputs) -> {torchvision's name: shape}`` without the ``num_batches_tracked`` counters."""

    def shapes(name: str, outputs: int = 1000) -> Shapes:
        return _resnet101(outputs) if name == "resnet101" else _densenet(name, outputs)

    return shapes
