"""A precision: a function of `methods.py`, and how tables call it. A new one is a function there and one YAML."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl.model import Net, num_parameters
from fl.quantization import methods
from fl.quantization.modules import QuantizedNet

SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""The words for types of numbers; int8, int4 and int2 are the others."""


@dataclass(frozen=True)
class Precision:
    """One way of storing and running the network.

    Attributes:
        name: of the function in `methods.py`, of the YAML and of files.
        title: how tables call it.
        method: in brackets after the title in the report.
        num_calibration_images: training images that `convert` needs; 0 for none.
    """

    name: str
    title: str = ""
    method: str = ""
    num_calibration_images: int = 0

    def __post_init__(self) -> None:
        if not _is_method(self.name):
            raise ValueError(f"fl/quantization/methods.py has no function {self.name!r}")

    def convert(self, model: Net, calibration: Tensor | None = None, **options: bool) -> nn.Module:
        """Returns a new model in evaluation mode with `quantization_info` and `input_dtype`; `model` stays as it is.

        Args:
            model: FP32.
            calibration: float [n, 3, 64, 64] from training images, where `num_calibration_images` asks for them.
            **options: of the method.
        """
        converted = _method(self.name)(model, calibration, **options)
        info: dict[str, Any] = {
            "precision": self.name,
            "dtype": word(self.name),
            "num_parameters": num_parameters(model),
            "num_classes": model.fc3.out_features,
        }
        if self.num_calibration_images and calibration is not None:
            info["num_calibration_images"] = len(calibration)
        if options:
            info["options"] = options
        if hasattr(converted, "layout"):
            info["layout"] = converted.layout
        converted.quantization_info = info  # type: ignore[assignment]
        if not hasattr(converted, "input_dtype"):
            converted.input_dtype = torch.float32  # type: ignore[assignment]
        return converted.eval()


def empty_model(info: Mapping[str, Any]) -> nn.Module:
    """Returns a model that a stored state dict fits, from the file's `quantization_info`.

    Raises:
        ValueError: it names no precision, or a layout of a newer version.
    """
    precision, network = Precision(str(info["precision"])), Net(int(info["num_classes"])).eval()
    model = precision.convert(network, torch.zeros(1, 3, 64, 64), **dict(info.get("options", {})))
    if isinstance(model, QuantizedNet):
        model.use_layout(int(info.get("layout", 1)))
    model.quantization_info = dict(info)  # type: ignore[assignment]
    return model


def word(precision: str) -> str:
    """Returns the word for what a precision's weights are, as users' loaders ask for it; of int8_static it is int8."""
    return precision.partition("_")[0]


def kernels_of(model: nn.Module) -> str:
    """Returns what executes a model where it is now."""
    device, dtype = next(iter(model.state_dict().values())).device.type, model.input_dtype
    return str(getattr(model, "kernels", f"{device}-{SHORT.get(dtype, dtype)}"))  # type: ignore[call-overload]


def _is_method(name: str) -> bool:
    found = vars(methods).get(name)
    return not name.startswith("_") and inspect.isfunction(found) and found.__module__ == methods.__name__


def _method(name: str) -> Callable[..., nn.Module]:
    method: Callable[..., nn.Module] = vars(methods)[name]
    return method
