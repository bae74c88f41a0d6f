"""How the network is converted: every `@method` is a precision, `conf/precision/` says how tables call it.

A method takes the trained FP32 network, inputs to calibrate on where its YAML asks for them, and options that its files
remember; it returns a new network of the same layout for any weights. A network whose input is not float32 says so in
`input_dtype`; one that executes on kernels of its own names them in `kernels`.
"""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fl.models.net import Network, channels_last
from fl.quantization.graphs import quantized
from fl.quantization.halved import halved
from fl.quantization.numeric import GROUP_LEVELS, check_fits_fp16

METHODS: dict[str, Callable[..., Network]] = {}
"""By the names of precisions, in the order of tables."""

Method = TypeVar("Method", bound=Callable[..., Network])


def method(function: Method) -> Method:
    """Makes a function a precision of its name."""
    METHODS[function.__name__] = function
    return function


@method
def fp32(model: Network, calibration: Tensor | None = None) -> Network:
    """Returns the network as it was trained."""
    return channels_last(copy.deepcopy(model))


@method
def fp16(model: Network, calibration: Tensor | None = None, keep_batchnorm_fp32: bool = False) -> Network:
    """Returns the network with every float tensor cast to half precision, those of BatchNorm on request not.

    Raises:
        ModelFileError: a value is beyond FP16; names the tensors.
    """
    half, state = halved(model, keep_batchnorm_fp32), model.state_dict()
    check_fits_fp16({name: state[name] for name, new in half.state_dict().items() if new.dtype == torch.float16})
    return channels_last(half)


@method
def int8(model: Network, calibration: Tensor | None = None) -> Network:
    """Returns int8 weights per output channel in every convolution and linear layer; activation ranges per batch.

    The image is exact, and weights are rounded so that errors cancel, without any images (`rounding.py`).
    """
    return quantized(model)


@method
def int8_static(model: Network, calibration: Tensor | None = None) -> Network:
    """Returns what `int8` does, with ranges calibrated on training images and layers chained in INT8."""
    if calibration is None or not len(calibration):
        raise ValueError("int8_static needs calibration images")
    return quantized(model, calibration=calibration)


@method
def int4(model: Network, calibration: Tensor | None = None) -> Network:
    """Returns weights of 4 bits, two in a byte, in groups of 32; first and last layer, and all else, as `int8`."""
    return quantized(model, groups=GROUP_LEVELS[4])


@method
def int2(model: Network, calibration: Tensor | None = None) -> Network:
    """Returns weights of 2 bits, four in a byte, in groups of 16; first and last layer, and all else, as `int8`."""
    return quantized(model, groups=GROUP_LEVELS[2])
