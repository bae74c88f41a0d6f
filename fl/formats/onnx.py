"""ONNX files, run by onnxruntime."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fl.formats.base import Executor, FloatOutput, Format, example_input, quiet
from fl.model import Net
from fl.quantization.modules import fold_batch_norm
from fl.quantization.numeric import check_fits_fp16

INPUT, OUTPUT = "images", "logits"
CALIBRATION_BATCH = 64


class Onnx(Format):
    """ONNX in FP32, FP16, and onnxruntime's own INT8, dynamic and static."""

    name, suffix, precisions = "onnx", ".onnx", ("fp32", "fp16", "int8", "int8_static")
    needs, extra = ("onnx", "onnxscript", "onnxruntime"), "onnx"

    def export(self, precision: str, model: Net, calibration: Tensor, folder: Path) -> None:
        target = self.path(folder, precision)
        folded: nn.Module = fold_batch_norm(model)
        if precision in ("fp32", "fp16"):
            if precision == "fp16":
                check_fits_fp16(folded.state_dict())
                folded = FloatOutput(folded.half())
            _write(folded, target)
            return
        with tempfile.TemporaryDirectory() as scratch, quiet():
            from onnxruntime.quantization import shape_inference

            whole, prepared = Path(scratch) / "whole.onnx", Path(scratch) / "prepared.onnx"
            _write(folded, whole)
            shape_inference.quant_pre_process(str(whole), str(prepared))
            (_static if precision == "int8_static" else _dynamic)(prepared, target, calibration)

    def load(self, path: Path, threads: int) -> Executor:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {INPUT: x.contiguous().numpy()})[0])

    def weight_bytes(self, path: Path) -> int:
        import onnx

        return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(path).graph.initializer)


def _write(network: nn.Module, path: Path) -> None:
    """Writes a network with a batch of any size, weights inside the file."""
    with quiet():
        torch.onnx.export(
            network.eval(),
            (example_input(),),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )


def _dynamic(prepared: Path, target: Path, calibration: Tensor) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(prepared, target, per_channel=False, weight_type=QuantType.QUInt8)


def _static(prepared: Path, target: Path, calibration: Tensor) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(calibration.split(CALIBRATION_BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.contiguous().numpy()}

    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
