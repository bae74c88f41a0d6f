"""The precisions a model can be converted to. A new one is one class here and one file in `conf/precision/`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fl.model import Net, channels_last, num_parameters
from fl.quantization.modules import LAYERS, HalfNet, QuantizedNet, calibrate
from fl.quantization.numeric import GROUP_LEVELS, QParams


class Precision(Protocol):
    """One way of storing and running the network.

    Attributes:
        title: how tables call it.
        method: in brackets after the title in the report.
        num_calibration_images: training images that `convert` needs; 0 for none.
    """

    title: ClassVar[str]
    method: ClassVar[str]
    num_calibration_images: ClassVar[int]

    def convert(self, model: Net, calibration: Tensor | None = None) -> nn.Module:
        """Returns a new model with `input_dtype`, `kernels` and `quantization_info`; `model` stays as it is.

        Args:
            model: FP32.
            calibration: float [n, 3, 64, 64] from training images, where `num_calibration_images` asks for them.
        """

    def empty(self, num_classes: int) -> nn.Module:
        """Returns a model that a stored state dict of this precision fits."""


def precision_from(info: Mapping[str, Any]) -> Precision:
    """Returns the precision that a file's `quantization_info` names.

    Raises:
        ValueError: it names no precision of this module.
    """
    kind = globals().get(str(info["target"]).removeprefix(f"{__name__}."))
    if not isinstance(kind, type) or kind.__module__ != __name__ or kind is Precision or not hasattr(kind, "empty"):
        raise ValueError(f"target {info['target']!r} is no precision of {__name__}")
    precision: Precision = kind()
    return precision


def described(model: nn.Module, precision: Precision, name: str, source: Net, **more: Any) -> nn.Module:
    """Returns `model` in evaluation mode with its `quantization_info`.

    Args:
        model: just converted.
        precision: what converted it, and will load it.
        name: of the precision, as in `conf/precision/`.
        source: the FP32 network.
        **more: what else a user of the file should know.
    """
    info = {
        "precision": name,
        "target": f"{type(precision).__module__}.{type(precision).__qualname__}",
        "num_parameters": num_parameters(source),
        "num_classes": source.fc3.out_features,
        **more,
    }
    model.quantization_info = info  # type: ignore[assignment]
    return model.eval()


class Fp32Net(Net):
    """`Net`, with what every precision's model has."""

    input_dtype = torch.float32

    @property
    def kernels(self) -> str:
        """What executes the convolutions where the model is now."""
        return f"{self.conv1.weight.device.type}-fp32"


@dataclass(frozen=True)
class Fp32:
    """The model as it was trained."""

    title: ClassVar[str] = "FP32"
    method: ClassVar[str] = "Baseline"
    num_calibration_images: ClassVar[int] = 0

    def convert(self, model: Net, calibration: Tensor | None = None) -> nn.Module:
        converted = self.empty(model.fc3.out_features)
        converted.load_state_dict(model.state_dict())
        return described(converted, self, "fp32", model)

    def empty(self, num_classes: int) -> nn.Module:
        return channels_last(Fp32Net(num_classes))


@dataclass(frozen=True)
class Fp16:
    """Every float tensor cast to half precision; inputs are cast too."""

    title: ClassVar[str] = "FP16"
    method: ClassVar[str] = "Half Precision"
    num_calibration_images: ClassVar[int] = 0

    def convert(self, model: Net, calibration: Tensor | None = None) -> nn.Module:
        converted = self.empty(model.fc3.out_features)
        converted.load_state_dict(model.state_dict())
        return described(converted, self, "fp16", model)

    def empty(self, num_classes: int) -> nn.Module:
        return channels_last(HalfNet(num_classes))


@dataclass(frozen=True)
class Int8:
    """Int8 weights per output channel in every convolution and linear layer; activation ranges per batch."""

    title: ClassVar[str] = "INT8"
    method: ClassVar[str] = "Dynamic Quantization"
    num_calibration_images: ClassVar[int] = 0

    def convert(self, model: Net, calibration: Tensor | None = None) -> nn.Module:
        return described(QuantizedNet(model), self, "int8", model)

    def empty(self, num_classes: int) -> nn.Module:
        return QuantizedNet(Net(num_classes))


@dataclass(frozen=True)
class Int8Static:
    """As `Int8`, with activation ranges calibrated on training images and layers chained in INT8."""

    title: ClassVar[str] = "INT8 static"
    method: ClassVar[str] = "Static Quantization"
    num_calibration_images: ClassVar[int] = 512

    def convert(self, model: Net, calibration: Tensor | None = None) -> nn.Module:
        if calibration is None or not len(calibration):
            raise ValueError("int8_static needs calibration images")
        quantized = QuantizedNet(model, calibrate(model, calibration))
        return described(quantized, self, "int8_static", model, num_calibration_images=len(calibration))

    def empty(self, num_classes: int) -> nn.Module:
        return QuantizedNet(Net(num_classes), dict.fromkeys(LAYERS, QParams(1.0, 0)))


@dataclass(frozen=True)
class Int4:
    """Weights of 4 bits, two in a byte, in groups of 32 with a multiplier of their own; else as `Int8`."""

    title: ClassVar[str] = "INT4"
    method: ClassVar[str] = "Group-wise Dynamic Quantization"
    num_calibration_images: ClassVar[int] = 0

    def convert(self, model: Net, calibration: Tensor | None = None) -> nn.Module:
        return described(QuantizedNet(model, groups=GROUP_LEVELS[4]), self, "int4", model)

    def empty(self, num_classes: int) -> nn.Module:
        return QuantizedNet(Net(num_classes), groups=GROUP_LEVELS[4])


@dataclass(frozen=True)
class Int2:
    """Weights of 2 bits, four in a byte, in groups of 16 with a multiplier of their own; else as `Int8`."""

    title: ClassVar[str] = "INT2"
    method: ClassVar[str] = "Group-wise Dynamic Quantization"
    num_calibration_images: ClassVar[int] = 0

    def convert(self, model: Net, calibration: Tensor | None = None) -> nn.Module:
        return described(QuantizedNet(model, groups=GROUP_LEVELS[2]), self, "int2", model)

    def empty(self, num_classes: int) -> nn.Module:
        return QuantizedNet(Net(num_classes), groups=GROUP_LEVELS[2])
