"""Networks of torchvision, for any number of bands, as published or made for small images."""

from typing import Literal

from torch import nn

import fl.core.torchvision_import  # noqa: F401  first

from torchvision import models  # isort: skip

Stem = Literal["small", "published"]
STEMS = ("small", "published")


def resnet18(num_classes: int = 10, in_channels: int = 3, stem: Stem = "small") -> nn.Module:
    """Returns a ResNet-18 (arXiv 1512.03385, table 1).

    Args:
        num_classes: logits.
        in_channels: bands of an image.
        stem: "published": 7 x 7 with stride 2, then pooling by two. "small": 3 x 3 with stride 1 and no pooling, as
            usual for small images, which four times sixteen would leave little of.

    Raises:
        ValueError: there is no such stem.
    """
    _check(stem)
    network = models.resnet18(num_classes=num_classes)
    if stem == "small":
        network.conv1, network.maxpool = _first(in_channels, 64, 3, 1), nn.Identity()
    elif in_channels != network.conv1.in_channels:
        network.conv1 = _first(in_channels, 64, 7, 2)
    return network


def mobilenet_v3_small(num_classes: int = 10, in_channels: int = 3, stem: Stem = "small") -> nn.Module:
    """Returns a MobileNetV3-small (arXiv 1905.02244, table 2).

    Args:
        num_classes: logits.
        in_channels: bands of an image.
        stem: of the first layer: "published", stride 2, or "small", stride 1.

    Raises:
        ValueError: there is no such stem.
    """
    _check(stem)
    network = models.mobilenet_v3_small(num_classes=num_classes)
    if stem == "small" or in_channels != 3:
        network.features[0][0] = _first(in_channels, 16, 3, 1 if stem == "small" else 2)
    return network


def _first(in_channels: int, out_channels: int, size: int, stride: int) -> nn.Conv2d:
    """Returns a first convolution with weights as torchvision draws them."""
    layer = nn.Conv2d(in_channels, out_channels, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _check(stem: str) -> None:
    if stem not in STEMS:
        raise ValueError(f"must be one of {', '.join(STEMS)}")
