"""torchvision's EuroSAT, which downloads it."""

import fl.core.torchvision_import  # noqa: F401  first

from torchvision.datasets import EuroSAT  # isort: skip

__all__ = ["EuroSAT"]
