"""Work on LiteRT files by its converter, quantizer and interpreter; to be imported only where these are installed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.schema_py_generated import Model
from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe
from torch import Tensor, nn

from fl.deployment.formats.base import quiet

INPUT = "args_0"


def write(network: nn.Module, example: Tensor, path: Path) -> None:
    """Writes a network in FP32."""
    with quiet():
        litert_torch.convert(network, (example,)).export(str(path))


def interpreter(content: bytes, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what answers from a file's content, from one image [bands, height, width] to logits [1, classes]."""
    with quiet():
        made = Interpreter(model_content=content, num_threads=threads)
        made.allocate_tensors()
    (given,), (answer,) = made.get_input_details(), made.get_output_details()

    def one(image: np.ndarray) -> np.ndarray:
        made.set_tensor(given["index"], _to_integers(image[None], given))
        made.invoke()
        return _to_floats(made.get_tensor(answer["index"]), answer)

    return one


def weight_bytes(content: bytes) -> int:
    """Returns the bytes of all tensors stored in a file's content."""
    model = Model.GetRootAs(content)
    used = {
        graph.Tensors(number).Buffer()
        for graph in map(model.Subgraphs, range(model.SubgraphsLength()))
        for number in range(graph.TensorsLength())
    }
    return sum(model.Buffers(number).DataLength() for number in used)


def quantized(precision: str, whole: Path, calibration: Tensor) -> bytes:
    """Returns the content of a file with weights in fewer bits; `calibration` is float32 [n, bands, height, width]."""
    with quiet():
        work: Any = quantizer.Quantizer(str(whole))
        ranges = None
        if precision == "fp16":
            every, cast = qtyping.TFLOperationName.ALL_SUPPORTED, algorithm_manager.AlgorithmName.FLOAT_CASTING
            work.add_weight_only_config(".*", every, num_bits=16, algorithm_key=cast)
        elif precision == "int8":
            work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        else:
            work.load_quantization_recipe(recipe.static_wi8_ai8())
            every_tensor = calibrator.CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS
            smallest_and_largest = calibrator.qsv_utils.min_max_update  # over all images; averaged otherwise
            seen = calibrator.CalibrationInterpreter(str(whole), every_tensor, smallest_and_largest)
            runner = seen.get_signature_runner()
            for image in calibration.contiguous().split(1):
                runner(**{INPUT: image.numpy()})
            ranges = seen.get_calibration_results()
        return bytes(work.quantize(ranges).quantized_model)


def _to_integers(x: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """Returns `x` as the file wants it: float32, or integers with a scale."""
    scale, zero_point = details["quantization"]
    if details["dtype"] == np.float32:
        return x
    limits = np.iinfo(details["dtype"])
    return np.clip(np.round(x / scale) + zero_point, limits.min, limits.max).astype(details["dtype"])


def _to_floats(x: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    return x if details["dtype"] == np.float32 else ((x.astype(np.float32) - zero_point) * scale).astype(np.float32)
