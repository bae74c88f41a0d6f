"""In what a client computes while it trains: FP32, 16 bits, or as an integer model will answer."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from pydantic import dataclasses as checked
from torch.amp import GradScaler, autocast

from fl.models.net import Network
from fl.quantization import aware


class Arithmetic(Protocol):
    """In what a client computes while it trains; weights stay FP32, and so does what travels."""

    def describe(self, device: str) -> str:
        """Returns what the log says."""

    def made_for(self, precision: str) -> bool:
        """Tells whether a model is trained for being converted to this precision of `conf/precision/`."""

    def prepared(self, network: Network) -> Network:
        """Returns a network, changed in place, as it is trained; with the same names and parameters."""

    def autocast(self, device: str) -> AbstractContextManager[object]:
        """Returns what forward passes are made in."""

    def scaler(self, device: str) -> GradScaler:
        """Returns what scales the loss; disabled where nothing has to be scaled."""


@checked.dataclass(frozen=True)
class Fp32:
    """Everything in FP32."""

    def describe(self, device: str) -> str:
        return "fp32"

    def made_for(self, precision: str) -> bool:
        return False

    def prepared(self, network: Network) -> Network:
        return network

    def autocast(self, device: str) -> AbstractContextManager[object]:
        return nullcontext()

    def scaler(self, device: str) -> GradScaler:
        return GradScaler(device, enabled=False)


def native_bfloat16() -> bool:
    """Tells whether this CPU has bfloat16 instructions (AMX, AVX512-BF16 or their like)."""
    return any(there for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


@checked.dataclass(frozen=True)
class Amp(Fp32):
    """Automatic mixed precision: convolutions and products in 16 bits, weights and the rest in FP32.

    Args:
        dtype: "bfloat16", or "float16" with loss scaling (Micikevicius et al., arXiv 1710.03740); "auto" is bfloat16
            where the hardware has instructions for it, else float16 on a GPU and float32 on a CPU.
    """

    dtype: Literal["auto", "float16", "bfloat16"] = "auto"

    def describe(self, device: str) -> str:
        chosen = str(self._chosen(device)).removeprefix("torch.")
        return f"amp {chosen} (no 16-bit instructions here)" if chosen == "float32" else f"amp {chosen}"

    def autocast(self, device: str) -> AbstractContextManager[object]:
        return autocast(device, self._chosen(device), enabled=self._chosen(device) != torch.float32)

    def scaler(self, device: str) -> GradScaler:
        return GradScaler(device, enabled=self._chosen(device) == torch.float16)

    def _chosen(self, device: str) -> torch.dtype:
        if self.dtype != "auto":
            return torch.float16 if self.dtype == "float16" else torch.bfloat16
        if device == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
        return torch.bfloat16 if native_bfloat16() else torch.float32


@checked.dataclass(frozen=True)
class Qat(Fp32):
    """Quantization-aware training: forward passes see weights and activations as an integer model will have them.

    Gradients pass through the rounding as if it were not there (Jacob et al., arXiv 1712.05877, section 3).

    Args:
        bits: of weights: 8 as `int8`, 4 as `int4` of the comparison; activations have 8 bits, ranges per batch.
    """

    bits: Literal[4, 8] = 8

    def describe(self, device: str) -> str:
        return f"qat int{self.bits}"

    def made_for(self, precision: str) -> bool:
        return precision.startswith(f"int{self.bits}")

    def prepared(self, network: Network) -> Network:
        return aware(network, self.bits)
