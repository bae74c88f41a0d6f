"""LiteRT (formerly TensorFlow Lite) files, run by its interpreter."""

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


class LiteRt(Format):
    """LiteRT in FP32, float16 weights, int8 weights with ranges at run time, and integers throughout.

    Files take one image at a time, as a device does: a batch is answered image by image.
    """

    name, suffix, precisions = "litert", ".tflite", ("fp32", "fp16", "int8", "int8_static")
    needs, extra = ("litert_torch", "ai_edge_quantizer", "ai_edge_litert"), "edge"

    def export(self, precision: str, model: Network, calibration: Tensor, folder: Path) -> None:
        whole = self.path(folder, "fp32")
        if precision == "fp32" or not whole.is_file():
            example = example_input(architecture_of(model), 1)
            _files().write(fold_batch_norm(model), example, whole)
        if precision != "fp32":
            write_bytes(self.path(folder, precision), _files().quantized(precision, whole, calibration))

    def load(self, path: Path, threads: int, architecture: Architecture) -> Executor:
        one = _files().interpreter(path.read_bytes(), threads)
        return lambda x: torch.from_numpy(np.concatenate([one(image) for image in x.contiguous().numpy()]))

    def weight_bytes(self, path: Path) -> int:
        return _files().weight_bytes(path.read_bytes())


def _files() -> Any:
    """Returns what works on LiteRT files, once its libraries are known to be there."""
    with quiet():
        from fl.deployment.formats import litert_files

        return litert_files
