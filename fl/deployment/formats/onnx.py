"""ONNX files, run by onnxruntime."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl.deployment.formats.base import Executor, FloatOutput, Format, example_input, quiet
from fl.models.architecture import Architecture, architecture_of
from fl.models.net import Network
from fl.quantization.folding import fold_batch_norm, quantizable, replace_module
from fl.quantization.numeric import SMALLEST_SCALE, check_fits_fp16

INPUT, OUTPUT = "images", "logits"

CALIBRATION_BATCH = 64


class Onnx(Format):
    """ONNX in FP32, FP16, and onnxruntime's own INT8, dynamic and static."""

    name, suffix, precisions = "onnx", ".onnx", ("fp32", "fp16", "int8", "int8_static")
    needs, extra = ("onnx", "onnxscript", "onnxruntime"), "onnx"

    def export(self, precision: str, model: Network, calibration: Tensor, folder: Path) -> None:
        target = self.path(folder, precision)
        folded: Any = fold_batch_norm(model)
        example = example_input(architecture_of(model))
        if precision in ("fp32", "fp16"):
            if precision == "fp16":
                check_fits_fp16(folded.state_dict())
                folded = FloatOutput(folded.half())
            _write(folded, target, example)
            return
        with tempfile.TemporaryDirectory() as scratch, quiet():
            whole, static = Path(scratch) / "whole.onnx", precision == "int8_static"
            _write(folded if static else _scaled_after(folded), whole, example)
            batches = calibration.split(CALIBRATION_BATCH) if static else None
            _files().quantize(whole, target, batches and [{INPUT: each.contiguous().numpy()} for each in batches])

    def load(self, path: Path, threads: int, architecture: Architecture) -> Executor:
        session = _files().session(path.read_bytes(), threads)
        return lambda x: torch.from_numpy(session.run(None, {INPUT: x.contiguous().numpy()})[0])

    def weight_bytes(self, path: Path) -> int:
        return _files().weight_bytes(path.read_bytes())


def _files() -> Any:
    """Returns what works on ONNX files, once its libraries are known to be there."""
    from fl.deployment.formats import onnx_files

    return onnx_files


class ScaledAfter(nn.Module):
    """A convolution or linear layer whose channels are scaled to [-1, 127/128], and back after it.

    ONNX's ConvInteger has one scale for all weights of a layer; so it comes to one for each channel. 255 steps of 1/128
    fill that range with none for 0 between two of them.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        weight = layer.weight.detach()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        shape = (-1, *(1 for _ in weight.shape[1:]))
        low, high = weight.flatten(1).aminmax(dim=1)
        scale = torch.maximum(-low, high * 128 / 127).clamp_min(SMALLEST_SCALE)
        self.layer: Any = copy.deepcopy(layer)
        self.layer.weight = nn.Parameter(weight / scale.view(shape))
        self.layer.bias = None
        self.register_buffer("scale", scale.view(shape[:-1]))
        self.register_buffer("shift", bias.view(shape[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.layer(x) * self.scale + self.shift
        return scaled


def _scaled_after(folded: Network) -> Network:
    for name, layer in quantizable(folded).items():
        replace_module(folded, name, ScaledAfter(layer))
    return folded


def _write(network: nn.Module, path: Path, example: Tensor) -> None:
    """Writes a network with a batch of any size, weights inside the file, without the lines it was traced through."""
    with quiet():
        torch.onnx.export(
            network.eval(),
            (example,),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    path.write_bytes(_files().without_traces(path.read_bytes()))
