"""What executes an INT8 layer: oneDNN's INT8 kernels where they are right on this CPU, else the reference.

The reference dequantizes, computes in float32 and quantizes again. The kernels may be missing, or saturate on a
CPU without the instructions they need, so they are first compared with the reference on a fixed input of
extreme values.
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fl.quantization.numeric import (
    QParams,
    dequantize_activation,
    dequantize_weight,
    quantize_activation,
    quantize_weight,
)

ONEDNN, REFERENCE = "onednn-int8", "reference-fp32"


@cache
def adds_integers() -> bool:
    """Tells whether oneDNN's convolution adds integers to its sums as the reference does, on this CPU."""
    generator = torch.Generator().manual_seed(1)
    weight, scale = quantize_weight(torch.randn((16, 8, 3, 3), generator=generator))
    x, into = (
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).contiguous(
            memory_format=torch.channels_last
        )
        for shape in ((4, 8, 6, 6), (4, 16, 4, 4))
    )
    bias, incoming, outgoing, qparams = torch.zeros(16), QParams(0.02, 3), QParams(0.1, 9), QParams(0.05, 40)
    exact = run_reference(
        x, incoming, weight, scale, bias, relu=True, outgoing=outgoing, added=Added(into.clone(), qparams)
    )
    zero_points = torch.zeros_like(scale, dtype=torch.int32)
    before = (x, incoming.scale, int(incoming.zero_point), pack(weight, scale), scale, zero_points, bias)
    try:
        found = _run_sum(before, into, qparams, True, outgoing, NO_GEOMETRY)
    except (RuntimeError, AttributeError):
        return False
    return bool((exact.int() - found.int()).abs().max() <= 1)


@cache
def cpu_kernels() -> str:
    """Returns `ONEDNN` if its kernels agree with the reference on this CPU, else `REFERENCE`."""
    try:
        agrees = all(_agrees(weight_shape, image) for weight_shape, image in (((16, 8, 3, 3), True), ((16, 72), False)))
    except (RuntimeError, AttributeError):
        agrees = False
    return ONEDNN if agrees else REFERENCE


def _agrees(weight_shape: tuple[int, ...], is_image: bool) -> bool:
    """Compares float and uint8 results on values that make 16-bit accumulation overflow."""
    generator = torch.Generator().manual_seed(0)
    weight, scale = quantize_weight(torch.randn(weight_shape, generator=generator).sign() * 0.5)
    shape = (4, 8, 6, 6) if is_image else (4, 72)
    x = torch.randint(200, 256, shape, generator=generator, dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last) if is_image else x
    bias = torch.randn(weight_shape[0], generator=generator)
    incoming, outgoing = QParams(0.02, 3), QParams(0.7, 0)
    exact = run_reference(x, incoming, weight, scale, bias, relu=False, outgoing=None)
    packed = pack(weight, scale)
    fast = run_onednn(x, incoming, packed, scale, bias, relu=False, outgoing=None)
    exact_integers = run_reference(x, incoming, weight, scale, bias, relu=True, outgoing=outgoing)
    fast_integers = run_onednn(x, incoming, packed, scale, bias, relu=True, outgoing=outgoing)
    difference = (exact_integers.int() - fast_integers.int()).abs().max()
    return bool(torch.allclose(exact, fast, rtol=1e-4, atol=1e-3) and difference <= 1)


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over an image."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @classmethod
    def of(cls, layer: Any) -> "Geometry | None":
        """Returns that of a `nn.Conv2d`, None for a `nn.Linear`."""
        return cls(*(getattr(layer, each.name) for each in fields(cls))) if hasattr(layer, "stride") else None

    def lists(self) -> tuple[list[int], list[int], list[int], int]:
        """Returns what torch's operators take."""
        return list(self.stride), list(self.padding), list(self.dilation), self.groups


NO_GEOMETRY = Geometry()


@dataclass(frozen=True)
class Added:
    """What is added to a layer's result, in its shape: uint8 with parameters, or float32 without."""

    values: Tensor
    qparams: QParams | None


