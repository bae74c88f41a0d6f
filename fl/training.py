"""Local training: what a client does with the model it received, and in which precision."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import dataclasses as checked
from torch import Tensor, nn
from torch.amp import GradScaler, autocast

from fl.model import Net, to_input
from fl.quantization import QatNet
from fl.targets import Target

Augmentation = Literal["none", "flips", "dihedral"]
Schedule = Literal["constant", "linear", "cosine"]


class Precision(Protocol):
    """In what a client computes while it trains; weights stay FP32, and so does what travels."""

    def describe(self, device: str) -> str:
        """Returns what the log says."""

    def network(self, num_classes: int) -> Net:
        """Returns a network to train, with the names of `Net`."""

    def autocast(self, device: str) -> AbstractContextManager[object]:
        """Returns what forward passes are made in."""

    def scaler(self, device: str) -> GradScaler:
        """Returns what scales the loss; disabled where nothing has to be scaled."""


@checked.dataclass(frozen=True)
class Fp32:
    """Everything in FP32."""

    def describe(self, device: str) -> str:
        return "fp32"

    def network(self, num_classes: int) -> Net:
        return Net(num_classes)

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

    def network(self, num_classes: int) -> Net:
        return QatNet(num_classes, self.bits)


@dataclass(frozen=True)
class TrainingSettings:
    """How a client trains. `optimizer` builds any `torch.optim` optimizer; its learning rate comes each round."""

    local_epochs: int
    batch_size: int
    augmentation: Augmentation
    optimizer: Target
    label_smoothing: float
    precision: Precision = field(default_factory=Fp32)


def learning_rate(lr: float, schedule: Schedule, round_number: int, num_rounds: int) -> float:
    """Returns the rate of one round, constant within it.

    Args:
        lr: of the first round.
        schedule: how it falls; `cosine` and `linear` would reach 0 in the round after the last.
        round_number: from 1 to `num_rounds`.
        num_rounds: of the whole run.
    """
    done = (round_number - 1) / num_rounds
    return lr * {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """Returns the images, each flipped (and for `dihedral` turned by quarters) at random.

    Args:
        images: any dtype [n, size, size, 3].
        kind: `none`; `flips` left-right and up-down; `dihedral` all eight symmetries of the square.
        generator: on the CPU.
    """
    if kind == "none":
        return images
    coin = torch.randint(0, 2, (3, len(images), 1, 1, 1), generator=generator, dtype=torch.bool).to(images.device)
    images = torch.where(coin[0], images.flip(1), images)
    images = torch.where(coin[1], images.flip(2), images)
    return torch.where(coin[2], images.transpose(1, 2), images) if kind == "dihedral" else images


def train_locally(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    *,
    lr: float,
    proximal_mu: float,
    generator: torch.Generator,
    scaler: GradScaler | None = None,
) -> float:
    """Trains `model` in place and returns the mean loss per image over all steps.

    Args:
        model: in any mode, on the device of `images`.
        images: uint8 [n, 64, 64, 3].
        labels: int64 [n].
        settings: see `TrainingSettings`.
        lr: learning rate of this round.
        proximal_mu: FedProx's weight of half the squared distance to the received weights (arXiv 1812.06127, eq. 2).
        generator: on the CPU; draws the order of images and their augmentation.
        scaler: of the loss, with what it learned in earlier rounds; a fresh one by default.
    """
    model.train()
    device = images.device.type
    scaler = scaler or settings.precision.scaler(device)
    optimizer = settings.optimizer.build("optimizer", model.parameters(), lr=lr)
    received = [parameter.detach().clone() for parameter in model.parameters()]
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    for _ in range(settings.local_epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(settings.batch_size):
            batch = batch.to(images.device)
            inputs = to_input(augment(images[batch], settings.augmentation, generator))
            with settings.precision.autocast(device):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=settings.label_smoothing)
            total += loss.detach() * len(batch)
            if proximal_mu:
                pairs = zip(model.parameters(), received, strict=True)
                loss = loss + proximal_mu / 2 * torch.stack([(p - start).square().sum() for p, start in pairs]).sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return float(total) / (settings.local_epochs * len(labels))
