"""LiteRT (formerly TensorFlow Lite) files, run by its interpreter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.core.files import write_bytes
from fl.deployment.formats.base import Executor, Format, example_input, quiet
from fl.models.architecture import Architecture, architecture_of
from fl.models.net import Network
from fl.quantization.folding import fold_batch_norm

INPUT = "args_0"


class LiteRt(Format):
    """LiteRT in FP32, float16 weights, int8 weights with ranges at run time, and integers throughout.

    Files take one image at a time, as a device does: a batch is answered image by image.
    """

    name, suffix, precisions = "litert", ".tflite", ("fp32", "fp16", "int8", "int8_static")
    needs, extra = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert"), "edge"

    def export(self, precision: str, model: Network, calibration: Tensor, folder: Path) -> None:
        with quiet():
            import litert_torch

        whole = self.path(folder, "fp32")
        if precision == "fp32" or not whole.is_file():
            with quiet():
                example = example_input(architecture_of(model), 1)
                litert_torch.convert(fold_batch_norm(model), (example,)).export(str(whole))
        if precision != "fp32":
            write_bytes(self.path(folder, precision), _quantized(precision, whole, calibration))

    def load(self, path: Path, threads: int, architecture: Architecture) -> Executor:
        with quiet():
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=path.read_bytes(), num_threads=threads)
            interpreter.allocate_tensors()
        (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

        def one(image: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(given["index"], _to_integers(image[None], given))
            interpreter.invoke()
            return _to_floats(interpreter.get_tensor(answer["index"]), answer)

        return lambda x: torch.from_numpy(np.concatenate([one(image) for image in x.contiguous().numpy()]))

    def weight_bytes(self, path: Path) -> int:
        from ai_edge_litert.schema_py_generated import Model

        model = Model.GetRootAs(path.read_bytes())
        used = {
            graph.Tensors(number).Buffer()
            for graph in map(model.Subgraphs, range(model.SubgraphsLength()))
            for number in range(graph.TensorsLength())
        }
        return sum(model.Buffers(number).DataLength() for number in used)


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


def _quantized(precision: str, whole: Path, calibration: Tensor) -> bytes:
    """Returns the file's content with weights in fewer bits."""
    from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe

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
