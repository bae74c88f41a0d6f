"""Quantization: numbers, kernels, quantized modules (also for training), and the precisions made of them."""

from fl.quantization.modules import QatNet
from fl.quantization.precisions import Precision, empty_model, kernels_of, precision_of

__all__ = ["Precision", "QatNet", "empty_model", "kernels_of", "precision_of"]
