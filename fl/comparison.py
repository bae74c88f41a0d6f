"""The comparison stage: convert a trained model, evaluate every precision, save, measure, report."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.console import progress
from fl.costs import CostAssumptions, communication_report, measured_traffic
from fl.environment import environment
from fl.errors import ModelFileError
from fl.evaluation import Evaluation, evaluate
from fl.model import Net, num_parameters, to_input
from fl.model_file import load_with_info, save_model
from fl.quantization import Precision, kernels_of
from fl.results import MIB, sha256

JSON_NAME, PLOT_NAME = "quantization_comparison.json", "quantization_comparison.png"
BASELINE = "fp32"
RUN_KEYS = ("state", "rounds_completed", "num_clients", "totals", "server_model", "final")
LOSS_TOLERANCE = 1e-5
"""Relative: float sums may round differently on another number of cores; everything else must be equal."""


@dataclass(frozen=True)
class TestSet:
    """Images to evaluate on.

    Attributes:
        images: uint8 [n, 64, 64, 3].
        labels: int64 [n].
        title: with SYNTHETIC where it applies.
        synthetic: see `fl.data.ImageSet`.
        notes: what decoding changed.
    """

    images: np.ndarray
    labels: np.ndarray
    title: str
    synthetic: bool
    notes: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of pixels and labels."""
        return sha256(self.labels, self.images)


@dataclass(frozen=True)
class Measured:
    """One precision as measured: its file, and what the model in it answered, on validation images too if there are."""

    path: Path
    file_bytes: int
    file_sha256: str
    made_from: str | None
    kernels: str
    evaluation: Evaluation
    trained_with: str | None
    validation: Evaluation | None = None


