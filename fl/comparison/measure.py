"""One precision of a model: converted, saved, loaded as a user would, and evaluated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fl.core.console import progress
from fl.core.errors import ModelFileError
from fl.core.targets import Target
from fl.data.provenance import TestSet
from fl.models.architecture import input_of
from fl.models.net import Network
from fl.quantization import Precision, kernels_of
from fl.quantization.model_file import load_with_info, save_model
from fl.training.evaluation import Evaluation, evaluate, warm_up


@dataclass(frozen=True)
class Measured:
    """One precision as measured: its file, and what the model in it answered, on validation images too if there are.

    Attributes:
        float_tensors: what an integer model keeps in FP32 beside its layers' scales and biases: bytes by name.
    """

    path: Path
    file_bytes: int
    file_sha256: str
    made_from: str | None
    kernels: str
    evaluation: Evaluation
    trained_with: str | None
    float_tensors: Mapping[str, int]
    validation: Evaluation | None = None


def convert_and_save(
    model: Network,
    source_sha256: str,
    precision: Precision,
    folder: Path,
    calibration: np.ndarray | None,
    trained_with: str | None = None,
) -> Path:
    """Converts `model`, writes `model_<name>.pt` and returns its path.

    Args:
        model: FP32.
        source_sha256: of the file it came from.
        precision: how to convert.
        folder: an existing one.
        calibration: [n, height, width, bands] training images; None where none are needed.
        trained_with: the training precision, for a model that was trained for this one.
    """
    inputs = None
    if precision.num_calibration_images and calibration is not None:
        inputs = input_of(model)(torch.from_numpy(calibration[: precision.num_calibration_images]))
    path = folder / f"model_{precision.name}.pt"
    label = f"converting to {precision.title}" if inputs is None else f"calibrating {precision.title}"
    with progress(label):
        converted = precision.convert(model, inputs)
    if trained_with:
        converted.quantization_info = {**converted.quantization_info, "trained_with": trained_with}
    save_model(path, converted, source_sha256)
    return path


def measure(
    path: Path,
    test: TestSet,
    validation: TestSet | None = None,
    *,
    batch_size: int,
    device: torch.device,
    network: Target | None = None,
) -> Measured:
    """Loads a model file as any user would, and evaluates what was loaded; `network` names a class of the user's own.

    Raises:
        ModelFileError: the file cannot be used, or the loss is not finite.
    """
    model, file = load_with_info(path, device, network)
    warm_up(model, test, batch_size, device, input_of(model))
    sets = [test] if validation is None else [test, validation]
    evaluation, *others = [
        evaluate(
            model,
            each.images,
            each.labels,
            batch_size=batch_size,
            device=device,
            to_input=input_of(model),
            label=f"evaluating {path.name}",
        )
        for each in sets
    ]
    if not math.isfinite(evaluation.score.loss):
        raise ModelFileError(f"{path.name}: its loss is not finite; the model's values overflow in this precision")
    return Measured(
        path,
        file.num_bytes,
        file.sha256,
        file.made_from,
        kernels_of(model),
        evaluation,
        file.info.get("trained_with"),
        file.info.get("float_tensors", {}),
        *others,
    )
