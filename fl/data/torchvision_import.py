"""Imports torchvision's EuroSAT beside a CPU-only torch too.

PyPI's torchvision is linked against CUDA. Beside a torch without CUDA its extension does not load, and the
import dies because the two operators it would have declared are missing. The project needs none of them, so
their schemas are declared here first, but only when the extension really is absent.
"""

import torch

if torch.version.cuda is None:
    _library = torch.library.Library("torchvision", "DEF")  # kept alive: the declaration goes with it
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.datasets import EuroSAT

__all__ = ["EuroSAT"]
