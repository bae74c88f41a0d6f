"""The EuroSAT CNN in integers."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl.models.net import Net, Network
from fl.quantization.folding import fold_batch_norm
from fl.quantization.kernels import REFERENCE, Geometry, cpu_kernels, max_pool, pack, run_onednn, run_reference
from fl.quantization.numeric import (
    IMAGE,
    GroupLevels,
    QParams,
    batch_qparams,
    choose_activation_qparams,
    dequantize_weight,
    int8_of_groups,
    pack_levels,
    quantize_activation,
    quantize_groups,
    unpack_levels,
)
from fl.quantization.rounding import quantize_weight_together

CONVOLUTIONS, LINEARS = ("conv1", "conv2", "conv3"), ("fc1", "fc2", "fc3")
LAYERS = CONVOLUTIONS + LINEARS
ALWAYS_INT8 = (LAYERS[0], LAYERS[-1])
"""Layers that never get fewer bits: they have the most sensitive weights (docs/results.md), and few of them."""


class QuantizedLayer(nn.Module):
    """A Conv2d or Linear with int8 weights per output channel; bias stays float32.

    Its input is uint8 with parameters of its own: stored, or given with every call.
    """

    def __init__(self, layer: Any, stored: QParams | None) -> None:
        super().__init__()
        self.weight: Tensor
        self.input_scale: Tensor
        self.input_zero_point: Tensor
        self.weight_scale: Tensor
        self.bias: Tensor
        self.geometry = Geometry.of(layer)
        square = layer.weight.dim() == 4 and layer.weight.shape[2] == layer.weight.shape[3] and layer.groups == 1
        self._store(layer.weight.detach(), sees_image=stored == IMAGE and square)
        no_bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", no_bias)
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
            told = incoming, self.weight, self.weight_scale, self.bias
            return run_reference(x, *told, relu=relu, outgoing=outgoing, geometry=self.geometry)
        if self._packed is None:
            sums = dequantize_weight(self.weight, self.weight_scale).flatten(1).sum(1)
            self._packed = pack(self.weight, self.weight_scale, self.geometry), sums
        packed, sums = self._packed
        half = incoming.zero_point % 1  # the kernels know whole zero points: the rest goes into the bias
        bias = self.bias - half * incoming.scale * sums if half else self.bias
        told = incoming, packed, self.weight_scale, bias
        return run_onednn(x, *told, relu=relu, outgoing=outgoing, geometry=self.geometry)

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