def convert_and_save(
    model: Net,
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
        calibration: uint8 [n, 64, 64, 3] training images; None where none are needed.
        trained_with: the training precision, for a model that was trained for this one.
    """
    inputs = None
    if precision.num_calibration_images and calibration is not None:
        inputs = to_input(torch.from_numpy(calibration[: precision.num_calibration_images]))
    path, converted = folder / f"model_{precision.name}.pt", precision.convert(model, inputs)
    if trained_with:
        converted.quantization_info |= {"trained_with": trained_with}  # type: ignore[operator]
    save_model(path, converted, source_sha256)
    return path


def measure(
    path: Path, test: TestSet, validation: TestSet | None = None, *, batch_size: int, device: torch.device
) -> Measured:
    """Loads a model file as any user would, and evaluates what was loaded.

    Raises:
        ModelFileError: the file cannot be used, or the loss is not finite.
    """
    model, file = load_with_info(path, device)
    warm_up(model, test, batch_size, device, model.input_dtype)  # type: ignore[arg-type]
    sets = [test] if validation is None else [test, validation]
    with progress(f"evaluating {path.name}", sum(len(each.labels) for each in sets)) as advance:
        evaluation, *others = [
            evaluate(
                model,
                each.images,
                each.labels,
                batch_size=batch_size,
                device=device,
                dtype=model.input_dtype,  # type: ignore[arg-type]
                advance=advance,
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
        *others,
    )


def warm_up(
    model: Callable[[Tensor], Tensor],
    test: TestSet,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Runs two batches, so that packing weights and choosing kernels are not in the time per image."""
    with torch.inference_mode():
        for _ in range(2):
            batch = torch.from_numpy(test.images[:batch_size]).to(device)
            model(to_input(batch, dtype))


def build_report(
    *,
    model_path: str,
    model: Net,
    source_sha256: str,
    measured: Mapping[str, Measured],
    skipped: Mapping[str, str],
    test: TestSet,
    class_names: Sequence[str],
    batch_size: int,
    device: torch.device,
    assumptions: CostAssumptions,
    scales: list[tuple[int, int]],
    run: Mapping[str, Any] | None,
    ledger: Mapping[str, Any] | None,
    calibrated_on: str,
    formats: Mapping[str, Any] | None = None,
    validation: TestSet | None = None,
) -> dict[str, Any]:
    """Returns the content of `quantization_comparison.json`: everything derived from what was measured.

    Args:
        model_path: of the input, as the user gave it.
        model: the FP32 network.
        source_sha256: of the input file.
        measured: by precision; must hold `BASELINE`.
        skipped: precisions left out, with the reason.
        test: the images.
        class_names: of the model.
        batch_size: of the evaluation.
        device: of the evaluation.
        assumptions: of the communication costs.
        scales: further (rounds, clients).
        run: the summary of the run that made the model, if known.
        ledger: its `communication.json`, if there is one.
        calibrated_on: where calibration images come from.
        formats: entries of deployment files, if any were asked for.
        validation: the images that the run held out, if it did.
    """
    baseline = measured[BASELINE]
    return {
        "model_path": model_path,
        "model_sha256": source_sha256,
        "num_parameters": num_parameters(model),
        "class_names": list(class_names),
        "test_set": {
            "title": test.title,
            "synthetic": test.synthetic,
            "num_images": len(test.labels),
            "sha256": test.sha256,
            "notes": list(test.notes),
        },
        "validation_set": validation and {"num_images": len(validation.labels), "sha256": validation.sha256},
        "evaluation": {"batch_size": batch_size, "device": device.type},
        "precisions": {name: _entry(each, baseline, test, validation) for name, each in measured.items()},
        "skipped": dict(skipped),
        **({"formats": formats} if formats else {}),
        "calibrated_on": calibrated_on,
        "communication": communication_report(
            {name: each.file_bytes for name, each in measured.items()},
            assumptions,
            scales,
            measured_traffic(run, ledger, assumptions.cost_per_mb_usd),
        ),
        "run": {key: run.get(key) for key in RUN_KEYS} if run else None,
        "environment": environment(device.type, torch.get_num_threads()),
    }


def _entry(measured: Measured, baseline: Measured, test: TestSet, validation: TestSet | None) -> dict[str, Any]:
    score, reference = measured.evaluation.score, baseline.evaluation.score
    held_out = {}
    if validation and measured.validation and baseline.validation:
        accuracy = measured.validation.score.accuracy
        change = 100 * (accuracy - baseline.validation.score.accuracy)
        beside = _beside(measured.validation, baseline.validation, validation.labels)
        held_out = {"validation": {"accuracy": accuracy, "accuracy_change_points": change, **beside}}
    return {
        "loss": score.loss,
        "accuracy": score.accuracy,
        "accuracy_percent": 100 * score.accuracy,
        "model_path": str(measured.path),
        "file_size_mb": measured.file_bytes / MIB,
        "compression_ratio": baseline.file_bytes / measured.file_bytes,
        "accuracy_drop_percent": 100 * (score.accuracy - reference.accuracy),
        "file_size_bytes": measured.file_bytes,
        "file_sha256": measured.file_sha256,
        "made_from_sha256": measured.made_from,
        **_beside(measured.evaluation, baseline.evaluation, test.labels),
        "inference_ms": measured.evaluation.ms_per_image,
        "kernels": measured.kernels,
        **({"trained_with": measured.trained_with} if measured.trained_with else {}),
        **held_out,
    }


def _beside(evaluation: Evaluation, baseline: Evaluation, labels: np.ndarray) -> dict[str, Any]:
    """Returns how a model's answers differ from the FP32 model's, image by image."""
    same = evaluation.predictions == baseline.predictions
    right, baseline_right = evaluation.predictions == labels, baseline.predictions == labels
    return {
        "agreement_with_fp32": int(same.sum()) / len(labels),
        "only_this_right": int((right & ~baseline_right).sum()),
        "only_fp32_right": int((~right & baseline_right).sum()),
    }


def differences(stored: Any, recomputed: Any, place: str = "") -> list[str]:
    """Returns where two reports differ, one line each.

    Args:
        stored: from the JSON file.
        recomputed: to compare with.
        place: of both in the whole report.
    """
    if isinstance(stored, dict) and isinstance(recomputed, dict):
        keys = [*stored, *(key for key in recomputed if key not in stored)]
        missing = object()
        pairs = ((key, stored.get(key, missing), recomputed.get(key, missing)) for key in keys)
        return [
            line
            for key, old, new in pairs
            for line in (
                [f"{place}{key}: is {'missing' if old is missing else 'not expected'}"]
                if missing in (old, new)
                else differences(old, new, f"{place}{key}.")
            )
        ]
    if isinstance(stored, list) and isinstance(recomputed, list) and len(stored) == len(recomputed):
        pairs_of_items = enumerate(zip(stored, recomputed, strict=True))
        return [line for i, (old, new) in pairs_of_items for line in differences(old, new, f"{place}{i}.")]
    same = type(stored) is type(recomputed) and stored == recomputed
    if place.endswith("loss.") and isinstance(stored, float) and isinstance(recomputed, float):
        same = math.isclose(stored, recomputed, rel_tol=LOSS_TOLERANCE)
    return [] if same else [f"{place.rstrip('.')}: stored {stored!r}, recomputed {recomputed!r}"]
