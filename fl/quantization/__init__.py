"""Quantization: numbers, kernels, quantized modules (also for training), and the precisions made of them."""

from fl.quantization.precisions import Precision, empty_model, kernels_of, precision_of
from fl.quantization.qat import aware

__all__ = ["Precision", "aware", "empty_model", "kernels_of", "precision_of"]
