"""Quantization-aware training: a network computes with what quantized weights and activations stand for."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl.models.net import Network
from fl.quantization.folding import always_int8, quantizable
from fl.quantization.numeric import (
    GROUP_LEVELS,
    GroupLevels,
    batch_qparams,
    dequantize_weight,
    int8_of_groups,
    quantize_groups,
    quantize_weight,
)


def aware(network: Network, bits: int) -> Network:
    """Makes a network compute as an integer model will: it is changed in place and returned.

    Weights of convolutions and linear layers are rounded to the nearest (BatchNorm multiplies whole channels, which
    changes their scale and nothing else), their inputs, the image too, over the range of the batch: with 8 bits a
    little more is lost than will be in the integer model, whose errors cancel. Gradients pass as if nothing was
    rounded. State dict and parameters stay as they are.

    Args:
        network: any; layers derived from `nn.Conv2d` and `nn.Linear` stay as they are.
        bits: of weights, 8 or a key of `GROUP_LEVELS`; first and last layer always have 8.
    """
    ends = always_int8(network)
    for name, layer in quantizable(network).items():
        made: Any = layer
        made.__class__ = AwareConv2d if isinstance(layer, nn.Conv2d) else AwareLinear
        made.groups_of_levels = None if bits == 8 or name in ends else GROUP_LEVELS[bits]
    return network


class AwareConv2d(nn.Conv2d):
    """A convolution in what its quantized form will stand for."""

    groups_of_levels: GroupLevels | None

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(_as_quantized(input), _rounded(self.weight, self.groups_of_levels), self.bias)


class AwareLinear(nn.Linear):
    """A linear layer in what its quantized form will stand for."""

    groups_of_levels: GroupLevels | None

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(_as_quantized(input), _rounded(self.weight, self.groups_of_levels), self.bias)


def _rounded(weight: Tensor, groups: GroupLevels | None) -> Tensor:
    values = weight.detach()
    if groups is None:
        rounded = dequantize_weight(*quantize_weight(values))
    else:
        index, multiplier, scale = quantize_groups(values, groups)
        rounded = dequantize_weight(int8_of_groups(index, multiplier, groups), scale)
    return weight + (rounded - values)


def _as_quantized(x: Tensor) -> Tensor:
    qparams = batch_qparams(x.detach())
    return torch.fake_quantize_per_tensor_affine(x, qparams.scale, int(qparams.zero_point), 0, 255)
