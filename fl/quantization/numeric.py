"""Affine quantization as numbers: choose parameters, quantize, dequantize.

A real value is `scale * (integer - zero_point)` (Jacob et al., arXiv 1712.05877, eq. 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl.core.errors import ModelFileError

SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class QParams:
    """Per-tensor parameters of an unsigned 8-bit activation; `scale` above 0, `zero_point` in [0, 255].

    `zero_point` is whole, so that 0 is exact, but for `IMAGE`.
    """

    scale: float
    zero_point: float


IMAGE = QParams(float(torch.tensor(2 / 255)), 127.5)
"""Of the network's input: the integers are the pixels, nothing is rounded. No pixel is 0, which lies between two."""


def choose_activation_qparams(low: float, high: float) -> QParams:
    """Returns parameters that map [low, high], widened to hold 0, onto 0..255; 0 is represented exactly.

    The same as torch's `MinMaxObserver` with dtype quint8, to which tests compare.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(torch.tensor((high - low) / 255, dtype=torch.float32).clamp_min(torch.finfo(torch.float32).eps))
    return QParams(scale, min(max(round(-low / scale), 0), 255))


def batch_qparams(x: Tensor) -> QParams:
    """Returns parameters for the range of a whole batch."""
    dense = x.permute(0, 2, 3, 1) if x.dim() == 4 else x  # channels_last as it lies: aminmax copies otherwise
    low, high = torch.aminmax(dense)
    return choose_activation_qparams(low.item(), high.item())


def quantize_activation(x: Tensor, qparams: QParams) -> Tensor:
    """Returns `round(x / scale) + zero_point`, clamped, as uint8 in the shape and memory layout of `x`."""
    steps = x / qparams.scale
    whole = qparams.zero_point % 1 == 0
    integers = steps.round_().add_(qparams.zero_point) if whole else steps.add_(qparams.zero_point).round_()
    return integers.clamp_(0, 255).to(torch.uint8)


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


@dataclass(frozen=True)
class GroupLevels:
    """Weights of few bits in groups along a channel: `channel's scale * group's multiplier * level`.

    Multiplier times level is an int8 value, so such weights run on INT8 kernels as they are.

    Attributes:
        bits: of a level.
        group_size: neighbours of a channel that share a multiplier; the last group may be shorter.
        levels: symmetric integers, in order, at a distance of `step`.
    """

    bits: int
    group_size: int
    levels: tuple[int, ...]

    @property
    def step(self) -> int:
        """Distance of neighbouring levels."""
        return self.levels[1] - self.levels[0]

    @property
    def most(self) -> int:
        """The largest multiplier."""
        return 127 // self.levels[-1]


GROUP_LEVELS = {4: GroupLevels(4, 32, tuple(range(-7, 8))), 2: GroupLevels(2, 16, (-3, -1, 1, 3))}


def quantize_groups(weight: Tensor, kind: GroupLevels) -> tuple[Tensor, Tensor, Tensor]:
    """Returns indices of levels (uint8, in the shape of `weight`), multipliers (uint8 [out, groups]), scales [out].

    The largest magnitude of a channel is its highest level times the largest multiplier; that of a group, as nearly as
    its multiplier allows.

    Args:
        weight: float32 [out, ...].
        kind: one of `GROUP_LEVELS`.
    """
    rows = weight.flatten(1)
    top, groups = kind.levels[-1], -(-rows.shape[1] // kind.group_size)
    padded = torch.nn.functional.pad(rows, (0, groups * kind.group_size - rows.shape[1]))
    largest = padded.reshape(len(rows), groups, kind.group_size).abs().amax(2)
    scale = (largest.amax(1) / (top * kind.most)).clamp_min(SMALLEST_SCALE)
    multiplier = (largest / (top * scale[:, None])).round_().clamp_(1, kind.most)
    unit = (scale[:, None] * multiplier).repeat_interleave(kind.group_size, 1)[:, : rows.shape[1]]
    index = ((rows / unit - kind.levels[0]) / kind.step).round_().clamp_(0, len(kind.levels) - 1)
    return index.to(torch.uint8).reshape(weight.shape), multiplier.to(torch.uint8), scale


def int8_of_groups(index: Tensor, multiplier: Tensor, kind: GroupLevels) -> Tensor:
    """Returns level times multiplier, int8 in the shape of `index`: what a channel's scale turns into weights."""
    levels = torch.tensor(kind.levels, dtype=torch.int8, device=index.device)[index.int()].flatten(1)
    factors = multiplier.to(torch.int8).repeat_interleave(kind.group_size, 1)[:, : levels.shape[1]]
    return (levels * factors).reshape(index.shape)


def pack_levels(index: Tensor, bits: int) -> Tensor:
    """Returns indices of `bits` bits packed into bytes, uint8 [n], first ones in the lowest bits."""
    per_byte = 8 // bits
    flat = torch.nn.functional.pad(index.flatten(), (0, -index.numel() % per_byte)).reshape(-1, per_byte)
    return sum((flat[:, place] << (bits * place) for place in range(per_byte)), start=torch.zeros_like(flat[:, 0]))


def unpack_levels(packed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    """Returns what `pack_levels` was given."""
    places = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    flat = (packed[:, None] >> places) & (2**bits - 1)
    return flat.flatten()[: shape.numel()].reshape(shape)


def check_fits_fp16(state: Mapping[str, Tensor]) -> None:
    """Makes sure that no finite value becomes infinite in half precision.

    Raises:
        ModelFileError: names the tensors and their largest values.
    """
    lost = [
        f"{name} ({float(tensor.abs().max()):g})"
        for name, tensor in state.items()
        if (tensor.to(torch.float16).isinf() & tensor.isfinite()).any()
    ]
    if lost:
        largest = torch.finfo(torch.float16).max
        raise ModelFileError(f"beyond the largest number of FP16, {largest:g}: {', '.join(lost)}; use FP32")


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (weight.dim() - 1))
