"""The network, its initial weights, and how an image becomes its input."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl.core.pixels import USUAL, Pixels
from fl.core.seeds import torch_generator


class Network(nn.Module):
    """What a model file is loaded as.

    Attributes:
        input_dtype: of the images that it takes.
        quantization_info: its precision, and what that adds; empty before a conversion.
        architecture: that built it, an `fl.models.architecture.Architecture`; None where a class was called by itself.
    """

    input_dtype: torch.dtype = torch.float32
    quantization_info: Mapping[str, Any] = MappingProxyType({})
    architecture: Any = None


class Net(Network):
    """Three convolutions with batch normalization, then three linear layers: 434,602 parameters for ten classes.

    Input: float [n, 3, 64, 64] from `to_input`; output: logits [n, num_classes].
    """

    convolution: type[nn.Conv2d] = nn.Conv2d
    features = 128
    """Inputs of the last layer."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = self.convolution(in_channels, 32, 5)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = self.convolution(32, 64, 5)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = self.convolution(64, 96, 3)
        self.bn3 = nn.BatchNorm2d(96)
        self.fc1 = nn.Linear(2400, 128)
        self.fc2 = nn.Linear(128, self.features)
        self.fc3 = nn.Linear(self.features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self._activated(self.bn1(self.conv1(x)))
        x = self._activated(self.bn2(self.conv2(x)))
        x = self._activated(self.bn3(self.conv3(x)))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))

    def initialize(self, generator: torch.Generator) -> None:
        """Draws weights by He initialization (arXiv 1502.01852, section 2.2).

        With torch's default, whose weights are smaller, clients' models drift further apart in the first rounds and
        their mean is worse (docs/results.md).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    @property
    def num_classes(self) -> int:
        """How many classes it tells apart."""
        return self.fc3.out_features

    def _activated(self, x: Tensor) -> Tensor:
        """Returns ReLU and pooling by two, in the order that is faster; answers and gradients are the same to the bit.

        Training is quicker with a quarter of the values; runtimes of deployed models join a convolution and its ReLU.
        """
        return F.relu(F.max_pool2d(x, 2)) if self.training else F.max_pool2d(F.relu(x), 2)


def to_input(images: Tensor, dtype: torch.dtype = torch.float32, pixels: Pixels = USUAL) -> Tensor:
    """Returns a network's input, channels_last: `(x / 255 - 0.5) / 0.5`, or by each band's mean and deviation.

    Args:
        images: [n, height, width, bands]; of 8 bits where `pixels` has no means.
        dtype: floating type of the result [n, bands, height, width].
        pixels: what the images are normalised by.
    """
    if not pixels.mean:
        return images.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5).to(dtype)
    mean, deviation = torch.tensor([pixels.mean, pixels.deviation], device=images.device).view(2, -1, 1, 1)
    return images.permute(0, 3, 1, 2).to(torch.float32, copy=True).sub_(mean).div_(deviation).to(dtype)


M = TypeVar("M", bound=nn.Module)


def channels_last(model: M) -> M:
    """Returns `model` with its weights laid out as images are, which convolutions are fastest with."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def initial_model(num_classes: int, seed: int) -> Net:
    """Returns the network with weights that depend on `num_classes` and `seed` only."""
    model = Net(num_classes)
    model.initialize(torch_generator(seed, "init"))
    return model


def num_parameters(model: nn.Module) -> int:
    """Returns the number of trainable values (BatchNorm's statistics are not parameters)."""
    return sum(parameter.numel() for parameter in model.parameters())
