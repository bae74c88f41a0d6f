"""Work on ONNX files by onnx and onnxruntime; to be imported only where these are installed."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.numpy_helper import to_array
from onnxruntime import InferenceSession, SessionOptions, quantization


def session(content: bytes, threads: int) -> InferenceSession:
    """Returns what answers from a file's content on the CPU.

    Raises:
        ValueError: it names other files.
    """
    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # of threads when an answer is there
    _refuse_other_files(_parsed(content))
    return InferenceSession(content, options, providers=["CPUExecutionProvider"])


def weight_bytes(content: bytes) -> int:
    """Returns the bytes of all tensors stored in a file's content."""
    return sum(to_array(tensor).nbytes for tensor in _parsed(content).graph.initializer)


def without_traces(content: bytes) -> bytes:
    """Returns a file's content without the lines of code that a network was traced through."""
    model = _parsed(content)
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    whole: bytes = model.SerializeToString()
    return whole


def quantize(whole: Path, target: Path, calibration: list[dict[str, np.ndarray]] | None) -> None:
    """Writes a model in INT8, with ranges found at run time or, where there are inputs to calibrate on, with theirs."""
    prepared = whole.with_name("prepared.onnx")
    quantization.quant_pre_process(str(whole), str(prepared), skip_optimization=calibration is None)
    if calibration is None:
        quantization.quantize_dynamic(prepared, target, per_channel=False, weight_type=quantization.QuantType.QUInt8)
        return
    batches = iter(calibration)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

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


def _parsed(content: bytes) -> Any:
    """Returns the model in a file's content, as onnx reads it."""
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
