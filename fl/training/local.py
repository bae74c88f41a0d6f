"""Local training: what a client does with the model it received, and in which arithmetic."""

import math
from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, SkipValidation
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.amp import GradScaler

from fl.core.console import progress
from fl.core.groups import STRICT, Count
from fl.core.targets import Target
from fl.models.architecture import input_of
from fl.training.arithmetic import Arithmetic, Fp32

Augmentation = Literal["none", "flips", "dihedral"]

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, config=STRICT)
class TrainingSettings:
    """How a client trains. `optimizer` builds any `torch.optim` optimizer; its learning rate comes each round."""

    local_epochs: Count
    batch_size: Count
    augmentation: Augmentation
    optimizer: Target
    label_smoothing: Annotated[float, Field(ge=0, lt=1, strict=True)]
    arithmetic: SkipValidation[Arithmetic] = field(default_factory=Fp32)


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
        images: any dtype [n, size, size, bands].
        kind: `none`; `flips` left-right and up-down; `dihedral` all eight symmetries of the square.
        generator: on the CPU.
    """
    if kind == "none":
        return images
    coin = torch.randint(0, 2, (3, len(images), 1, 1, 1), generator=generator, dtype=torch.bool).to(images.device)
    images = torch.where(coin[0], images.flip(1), images)
    images = torch.where(coin[1], images.flip(2), images)
    return torch.where(coin[2], images.transpose(1, 2), images) if kind == "dihedral" else images


def train_locally(  # eight: a network, its data, its settings, and this round's numbers, which come from elsewhere
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
        images: [n, height, width, bands] of the architecture's type.
        labels: int64 [n].
        settings: see `TrainingSettings`.
        lr: learning rate of this round.
        proximal_mu: FedProx's weight of half the squared distance to the received weights (arXiv 1812.06127, eq. 2).
        generator: on the CPU; draws the order of images and their augmentation.
        scaler: of the loss, with what it learned in earlier rounds; a fresh one by default.
    """
    model.train()
    device, prepared = images.device.type, input_of(model)
    scaler = scaler or settings.arithmetic.scaler(device)
    optimizer = settings.optimizer.build(model.parameters(), lr=lr)
    received = [parameter.detach().clone() for parameter in model.parameters()]
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    steps = settings.local_epochs * math.ceil(len(labels) / settings.batch_size)
    with progress("training a client", steps, "batch") as advance:
        for batch in _batches(len(labels), settings, generator):
            batch = batch.to(images.device)
            inputs = prepared(augment(images[batch], settings.augmentation, generator))
            with settings.arithmetic.autocast(device):
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
            advance()
    return float(total) / (settings.local_epochs * len(labels))


def _batches(num_images: int, settings: TrainingSettings, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields the positions of each batch; an epoch is shuffled when it begins."""
    for _ in range(settings.local_epochs):
        yield from torch.randperm(num_images, generator=generator).split(settings.batch_size)
