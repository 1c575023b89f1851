"""The pediatric classifier's three networks, section 3.4: DenseNet-121, DenseNet-169 and ResNet-101.

"The original implementations with some minor modifications": the published layers, as MONAI has
them, with a new linear layer of one output per finding; the sigmoid belongs to the loss and
to the export. MONAI's ResNet-101 is the published one only with a stride of 2 in its
first convolution and without biases in its shortcuts.

Only the layers are MONAI's. They are kept under two names, ``features`` and ``head``, so that a file's names
differ from torchvision's little: see :mod:`trainer.networks.checkpoints`.
"""

from __future__ import annotations

from collections import OrderedDict

from monai.networks.nets.densenet import DenseNet, DenseNet121, DenseNet169
from monai.networks.nets.resnet import resnet101
from torch import nn

from trainer.networks.pooled import PooledClassifier


def densenet121_classifier(channels: int, findings: int) -> PooledClassifier:
    """DenseNet-121; maps (N, F, H/32, W/32). 6,964,106 parameters with 3 channels and 10 findings."""
    return _densenet(DenseNet121(spatial_dims=2, in_channels=channels, out_channels=findings), findings)


def densenet169_classifier(channels: int, findings: int) -> PooledClassifier:
    """DenseNet-169; maps (N, F, H/32, W/32). 12,501,130 parameters with 3 channels and 10 findings."""
    return _densenet(DenseNet169(spatial_dims=2, in_channels=channels, out_channels=findings), findings)


def resnet101_classifier(channels: int, findings: int) -> PooledClassifier:
    """ResNet-101; maps (N, F, H/32, W/32). 42,520,650 parameters with 3 channels and 10 findings."""
    whole = resnet101(
        spatial_dims=2, n_input_channels=channels, conv1_t_stride=2, bias_downsample=False, feed_forward=False
    )
    layers = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
    features = nn.Sequential(OrderedDict((name, getattr(whole, name)) for name in layers))
    return PooledClassifier(features, 2048, findings)


def _densenet(whole: DenseNet, findings: int) -> PooledClassifier:
    """MONAI ends its features with ``norm5`` and pools behind a ReLU: the maps need that ReLU as well."""
    features = whole.features
    features.add_module("relu5", nn.ReLU(inplace=True))
    return PooledClassifier(features, whole.class_layers.out.in_features, findings)
