"""Lets torchvision be imported beside a CPU-only torch too; import this before it.

PyPI's torchvision is linked against CUDA. Beside a torch without CUDA its extension does not load, and the
import dies because the two operators it would have declared are missing. The project needs none of them, so
their schemas are declared here first, but only when the extension really cannot be loaded.
"""

import importlib.util
from pathlib import Path

import torch


def _extension_loads() -> bool:
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or []) if found else []:
        for extension in Path(folder).glob("_C*.so"):
            try:
                torch.ops.load_library(str(extension))
            except OSError:
                return False
    return True


if not _extension_loads():
    _library = torch.library.Library("torchvision", "DEF")  # kept alive: the declaration goes with it
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
