"""A precision: one of `METHODS`, and how tables call it. A new one is a function in `methods.py` and one YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl.core.errors import ConfigError, suggestion
from fl.core.presets import choices, preset
from fl.core.targets import Target
from fl.models.architecture import Architecture, architecture_of
from fl.models.net import Network, num_parameters
from fl.quantization.graphs import float_tensors
from fl.quantization.methods import METHODS
from fl.quantization.modules import QuantizedLayer

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
    title: str
    method: str
    num_calibration_images: int = 0

    def __post_init__(self) -> None:
        _check(self.name)

    def convert(self, model: Network, calibration: Tensor | None = None, **options: bool) -> Network:
        """Returns a new model in evaluation mode with `quantization_info` and `input_dtype`; `model` stays as it is.

        Args:
            model: FP32.
            calibration: float [n, bands, height, width], where `num_calibration_images` asks for training images.
            **options: of the method.
        """
        architecture = architecture_of(model)
        converted = METHODS[self.name](model, calibration, **options)
        info: dict[str, Any] = {
            "precision": self.name,
            "dtype": word(self.name),
            "num_parameters": num_parameters(model),
            "num_classes": architecture.num_classes,
            **architecture.told(),
        }
        if self.num_calibration_images and calibration is not None:
            info["num_calibration_images"] = len(calibration)
        if options:
            info["options"] = options
        if kept := float_tensors(converted) if self.name.startswith("int") else {}:
            info["float_tensors"] = kept
        if hasattr(converted, "layout"):
            info["layout"] = converted.layout
        converted.quantization_info, converted.architecture = info, architecture
        return converted.eval()


def precision_of(name: str) -> Precision:
    """Returns a precision as its file in `conf/precision/` says.

    Raises:
        ValueError: there is no such precision.
    """
    _check(name)
    return _read(name)


def empty_model(info: Mapping[str, Any], architecture: Architecture) -> Network:
    """Returns a model that a stored state dict fits, from the file's `quantization_info` and its network.

    Raises:
        ValueError: it names no precision, or a layout of a newer version.
    """
    precision, network = precision_of(str(info["precision"])), architecture.build().eval()
    model = precision.convert(network, architecture.zeros(1), **dict(info.get("options", {})))
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer):
            layer.use_layout(int(info.get("layout", 2 if "network" in info else 1)))
    model.quantization_info = dict(info)
    return model


def word(name: str) -> str:
    """Returns the word for what a precision's weights are, as users' loaders ask for it; of int8_static it is int8."""
    return name.partition("_")[0]


def kernels_of(model: Network) -> str:
    """Returns what executes a model where it is now."""
    device, dtype = next(iter(model.state_dict().values())).device.type, model.input_dtype
    return str(getattr(model, "kernels", f"{device}-{SHORT.get(dtype, dtype)}"))


def _check(name: str) -> None:
    if name not in METHODS:
        raise ValueError(f"fl/quantization/methods.py has no function {name!r}")


def _read(name: str) -> Precision:
    found: Precision = Target.from_config(f"precision/{name}", preset("precision", name)).build(name=name)
    return found


def precisions(names: list[str]) -> dict[str, Precision]:
    """Builds precisions from `conf/precision/`; "all" stands for those that are not named.

    Raises:
        ConfigError: there is no such precision; names the valid ones.
    """
    known = choices("precision")
    if "all" in names:
        usual = [name for name in METHODS if name in known]
        named = [name for name in names if name != "all"]
        names = list(dict.fromkeys([*named, *usual, *known]))
    for name in names:
        if name not in known:
            valid = f"{suggestion(name, known)}valid choices: all, {', '.join(known)}"
            raise ConfigError(f"--precisions {name}: is no precision; {valid}")
    return {name: _read(name) for name in names}