def run_reference(  # nine: those of the kernel that it stands for
    x: Tensor,
    incoming: QParams,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    relu: bool,
    outgoing: QParams | None,
    geometry: Geometry | None = NO_GEOMETRY,
    added: Added | None = None,
) -> Tensor:
    """Returns the layer's output, computed in float32.

    Args:
        x: uint8 [n, in, height, width] for a convolution, [..., in] for a linear layer.
        incoming: of `x`.
        weight: int8 [out, in / groups, k, k] or [out, in].
        scale: float32 [out].
        bias: float32 [out].
        relu: apply ReLU, after the addition.
        outgoing: quantize the result with these; float32 when None.
        geometry: of the convolution; None for a linear layer.
        added: to the result, before it is rounded.
    """
    values, weights = dequantize_activation(x, incoming), dequantize_weight(weight, scale)
    if weight.dim() == 4 and geometry is not None:
        y = F.conv2d(values, weights, bias, *geometry.lists())
    else:
        y = F.linear(values, weights, bias)
    return _finished(y, added, relu, outgoing)


def _finished(y: Tensor, added: Added | None, relu: bool, outgoing: QParams | None) -> Tensor:
    """Returns a layer's sums, float32, with what is added, after ReLU, in integers where there are parameters."""
    if added is not None:
        y = y + (added.values if added.qparams is None else dequantize_activation(added.values, added.qparams))
    y = F.relu(y) if relu else y
    return y if outgoing is None else quantize_activation(y, outgoing)


def pack(weight: Tensor, scale: Tensor, geometry: Geometry | None = NO_GEOMETRY) -> Tensor:
    """Returns `weight` (int8) in the layout that oneDNN prefers."""
    if weight.dim() == 4 and geometry is not None:
        return torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 0, *geometry.lists(), None)
    return torch.ops.onednn.qlinear_prepack(weight, None)


def run_onednn(  # nine: those of torch's kernel
    x: Tensor,
    incoming: QParams,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    relu: bool,
    outgoing: QParams | None,
    geometry: Geometry | None = NO_GEOMETRY,
    added: Added | None = None,
) -> Tensor:
    """As `run_reference`, in integer arithmetic, with `packed` from `pack` and whole zero points.

    Integers that are added to integers may be overwritten with the result.
    """
    if added is not None and (added.qparams is None or outgoing is None or not adds_integers()):
        sums = run_onednn(x, incoming, packed, scale, bias, relu=False, outgoing=None, geometry=geometry)
        return _finished(sums, added, relu, outgoing)
    zero_points = torch.zeros_like(scale, dtype=torch.int32)
    ops: Any = torch.ops.onednn
    before = (x, incoming.scale, int(incoming.zero_point), packed, scale, zero_points, bias)
    if added is not None and geometry is not None and outgoing is not None and added.qparams is not None:
        return _run_sum(before, added.values, added.qparams, relu, outgoing, geometry)
    out = (1.0, 0, torch.float32) if outgoing is None else (outgoing.scale, int(outgoing.zero_point), torch.uint8)
    after: tuple[Any, ...] = (*out, "relu" if relu else "none", [], "")
    if x.dim() == 4 and geometry is not None:
        result: Tensor = ops.qconv_pointwise(*before, *geometry.lists(), *after)
    else:
        result = ops.qlinear_pointwise(*before, *after)
    return result


def _run_sum(  # six: those of torch's kernel, in groups
    before: tuple[Any, ...], into: Tensor, qparams: QParams, relu: bool, outgoing: QParams, geometry: Geometry
) -> Tensor:
    """Returns a convolution's sums and `into`, rounded once; `into` may be overwritten."""
    *first, bias = before
    into = into.contiguous(memory_format=torch.channels_last)
    out = (outgoing.scale, int(outgoing.zero_point), torch.uint8, qparams.scale, int(qparams.zero_point))
    after: tuple[Any, ...] = (*out, "sum", 1.0, ("none", "relu")[relu], [], "")
    result: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(*first, into, bias, *geometry.lists(), *after)
    return result


Size = int | tuple[int, int]


def max_pool(  # six: those of torch's own
    x: Tensor,
    kernel_size: Size = 2,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Returns maxima as `F.max_pool2d` of float32 or uint8 [n, channels, height, width]."""
    if x.dtype != torch.uint8:
        return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    if x.device.type == "cpu":
        sizes = (_pair(each) for each in (kernel_size, stride or kernel_size, padding, dilation))
        pooled: Tensor = torch.ops.quantized.max_pool2d(x, *sizes, ceil_mode)
        return pooled
    own = (kernel_size, stride, padding, dilation, ceil_mode)  # torch has no CUDA pooling of uint8
    return F.max_pool2d(x.float(), *own).to(torch.uint8)


def _pair(size: Size) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)
