"""What a network's layers lose as integers, channel by channel, and what they gain: signal over error, milliseconds."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from layer_speed import timed
from torch import Tensor, fx, nn

from fl.data.provenance import find_inputs, find_run
from fl.models.architecture import architecture_of, input_of
from fl.models.net import channels_last
from fl.quantization import precision_of
from fl.quantization.folding import fold_batch_norm
from fl.quantization.model_file import load_fp32
from fl.quantization.modules import QuantizedLayer
from fl.quantization.numeric import dequantize_weight, quantize_activation

NUM_IMAGES, BATCH_SIZE, REPEATS = 256, 32, 20
LOW = 20.0
"""Decibels: a channel below it has a hundredth of its power in errors, or more."""


def layer_losses(model_path: Path) -> dict[str, dict[str, Any]]:
    """Returns what each layer of a network loses in static INT8, in decibels over its output channels, and its times.

    Each layer is given what it has in the FP32 network with BatchNorm folded, so that no layer's loss is another's, on
    test images of the run; what is compared passed the layer's ReLU, unless something is added before. Channels that
    are never above zero are left out.

    Args:
        model_path: of a run's FP32 model.
    """
    model, file = load_fp32(model_path)
    run, architecture = find_run(model_path, file.made_from or file.sha256), architecture_of(model)
    inputs = find_inputs(run, None, architecture.num_classes, architecture.pixels)
    if inputs.calibration is None:
        raise ValueError(f"{model_path}: {inputs.calibrated_on}")
    given, precision = input_of(model), precision_of("int8_static")
    calibration = given(torch.from_numpy(inputs.calibration[: precision.num_calibration_images]))
    static: Any = precision.convert(model, calibration)
    with torch.inference_mode():
        return losses(
            channels_last(fold_batch_norm(model)), static, given(torch.from_numpy(inputs.test.images[:NUM_IMAGES]))
        )


def losses(folded: nn.Module, static: fx.GraphModule, batch: Tensor) -> dict[str, dict[str, Any]]:
    """Returns the figures of each layer by name, see `layer_losses`.

    Args:
        folded: in FP32, with the layers' names.
        static: the same in integers; its layers' ReLU is taken away.
        batch: float [n, bands, height, width].
    """
    quantized = {name: each for name, each in static.named_modules() if isinstance(each, QuantizedLayer)}
    adding = {str(node.target) for node in static.graph.nodes if node.op == "call_module" and len(node.args) == 2}
    found: dict[str, dict[str, Any]] = {}

    def watch(name: str, ours: QuantizedLayer) -> None:
        relu, ours.relu = ours.relu and name not in adding, False

        def told(layer: Any, args: tuple[Tensor, ...], y: Tensor) -> None:
            incoming = ours.incoming()
            if incoming is None:
                raise ValueError(f"{name}: has no stored range")
            q, x = quantize_activation(args[0], incoming), args[0][:BATCH_SIZE]
            integers = ours.computed(q, incoming, None)
            weights = run_with(layer, dequantize_weight(ours.weight, ours.weight_scale), args[0])
            y, weights, integers = (F.relu(each) if relu else each for each in (y, weights, integers))
            found[name] = {
                "kind": kind_of(layer),
                "weights": decibels(y, weights),
                "both": decibels(y, integers),
                "fp32_ms": timed(lambda: run_with(layer, layer.weight, x), REPEATS)[1],
                "int8_ms": timed(lambda: ours.computed(q[:BATCH_SIZE], incoming, ours.outgoing()), REPEATS)[1],
            }

        folded.get_submodule(name).register_forward_hook(told)

    for name, ours in quantized.items():
        watch(name, ours)
    folded(batch)
    return found


def run_with(layer: Any, weight: Tensor, x: Tensor) -> Tensor:
    """Returns a layer's result with other weights."""
    result: Tensor = layer._conv_forward(x, weight, layer.bias) if x.dim() == 4 else F.linear(x, weight, layer.bias)
    return result


def kind_of(layer: Any) -> str:
    """Returns which kind of layer it is."""
    if isinstance(layer, nn.Linear):
        return "linear"
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return "depthwise"
    return "1 x 1" if layer.kernel_size == (1, 1) else "convolution"


def decibels(exact: Tensor, found: Tensor) -> dict[str, float]:
    """Returns ten times the logarithm of power over power of the error, over channels that have any of both.

    Args:
        exact: [n, channels, ...].
        found: the same with errors.
    """
    signal, noisy = (each.transpose(0, 1).flatten(1).double() for each in (exact, found))
    power, error = signal.square().sum(1), (signal - noisy).square().sum(1)
    live = (power > 0) & (error > 0)
    every = 10 * torch.log10(power[live] / error[live])
    if not len(every):
        return {"channels": 0, "low": 0, "median": math.inf, "least": math.inf}
    low, least = int((every < LOW).sum()), float(every.min())
    return {"channels": len(every), "low": low, "median": float(every.median()), "least": least}
