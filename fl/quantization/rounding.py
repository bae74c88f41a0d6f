"""INT8 weights whose rounding errors cancel.

What a filter sees is alike from pixel to pixel: what counts is less each weight's error than their sum, and nearest
rounding leaves a sum of many steps. It is made small without any images: for a kernel and for a filter, as SQuant does
(arXiv 2202.07471), and for filters that see the image itself also between neighbours, as GPTQ does (arXiv 2210.17323)
with the second moments of any photograph in place of measured ones.
"""

from functools import cache

import torch
from torch import Tensor

from fl.quantization.numeric import quantize_weight

ALIKE = 0.95
"""Correlation of neighbouring pixels, and of two colours of a pixel."""
NOISE = 0.003
"""Part of a pixel's variance that it shares with no other."""


def quantize_weight_together(weight: Tensor, sees_image: bool = False) -> tuple[Tensor, Tensor]:
    """Returns what `quantize_weight` does, with some weights one step from the nearest.

    The errors of a filter, and of each of its kernels unless it sees the image, sum to about half a step at most.

    Args:
        weight: float32 [out, in, k, k] or [out, in].
        sees_image: its inputs are pixels.
    """
    nearest, scale = quantize_weight(weight)
    exact, rounded = (weight.flatten(1) / scale[:, None]).double(), nearest.flatten(1).double()
    if sees_image:
        rounded = _diffused(exact, rounded, _likeness(*weight.shape[1:3]))
    elif weight.dim() == 4:
        kernels = (-1, weight[0, 0].numel())
        rounded = _balanced(exact.reshape(kernels), rounded.reshape(kernels)).reshape(exact.shape)
    return _balanced(exact, rounded).to(torch.int8).reshape(weight.shape), scale


def _balanced(exact: Tensor, rounded: Tensor) -> Tensor:
    """Returns `rounded` with so few elements moved a step that a row's errors sum to half a step at most.

    Those with the largest error in the direction of the sum are moved, the first of equals.
    """
    error = rounded - exact
    excess = error.sum(1, keepdim=True).round()
    order = (error * excess.sign()).argsort(dim=1, descending=True, stable=True)
    first = torch.arange(error.shape[1], device=error.device) < excess.abs()
    return rounded - excess.sign() * torch.zeros_like(first).scatter_(1, order, first)


def _diffused(exact: Tensor, nearest: Tensor, likeness: Tensor) -> Tensor:
    """Rounds column by column; columns to come make up for an error as far as their inputs are alike.

    Args:
        exact: float64 [out, n], in steps.
        nearest: `exact` rounded; no result is further than a step from it.
        likeness: float64 [n, n], second moments of the inputs.
    """
    factor = torch.linalg.cholesky(torch.linalg.inv(likeness), upper=True).to(exact.device)
    left, rounded = exact.clone(), nearest.clone()
    for column in range(exact.shape[1]):
        low, high = nearest[:, column] - 1, nearest[:, column] + 1
        rounded[:, column] = left[:, column].round().clamp(low.clamp_min(-127), high.clamp_max(127))
        error = (left[:, column] - rounded[:, column]) / factor[column, column]
        left[:, column:] -= error[:, None] * factor[column, column:]
    return rounded


@cache
def _likeness(channels: int, size: int) -> Tensor:
    """Returns second moments, float64 [n, n], of a photograph's patch of `channels` times `size` squared pixels."""
    place = torch.arange(size, dtype=torch.float64)
    across = ALIKE ** (place[:, None] - place).abs()
    colours = torch.full((channels, channels), ALIKE, dtype=torch.float64).fill_diagonal_(1.0)
    alike = torch.kron(colours, torch.kron(across, across))
    return alike + NOISE * torch.eye(len(alike), dtype=torch.float64)
