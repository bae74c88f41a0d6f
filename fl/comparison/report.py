"""`quantization_comparison.json`: everything that is derived from what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl.comparison.costs import CostAssumptions, communication_report, ledger_of, measured_traffic
from fl.comparison.measure import Measured
from fl.core.machine import environment
from fl.core.targets import Target
from fl.core.units import MIB
from fl.data.provenance import Inputs, Run, TestSet
from fl.models.architecture import architecture_of
from fl.models.net import Network, num_parameters
from fl.training.evaluation import Evaluation

BASELINE = "fp32"

RUN_KEYS = ("state", "rounds_completed", "num_clients", "totals", "server_model", "final")


@dataclass(frozen=True)
class Comparison:
    """What a report is about, whatever is measured of it.

    Attributes:
        model_path: of the input, as the user gave it.
        model: the FP32 network.
        source_sha256: of the input file.
        notes: what was done to read the input.
        run: that made the model, if known.
        inputs: the images.
        batch_size: of the evaluation.
        device: of the evaluation.
        assumptions: of the communication costs.
        scales: further (rounds, clients) to compute costs for.
    """

    model_path: str
    model: Network
    source_sha256: str
    notes: tuple[str, ...]
    run: Run | None
    inputs: Inputs
    batch_size: int
    device: torch.device
    assumptions: CostAssumptions
    scales: tuple[tuple[int, int], ...]

    @property
    def network(self) -> Target:
        """Which network it is: that of all its files."""
        return architecture_of(self.model).target

    def report(
        self, measured: Mapping[str, Measured], left_out: Sequence[str], formats: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Returns the content of `quantization_comparison.json`: everything derived from what was measured.

        Args:
            measured: by precision; must hold `BASELINE`.
            left_out: precisions that cannot be calibrated here.
            formats: entries of deployment files, if any were asked for.
        """
        test, validation = self.inputs.test, self.inputs.validation
        summary, baseline = self.run.summary if self.run else None, measured[BASELINE]
        return {
            "model_path": self.model_path,
            "model_sha256": self.source_sha256,
            "num_parameters": num_parameters(self.model),
            **architecture_of(self.model).told(),
            "class_names": list(self.inputs.class_names),
            "test_set": {
                "title": test.title,
                "synthetic": test.synthetic,
                "num_images": len(test.labels),
                "sha256": test.sha256,
                "notes": list(test.notes),
            },
            "validation_set": validation and {"num_images": len(validation.labels), "sha256": validation.sha256},
            "evaluation": {"batch_size": self.batch_size, "device": self.device.type},
            "precisions": {name: self.entry(each, baseline) for name, each in measured.items()},
            "skipped": dict.fromkeys(left_out, self.inputs.calibrated_on),
            **({"formats": formats} if formats else {}),
            "calibrated_on": self.inputs.calibrated_on,
            "communication": communication_report(
                {name: each.file_bytes for name, each in measured.items()},
                self.assumptions,
                self.scales,
                measured_traffic(summary, ledger_of(self.run), self.assumptions.cost_per_mb_usd),
            ),
            "run": {key: summary.get(key) for key in RUN_KEYS} if summary else None,
            "environment": environment(self.device.type, torch.get_num_threads()),
            **({"model_notes": list(self.notes)} if self.notes else {}),
        }

    def entry(self, measured: Measured, baseline: Measured) -> dict[str, Any]:
        """Returns what the report says of one precision, beside what was measured of `BASELINE`."""
        return _entry(measured, baseline, self.inputs.test, self.inputs.validation)


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
        **({"float_tensors": dict(measured.float_tensors)} if measured.float_tensors else {}),
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
