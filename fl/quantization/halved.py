"""A network in FP16."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from fl.models.net import Network

NORMS = nn.modules.batchnorm._BatchNorm


class HalfConv2d(nn.Conv2d):
    """A Conv2d that a CPU without FP16 convolutions computes in float32 and rounds to FP16.

    Weights and activations are FP16 either way, and accumulation is float32, as in kernels made for FP16;
    torch's fallback for such a CPU is correct too, but about seven times slower.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or native_half_convolution():
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(input.float(), self.weight.float(), bias).half()


def native_half_convolution() -> bool:
    """Tells whether this CPU has FP16 convolutions (AVX512-FP16 or AMX-FP16)."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def halved(model: Network, keep_batchnorm_fp32: bool = False) -> Network:
    """Returns a copy in FP16: any float input is cast, and the output is FP16.

    Args:
        model: FP32.
        keep_batchnorm_fp32: weights and statistics of BatchNorm stay.
    """
    half: Any = copy.deepcopy(model).eval()
    for module in half.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = HalfConv2d
        if not (keep_batchnorm_fp32 and isinstance(module, NORMS)):
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and tensor.is_floating_point():
                    setattr(module, name, _same_kind(tensor, tensor.half()))
    half.__class__ = type(f"Half{type(model).__name__}", (_Half, type(model)), {})
    half.input_dtype = torch.float16
    return cast(Network, half)


def _same_kind(tensor: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


class _Half(nn.Module):
    """What the class of a network in FP16 has beside its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.half())

    @property
    def kernels(self) -> str:
        """What executes the convolutions where the model is now."""
        if next(iter(self.state_dict().values())).device.type == "cuda":
            return "cuda-fp16"
        return "onednn-fp16" if native_half_convolution() else "fp16-storage-fp32-arithmetic"
