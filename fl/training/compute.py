"""What networks are computed with: device, threads, and half precision or not when they answer."""

from typing import Any, Literal

import torch
from pydantic import field_validator
from pydantic.dataclasses import dataclass

from fl.core.errors import ConfigError
from fl.core.groups import STRICT, Count
from fl.quantization.half import fp16_wanted


@dataclass(frozen=True, config=STRICT)
class InferenceSettings:
    """In which precision networks answer; `fp16` is None for "auto"."""

    fp16: bool | None = None

    @field_validator("fp16", mode="before")
    @classmethod
    def _word(cls, word: Any) -> bool | None:
        return fp16_wanted(word)


@dataclass(frozen=True, config=STRICT)
class ComputeSettings:
    """What server and clients compute with; another number of threads gives other last bits."""

    device: Literal["auto", "cpu", "cuda"]
    threads_per_client: Count
    inference: InferenceSettings = InferenceSettings()

    def check(self, reaches_gpu: bool) -> None:
        """Refuses a device that is not there.

        Args:
            reaches_gpu: whether clients see a GPU where they run.

        Raises:
            ConfigError: says what to use instead.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device=cuda: torch finds no CUDA device here; use device=auto or device=cpu")
        if self.device == "cuda" and not reaches_gpu:
            raise ConfigError(
                "device=cuda: clients see no GPU with engine.client_gpus=0; give each a share, as in 0.25"
            )

    def chosen(self, reaches_gpu: bool) -> str:
        """Returns "cpu" or "cuda"."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() and reaches_gpu else "cpu"
