"""Post-training quantization: primitives, kernels, quantized modules, and the precisions made of them."""

from fl.quantization.precisions import Fp16, Fp32, Int8, Int8Static, Precision, precision_from

__all__ = ["Fp16", "Fp32", "Int8", "Int8Static", "Precision", "precision_from"]
