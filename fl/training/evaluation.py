"""The one evaluation loop of the project."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.core.console import progress
from fl.core.records import Score
from fl.data.images import Rows
from fl.data.provenance import TestSet
from fl.models.architecture import input_of
from fl.models.net import Network, channels_last, to_input
from fl.quantization.half import prepare


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass.

    Attributes:
        score: mean cross-entropy per image and accuracy.
        predictions: int64 [n], the class of the largest logit.
        logits: float32 [n, classes].
        ms_per_image: wall time of forward passes and input conversion, per image.
    """

    score: Score
    predictions: np.ndarray
    logits: np.ndarray
    ms_per_image: float


def evaluate(  # seven: images and labels are apart, as everywhere in PyTorch; the last two may be left out
    model: Callable[[Tensor], Tensor],
    images: np.ndarray | Rows,
    labels: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    to_input: Callable[[Tensor], Tensor] = to_input,
    label: str = "evaluating",
) -> Evaluation:
    """Returns loss, accuracy and predictions of `model`, which must be in evaluation mode.

    Args:
        model: maps what `to_input` makes of images on `device` to logits [n, classes].
        images: [n, height, width, bands], n at least 1.
        labels: int64 [n].
        batch_size: images per forward pass; results of models with dynamic ranges depend on it.
        device: where `model` lives.
        to_input: makes the model's input of images, see `input_of`.
        label: of the progress.
    """
    loss, answers, seconds = 0.0, [], 0.0
    with torch.inference_mode(), progress(label, len(labels), "image") as advance:
        for start in range(0, len(labels), batch_size):
            batch = torch.from_numpy(images[start : start + batch_size])
            target = torch.from_numpy(labels[start : start + batch_size]).to(device)
            began = time.perf_counter()
            logits = model(to_input(batch.to(device))).float()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds += time.perf_counter() - began
            loss += F.cross_entropy(logits, target, reduction="sum").item()
            answers.append(logits.cpu())
            advance(len(target))
    every = torch.cat(answers)
    predicted = every.argmax(dim=1).numpy()
    score = Score(loss / len(labels), int((predicted == labels).sum()) / len(labels))
    return Evaluation(score, predicted, every.numpy(), 1000 * seconds / len(labels))


def evaluate_as_told(  # seven: as `evaluate`
    model: Network,
    images: np.ndarray | Rows,
    labels: np.ndarray,
    *,
    batch_size: int,
    device: torch.device,
    fp16: bool | None,
    tell: Callable[[str], object] = lambda text: None,
) -> tuple[Evaluation, torch.dtype]:
    """Evaluates a network as `prepare` makes it; in FP32 after all if half precision overflows on these images.

    Returns:
        The evaluation, and the type it was computed in.
    """
    network = prepare(model, device, fp16, tell)
    score = partial(evaluate, images=images, labels=labels, batch_size=batch_size, device=device)
    found = score(network, to_input=input_of(network))
    if network.input_dtype != torch.float32 and not np.isfinite(found.logits).all():
        tell("inference.fp16: answers overflow half precision, FP32 is used instead")
        network = channels_last(model.to(device))
        found = score(network, to_input=input_of(network))
    return found, network.input_dtype


def warm_up(
    model: Callable[[Tensor], Tensor],
    test: TestSet,
    batch_size: int,
    device: torch.device,
    to_input: Callable[[Tensor], Tensor] = to_input,
) -> None:
    """Runs two batches, so that packing weights and choosing kernels are not in the time per image."""
    with torch.inference_mode():
        for _ in range(2):
            batch = torch.from_numpy(test.images[:batch_size]).to(device)
            model(to_input(batch))
