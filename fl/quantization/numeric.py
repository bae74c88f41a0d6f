"""Affine quantization as numbers: choose parameters, quantize, dequantize.

A real value is `scale * (integer - zero_point)` (Jacob et al., arXiv 1712.05877, eq. 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class QParams:
    """Per-tensor parameters of an unsigned 8-bit activation; `scale` above 0, `zero_point` in [0, 255]."""

    scale: float
    zero_point: int


def choose_activation_qparams(low: float, high: float) -> QParams:
    """Returns parameters that map [low, high], widened to hold 0, onto 0..255; 0 is represented exactly.

    The same as torch's `MinMaxObserver` with dtype quint8, to which tests compare.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor((high - low) / 255, dtype=torch.float32).clamp_min(torch.finfo(torch.float32).eps))
    return QParams(scale, min(max(round(-low / scale), 0), 255))


def quantize_activation(x: Tensor, qparams: QParams) -> Tensor:
    """Returns `round(x / scale) + zero_point`, clamped, as uint8 in the shape and memory layout of `x`."""
    return (x / qparams.scale).round_().add_(qparams.zero_point).clamp_(0, 255).to(torch.uint8)


def dequantize_activation(q: Tensor, qparams: QParams) -> Tensor:
    """Returns float32 values of uint8 `q`."""
    return (q.float() - qparams.zero_point) * qparams.scale


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (int8 values in [-127, 127], float32 scales): symmetric, one scale per output channel.

    Args:
        weight: float32 [out, ...]. A channel of zeros gets the smallest scale there is.
    """
    scale = (weight.abs().amax(dim=tuple(range(1, weight.dim()))) / 127).clamp_min(SMALLEST_SCALE)
    return (weight / _per_channel(scale, weight)).round().clamp(-127, 127).to(torch.int8), scale


def dequantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Returns float32 values of int8 `weight` [out, ...] with `scale` [out]."""
    return weight.float() * _per_channel(scale, weight)


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))
