"""ONNX files, run by onnxruntime."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
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
            _quantize(whole, target, calibration if static else None)

    def load(self, path: Path, threads: int, architecture: Architecture) -> Executor:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # of threads when an answer is there
        content = path.read_bytes()
        _refuse_other_files(_parsed(content))
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {INPUT: x.contiguous().numpy()})[0])

    def weight_bytes(self, path: Path) -> int:
        from onnx.numpy_helper import to_array

        return sum(to_array(tensor).nbytes for tensor in _parsed(path.read_bytes()).graph.initializer)


def _parsed(content: bytes) -> Any:
    """Returns the model in a file's content, as onnx reads it."""
    import onnx

    return onnx.load_from_string(content)


def _refuse_other_files(message: Any) -> None:
    """Looks through a model, whatever lies in what, for tensors whose values are in another file: we write none.

    Raises:
        ValueError: there is one.
    """
    if message.DESCRIPTOR.name == "TensorProto" and (message.external_data or message.data_location):
        raise ValueError(f"its tensor {message.name} is in another file; such models are not run")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                _refuse_other_files(each)


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
    model = _parsed(path.read_bytes())
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString())


def _quantize(whole: Path, target: Path, calibration: Tensor | None) -> None:
    """Writes a model in INT8, with ranges found at run time or, where there are images to calibrate on, with theirs."""
    from onnxruntime import quantization

    prepared = whole.with_name("prepared.onnx")
    quantization.quant_pre_process(str(whole), str(prepared), skip_optimization=calibration is None)
    if calibration is None:
        quantization.quantize_dynamic(prepared, target, per_channel=False, weight_type=quantization.QuantType.QUInt8)
        return
    batches = iter(calibration.split(CALIBRATION_BATCH))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch.contiguous().numpy()}

    quantization.quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        # x86 without VNNI adds products of unsigned and signed bytes in 16 bits, cut off
        weight_type=quantization.QuantType.QUInt8,
    )
