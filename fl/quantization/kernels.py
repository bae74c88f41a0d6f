"""What executes an INT8 layer: oneDNN's INT8 kernels where they are right on this CPU, else the reference.

The reference dequantizes, computes in float32 and quantizes again. The kernels may be missing, or saturate on a
CPU without the instructions they need, so they are first compared with the reference on a fixed input of
extreme values.
"""

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


def run_reference(  # seven: those of the kernel that it stands for
    x: Tensor, incoming: QParams, weight: Tensor, scale: Tensor, bias: Tensor, *, relu: bool, outgoing: QParams | None
) -> Tensor:
    """Returns the layer's output, computed in float32.

    Args:
        x: uint8 [n, in, height, width] for a convolution (stride 1, no padding), [n, in] for a linear layer.
        incoming: of `x`.
        weight: int8 [out, in, k, k] or [out, in].
        scale: float32 [out].
        bias: float32 [out].
        relu: apply ReLU.
        outgoing: quantize the result with these; float32 when None.
    """
    layer = F.conv2d if weight.dim() == 4 else F.linear
    y = layer(dequantize_activation(x, incoming), dequantize_weight(weight, scale), bias)
    y = F.relu(y) if relu else y
    return y if outgoing is None else quantize_activation(y, outgoing)


def pack(weight: Tensor, scale: Tensor) -> Tensor:
    """Returns `weight` (int8) in the layout that oneDNN prefers."""
    if weight.dim() == 4:
        return torch.ops.onednn.qconv_prepack(weight, scale, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)
    return torch.ops.onednn.qlinear_prepack(weight, None)


def run_onednn(  # seven: those of torch's kernel
    x: Tensor, incoming: QParams, packed: Tensor, scale: Tensor, bias: Tensor, *, relu: bool, outgoing: QParams | None
) -> Tensor:
    """As `run_reference`, in integer arithmetic, with `packed` from `pack` and whole zero points."""
    zero_points = torch.zeros_like(scale, dtype=torch.int32)
    ops: Any = torch.ops.onednn
    before = (x, incoming.scale, int(incoming.zero_point), packed, scale, zero_points, bias)
    out = (1.0, 0, torch.float32) if outgoing is None else (outgoing.scale, int(outgoing.zero_point), torch.uint8)
    after: tuple[Any, ...] = (*out, "relu" if relu else "none", [], "")
    if x.dim() == 4:
        result: Tensor = ops.qconv_pointwise(*before, [1, 1], [0, 0], [1, 1], 1, *after)
    else:
        result = ops.qlinear_pointwise(*before, *after)
    return result


def max_pool(x: Tensor) -> Tensor:
    """Returns 2x2 maxima of float32 or uint8 [n, channels, height, width] (torch has no CUDA pooling of uint8)."""
    if x.dtype != torch.uint8:
        return F.max_pool2d(x, 2)
    if x.device.type == "cpu":
        pooled: Tensor = torch.ops.quantized.max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], False)
        return pooled
    return F.max_pool2d(x.float(), 2).to(torch.uint8)
