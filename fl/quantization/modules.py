"""Layers in integers: what takes the place of a convolution or a linear layer."""

from typing import Any

import torch
from torch import Tensor, nn

from fl.quantization.kernels import REFERENCE, Added, Geometry, cpu_kernels, pack, run_onednn, run_reference
from fl.quantization.numeric import (
    IMAGE,
    GroupLevels,
    QParams,
    batch_qparams,
    dequantize_weight,
    int8_of_groups,
    pack_levels,
    quantize_activation,
    quantize_groups,
    unpack_levels,
)
from fl.quantization.rounding import quantize_weight_together

LAYOUT = 2
"""Of the state dicts written here."""


class QuantizedLayer(nn.Module):
    """A Conv2d or Linear with int8 weights per output channel; bias stays float32.

    Its input becomes uint8 where it is not, with stored parameters or, where there are none, over the range of the
    batch. A layer that is given the image takes the image's own integers.

    Attributes:
        relu: its result passes ReLU.
        following: layers that take the result in integers.
        added_from: the layer, if any, whose result is added to this one's in integers.
        keeps_added: what is added is needed later, too.
    """

    def __init__(self, layer: Any, stored: QParams | None) -> None:
        super().__init__()
        self.weight: Tensor
        self.input_scale: Tensor
        self.input_zero_point: Tensor
        self.weight_scale: Tensor
        self.bias: Tensor
        self.output_scale: Tensor
        self.output_zero_point: Tensor
        self.geometry, self.relu, self.following = Geometry.of(layer), False, tuple[QuantizedLayer, ...]()
        self.added_from, self.keeps_added = tuple[QuantizedLayer, ...](), False
        square = layer.weight.dim() == 4 and layer.weight.shape[2] == layer.weight.shape[3] and layer.groups == 1
        self._store(layer.weight.detach(), sees_image=stored == IMAGE and square)
        no_bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", no_bias)
        if stored is not None:
            self.store_input(stored)
        self._packed: tuple[Tensor, Tensor] | None = None
        self._known: QParams | None = None
        self._known_output: QParams | None = None

    def _store(self, weight: Tensor, sees_image: bool) -> None:
        """Registers the buffers that hold the weight."""
        integers, scale = quantize_weight_together(weight, sees_image)
        self.register_buffer("weight", integers)
        self.register_buffer("weight_scale", scale)

    def store_input(self, qparams: QParams) -> None:
        """Registers the input parameters; those of the image need no place in files."""
        self._known, is_image = None, qparams == IMAGE
        zero_point = torch.tensor(qparams.zero_point, dtype=torch.float32 if is_image else torch.int32)
        self.register_buffer("input_scale", torch.tensor(qparams.scale), persistent=not is_image)
        self.register_buffer("input_zero_point", zero_point, persistent=not is_image)

    def store_output(self, qparams: QParams) -> None:
        """Registers the parameters of a result that is added in integers and that no layer takes."""
        self.register_buffer("output_scale", torch.tensor(qparams.scale))
        self.register_buffer("output_zero_point", torch.tensor(qparams.zero_point, dtype=torch.int32))

    def use_layout(self, layout: int) -> None:
        """Takes what a state dict of an older layout has: in 1, the image is quantized as any activation is.

        Raises:
            ValueError: there is no such layout.
        """
        if layout not in (1, LAYOUT):
            raise ValueError(f"layout {layout} is not known to this version of quantfl")
        if layout == 1 and self.incoming() == IMAGE:
            self._known = None
            del self.input_scale, self.input_zero_point
            if self.following:  # static
                self.store_input(QParams(1.0, 0))

    def incoming(self) -> QParams | None:
        """Returns the stored parameters of the input, None where they are found for each batch."""
        if self._known is None and hasattr(self, "input_scale"):
            self._known = QParams(self.input_scale.item(), self.input_zero_point.item())
        return self._known

    def outgoing(self) -> QParams | None:
        """Returns the parameters of the result, None where it is float32."""
        if self.following:
            return self.following[0].incoming()
        if self._known_output is None and hasattr(self, "output_scale"):
            self._known_output = QParams(self.output_scale.item(), self.output_zero_point.item())
        return self._known_output

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Returns the result for float32 or uint8, `other` added to it, of the same shape and in either type."""
        incoming, added = self.incoming() or batch_qparams(x), None
        x = x if x.dtype == torch.uint8 else quantize_activation(x, incoming)
        if other is not None and other.dtype == torch.uint8:
            added = Added(other.clone() if self.keeps_added else other, self.added_from[0].outgoing())
        elif other is not None:
            added = Added(other, None)
        return self.computed(x, incoming, self.outgoing(), added)

    def computed(self, x: Tensor, incoming: QParams, outgoing: QParams | None, added: Added | None = None) -> Tensor:
        """Returns the result for integers, in integers where there are parameters for them; else in float32."""
        after: dict[str, Any] = {"relu": self.relu, "outgoing": outgoing, "geometry": self.geometry, "added": added}
        if x.device.type != "cpu" or cpu_kernels() == REFERENCE:
            return run_reference(x, incoming, self.weight, self.weight_scale, self.bias, **after)
        if self._packed is None:
            sums = dequantize_weight(self.weight, self.weight_scale).flatten(1).sum(1)
            self._packed = pack(self.weight, self.weight_scale, self.geometry), sums
        packed, sums = self._packed
        half = incoming.zero_point % 1  # the kernels know whole zero points: the rest goes into the bias
        bias = self.bias - half * incoming.scale * sums if half else self.bias
        return run_onednn(x, incoming, packed, self.weight_scale, bias, **after)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # a packed weight can be neither copied nor pickled

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        self._packed = self._known = self._known_output = None
        if hasattr(self, "output_scale") and f"{prefix}output_scale" not in state_dict:
            del self.output_scale, self.output_zero_point  # a file of before: what is added stays float32
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


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
