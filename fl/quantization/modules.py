"""The network in integers and FP16, and as quantization-aware training sees it."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fl.models.net import Net, Network
from fl.quantization.kernels import REFERENCE, cpu_kernels, max_pool, pack, run_onednn, run_reference
from fl.quantization.numeric import (
    GROUP_LEVELS,
    IMAGE,
    GroupLevels,
    QParams,
    choose_activation_qparams,
    dequantize_weight,
    int8_of_groups,
    pack_levels,
    quantize_activation,
    quantize_groups,
    quantize_weight,
    unpack_levels,
)
from fl.quantization.rounding import quantize_weight_together

CONVOLUTIONS, LINEARS = ("conv1", "conv2", "conv3"), ("fc1", "fc2", "fc3")
LAYERS = CONVOLUTIONS + LINEARS
ALWAYS_INT8 = (LAYERS[0], LAYERS[-1])
"""Layers that never get fewer bits: they have the most sensitive weights (docs/results.md), and few of them."""


def fold_batch_norm(model: Net) -> Net:
    """Returns a copy in evaluation mode with each BatchNorm folded into its convolution; same outputs up to rounding.

    The folded BatchNorms are `nn.Identity`.
    """
    folded = copy.deepcopy(model).eval()
    for name in CONVOLUTIONS:
        norm = name.replace("conv", "bn")
        setattr(folded, name, fuse_conv_bn_eval(getattr(folded, name), getattr(folded, norm)))
        setattr(folded, norm, nn.Identity())
    return folded


class QuantizedLayer(nn.Module):
    """A Conv2d (stride 1, no padding) or Linear with int8 weights per output channel; bias stays float32.

    Its input is uint8 with parameters of its own: stored, or given with every call.
    """

    def __init__(self, layer: Any, stored: QParams | None) -> None:
        super().__init__()
        self.weight: Tensor
        self.input_scale: Tensor
        self.input_zero_point: Tensor
        self.weight_scale: Tensor
        self.bias: Tensor
        self._store(layer.weight.detach(), sees_image=stored == IMAGE)
        self.register_buffer("bias", layer.bias.detach().clone())
        if stored is not None:
            self.store_input(stored)
        self._packed: tuple[Tensor, Tensor] | None = None

    def _store(self, weight: Tensor, sees_image: bool) -> None:
        """Registers the buffers that hold the weight."""
        integers, scale = quantize_weight_together(weight, sees_image)
        self.register_buffer("weight", integers)
        self.register_buffer("weight_scale", scale)

    def store_input(self, qparams: QParams) -> None:
        """Registers the input parameters; those of the image need no place in files."""
        is_image = qparams == IMAGE
        zero_point = torch.tensor(qparams.zero_point, dtype=torch.float32 if is_image else torch.int32)
        self.register_buffer("input_scale", torch.tensor(qparams.scale), persistent=not is_image)
        self.register_buffer("input_zero_point", zero_point, persistent=not is_image)

    def stored_input(self) -> QParams | None:
        """Returns the stored input parameters, None where there are none."""
        if not hasattr(self, "input_scale"):
            return None
        return QParams(self.input_scale.item(), self.input_zero_point.item())

    def forward(self, x: Tensor, incoming: QParams, *, relu: bool, outgoing: QParams | None = None) -> Tensor:
        if x.device.type != "cpu" or cpu_kernels() == REFERENCE:
            scale, bias = self.weight_scale, self.bias
            return run_reference(x, incoming, self.weight, scale, bias, relu=relu, outgoing=outgoing)
        if self._packed is None:
            sums = dequantize_weight(self.weight, self.weight_scale).flatten(1).sum(1)
            self._packed = pack(self.weight, self.weight_scale), sums
        packed, sums = self._packed
        half = incoming.zero_point % 1  # the kernels know whole zero points: the rest goes into the bias
        bias = self.bias - half * incoming.scale * sums if half else self.bias
        return run_onednn(x, incoming, packed, self.weight_scale, bias, relu=relu, outgoing=outgoing)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # a packed weight can be neither copied nor pickled

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)


class GroupedLayer(QuantizedLayer):
    """A layer that stores levels of few bits, packed, and computes with the int8 weights they stand for."""

    def __init__(self, layer: nn.Module, kind: GroupLevels) -> None:
        self._kind = kind
        super().__init__(layer, None)

    def _store(self, weight: Tensor, sees_image: bool) -> None:
        index, multiplier, scale = quantize_groups(weight, self._kind)
        self.register_buffer("levels", pack_levels(index, self._kind.bits))
        self.register_buffer("multiplier", multiplier)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight", int8_of_groups(index, multiplier, self._kind), persistent=False)
        self.levels: Tensor
        self.multiplier: Tensor

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        index = unpack_levels(self.levels, self._kind.bits, self.weight.shape)
        if index.max() >= len(self._kind.levels) or self.multiplier.max() > self._kind.most:
            raise ValueError(f"levels or multipliers beyond those of {self._kind.bits} bits")
        self.weight = int8_of_groups(index, self.multiplier, self._kind)


class QuantizedNet(Network):
    """`Net` with every convolution and linear layer in INT8 and BatchNorm folded.

    The first layer is given the image's own integers. Dynamic: other activations travel as float32 and are quantized
    before each layer over the range of the whole batch, so a prediction depends, slightly, on its batch. Static: ranges
    are stored, and activations stay uint8 from the input to the last layer's float32 logits. With `groups`, dynamic,
    weights but for those of `ALWAYS_INT8` have fewer bits than 8.

    Attributes:
        layout: of the state dict. In 1, the image is quantized as any activation is.
    """

    def __init__(
        self, model: Net, static_inputs: dict[str, QParams] | None = None, groups: GroupLevels | None = None
    ) -> None:
        super().__init__()
        self.layout = 2
        folded, stored = fold_batch_norm(model), {**(static_inputs or {}), LAYERS[0]: IMAGE}
        self.static = static_inputs is not None
        for name in LAYERS:
            layer = getattr(folded, name)
            if groups is not None and name not in ALWAYS_INT8:
                self.add_module(name, GroupedLayer(layer, groups))
            else:
                self.add_module(name, QuantizedLayer(layer, stored.get(name)))
        self._inputs: list[QParams | None] | None = None

    def use_layout(self, layout: int) -> None:
        """Makes this a model that a state dict of an older layout fits.

        Raises:
            ValueError: there is no such layout.
        """
        if layout not in (1, 2):
            raise ValueError(f"layout {layout} is not known to this version of quantfl")
        self.layout, first = layout, dict(self._layers())[LAYERS[0]]
        if layout == 1:
            del first.input_scale, first.input_zero_point
        if layout == 1 and self.static:
            first.store_input(QParams(1.0, 0))

    @property
    def kernels(self) -> str:
        """What executes the layers where the model is now."""
        return cpu_kernels() if self.get_buffer("conv1.weight").device.type == "cpu" else REFERENCE

    def _layers(self) -> Iterator[tuple[str, QuantizedLayer]]:
        for name in LAYERS:
            yield name, cast(QuantizedLayer, self.get_submodule(name))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._inputs = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        if self._inputs is None:
            self._inputs = [layer.stored_input() for _, layer in self._layers()]
        outputs = [*self._inputs[1:], None]
        for (name, layer), stored, outgoing in zip(self._layers(), self._inputs, outputs, strict=True):
            incoming = stored or batch_qparams(x)
            x = x if x.dtype == torch.uint8 else quantize_activation(x, incoming)
            x = _after(name, layer(x, incoming, relu=name != LAYERS[-1], outgoing=outgoing))
        return x


def _after(name: str, x: Tensor) -> Tensor:
    """Pools after a convolution, flattens after the last one."""
    x = max_pool(x) if name in CONVOLUTIONS else x
    return x.flatten(1) if name == CONVOLUTIONS[-1] else x


def batch_qparams(x: Tensor) -> QParams:
    """Returns parameters for the range of a whole batch."""
    dense = x.permute(0, 2, 3, 1) if x.dim() == 4 else x  # channels_last as it lies: aminmax copies otherwise
    low, high = torch.aminmax(dense)
    return choose_activation_qparams(low.item(), high.item())


def calibrate(model: Net, inputs: Tensor, batch_size: int = 128) -> dict[str, QParams]:
    """Returns the input parameters of every layer but the first, over the range seen on `inputs`.

    Args:
        model: FP32.
        inputs: float [n, 3, 64, 64], training images; n at least 1.
        batch_size: of the passes; the result does not depend on it beyond float rounding.
    """
    folded = fold_batch_norm(model)
    high = dict.fromkeys(LAYERS[1:], 0.0)
    with torch.inference_mode():
        for x in inputs.split(batch_size):
            for name, following in pairwise(LAYERS):
                x = _after(name, F.relu(folded.get_submodule(name)(x)))
                high[following] = max(high[following], x.max().item())
    return {name: choose_activation_qparams(0.0, largest) for name, largest in high.items()}


class QatNet(Net):
    """`Net` for quantization-aware training: it computes with what quantized weights and activations stand for.

    Weights are rounded to the nearest (BatchNorm multiplies whole channels, which changes their scale and nothing
    else), inputs of layers, the image too, over the range of the batch: with 8 bits a little more is lost than will be
    in `QuantizedNet`, whose errors cancel. Gradients pass as if nothing was rounded. State dict and parameters are
    those of `Net`.

    Args:
        num_classes: logits.
        bits: of weights, 8 or a key of `GROUP_LEVELS`.
    """

    def __init__(self, num_classes: int, bits: int) -> None:
        super().__init__(num_classes)
        self.groups = None if bits == 8 else GROUP_LEVELS[bits]

    def forward(self, x: Tensor) -> Tensor:
        for name in LAYERS:
            layer: Any = self.get_submodule(name)
            x, weight = _as_quantized(x), self._rounded(name, layer.weight)
            if name in CONVOLUTIONS:
                norm = self.get_submodule(name.replace("conv", "bn"))
                x = _after(name, F.relu(norm(F.conv2d(x, weight, layer.bias))))
            else:
                x = F.linear(x, weight, layer.bias)
                x = x if name == LAYERS[-1] else F.relu(x)
        return x

    def _rounded(self, name: str, weight: Tensor) -> Tensor:
        values = weight.detach()
        if self.groups is None or name in ALWAYS_INT8:
            rounded = dequantize_weight(*quantize_weight(values))
        else:
            index, multiplier, scale = quantize_groups(values, self.groups)
            rounded = dequantize_weight(int8_of_groups(index, multiplier, self.groups), scale)
        return weight + (rounded - values)


def _as_quantized(x: Tensor) -> Tensor:
    qparams = batch_qparams(x.detach())
    return torch.fake_quantize_per_tensor_affine(x, qparams.scale, int(qparams.zero_point), 0, 255)


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


class HalfNet(Net):
    """`Net` in FP16; any float input is cast, and the output is FP16."""

    convolution = HalfConv2d
    input_dtype = torch.float16

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.half()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.half())

    @property
    def kernels(self) -> str:
        """What executes the convolutions where the model is now."""
        if self.conv1.weight.device.type == "cuda":
            return "cuda-fp16"
        return "onednn-fp16" if native_half_convolution() else "fp16-storage-fp32-arithmetic"
