"""Post-training quantization: primitives, kernels, quantized modules, and the precisions made of them."""

from fl.quantization.modules import QatNet
from fl.quantization.precisions import Fp16, Fp32, Int2, Int4, Int8, Int8Static, Precision, precision_from

__all__ = ["Fp16", "Fp32", "Int2", "Int4", "Int8", "Int8Static", "Precision", "QatNet", "precision_from"]
