"""`compare_quantizations.py --verify`: a stored report, computed again from the files beside it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl.comparison.compare import DeploymentFiles, answers_of, assumptions_of, can_calibrate, places
from fl.comparison.costs import CostAssumptions
from fl.comparison.measure import measure
from fl.comparison.report import BASELINE, Comparison
from fl.core.console import say
from fl.core.errors import ConfigError, VerificationError
from fl.core.files import read_json
from fl.core.machine import device_of
from fl.data.provenance import find_inputs, find_run
from fl.models.architecture import architecture_of, network_named
from fl.quantization.model_file import load_fp32, read_file
from fl.quantization.precisions import precisions

NOT_VERIFIED = ("inference_ms", "environment")

SUMS = ("num_rounds", "broadcast_payload_bytes", "update_payload_bytes", "total_mb", "total_cost_usd")
"""Of the measured traffic, whatever it is compared with."""

IMAGE_BY_IMAGE = ("only_this_right", "only_fp32_right", "validation")

DEPEND_ON_KERNELS = (
    "kernels",
    "loss",
    "accuracy",
    "accuracy_percent",
    "accuracy_drop_percent",
    "agreement_with_fp32",
    *IMAGE_BY_IMAGE,
)


def verify(
    place: Path, output: Path | None, data: str | None, formats: DeploymentFiles, network: str | None = None
) -> None:
    """Recomputes a stored report from the files beside it.

    Args:
        place: the model the report is about, its folder, or the JSON itself.
        output: as given to `compare`.
        data: as given to `compare`.
        formats: measures deployment files again, if the report has any.
        network: as given to `compare`.

    Raises:
        VerificationError: something differs; each difference is printed.
        ConfigError: there is no report.
    """
    if not place.exists():
        raise ConfigError(f"{place}: no such file or folder")
    json_path = place if place.suffix == ".json" else places(place / "x" if place.is_dir() else place, output)[1]
    if not json_path.is_file():
        raise ConfigError(f"{json_path}: there is no report to verify; run without --verify first")
    stored = read_json(json_path)
    try:
        source = place if place.is_file() and place != json_path else json_path.parent / Path(stored["model_path"]).name
        recomputed = _recompute(stored, json_path.parent, source, formats, (data, network))
        kernels = {name: entry["kernels"] for name, entry in recomputed["precisions"].items()}
        other = [name for name, entry in stored["precisions"].items() if entry["kernels"] != kernels[name]]
        told = stored["communication"].get("measured")
        if told is None:  # a report written before there was this part
            older = ["communication.measured: not in this older report"]
            del recomputed["communication"]["measured"]
        elif "total_mb" in told and "shared_start_bytes" not in told:
            older = ["what communication.measured compares with FP32: this older report charged it for the first model"]
            for report in (stored, recomputed):
                sums = report["communication"]["measured"]
                report["communication"]["measured"] = {key: sums.get(key) for key in SUMS}
        else:
            older = []
        if "validation_set" not in stored:
            older.append("answers image by image: not in this older report")
            del recomputed["validation_set"]
            for entry in recomputed["precisions"].values():
                for key in IMAGE_BY_IMAGE:
                    entry.pop(key, None)
        found = differences(_comparable(stored, other), _comparable(recomputed, other))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise VerificationError(f"{json_path}: is no whole report ({error!r})") from error
    for line in found:
        say(f"DIFFERS  {line}", "warning")
    not_compared = [*NOT_VERIFIED, *(f"loss and accuracy of {name}: other kernels here" for name in other)]
    say(f"Not verified: {', '.join([*not_compared, *older])}")
    if found:
        raise VerificationError(f"{json_path}: {len(found)} of its values are not what the files beside it give")
    told = f"Verified: hashes, sizes, counts, costs and accuracies of {', '.join(stored['precisions'])} in {json_path}"
    say(told, event="result")


def _recompute(
    stored: dict[str, Any], folder: Path, source: Path, formats: DeploymentFiles, asked: tuple[str | None, str | None]
) -> dict[str, Any]:
    """Returns the report as it would be written now, from the model files in `folder` and the input `source`."""
    baseline_path = folder / Path(stored["precisions"][BASELINE]["model_path"]).name
    data, named = asked[0], network_named(asked[1]) if asked[1] else None
    model, _ = load_fp32(baseline_path, named)
    source_file = read_file(source if source.is_file() else baseline_path)
    source_sha256 = source_file.made_from or source_file.sha256
    foreign = source.is_file() and source_file.made_from is None
    notes = load_fp32(source, named)[1].notes if foreign else stored.get("model_notes", ())
    run = find_run(source, source_sha256)
    architecture = architecture_of(model)
    inputs = find_inputs(run, data, architecture.num_classes, architecture.pixels)
    batch_size, device = stored["evaluation"]["batch_size"], device_of(stored["evaluation"]["device"])
    measured = {
        name: measure(
            folder / Path(entry["model_path"]).name,
            inputs.test,
            inputs.validation,
            batch_size=batch_size,
            device=device,
            network=architecture_of(model).target,
        )
        for name, entry in stored["precisions"].items()
    }
    supposed = stored["communication"]["assumptions"]
    assumptions = assumptions_of(run, [], [], supposed["cost_per_mb_usd"])
    if run is None and supposed["clients_and_rounds_from"] == "options":
        counts = (supposed["num_clients"], supposed["num_rounds"], supposed["num_clients"])
        assumptions = CostAssumptions(*counts, supposed["cost_per_mb_usd"], "options")
    subject = Comparison(
        model_path=stored["model_path"],
        model=model,
        source_sha256=source_sha256,
        notes=tuple(notes),
        run=run,
        inputs=inputs,
        batch_size=batch_size,
        device=device,
        assumptions=assumptions,
        scales=tuple((scale["num_rounds"], scale["num_clients"]) for scale in stored["communication"]["scales"]),
    )
    formats_now = None
    if stored.get("formats"):
        formats_now = formats.measure_again(subject, answers_of(measured, device), folder, stored["formats"])
    left_out = precisions(list(stored["skipped"]))
    return subject.report(measured, [n for n, each in left_out.items() if not can_calibrate(each, inputs)], formats_now)


def _comparable(report: dict[str, Any], other_kernels: list[str]) -> dict[str, Any]:
    """Returns the report without what cannot be the same twice: timings, hardware, folders."""
    kept = {key: value for key, value in report.items() if key not in NOT_VERIFIED}
    kept["precisions"] = {}
    for name, entry in report["precisions"].items():
        left_out = {*NOT_VERIFIED, *(DEPEND_ON_KERNELS if name in other_kernels else ())}
        kept["precisions"][name] = {key: value for key, value in entry.items() if key not in left_out}
        kept["precisions"][name]["model_path"] = Path(entry["model_path"]).name
    if "formats" in report:
        kept["formats"] = {
            name: {precision: _without(entry, precision in other_kernels) for precision, entry in found.items()}
            for name, found in report["formats"].items()
        }
    return kept


def _without(entry: Mapping[str, Any], other_kernels: bool) -> dict[str, Any]:
    """Returns a deployment file's entry without what cannot be the same twice."""
    ours = ("agreement_with_model_file", "largest_logit_difference") if other_kernels else ()
    return {key: value for key, value in entry.items() if key not in (*NOT_VERIFIED, "model_path", *ours)}


LOSS_TOLERANCE = 1e-5
"""Relative: float sums may round differently on another number of cores; everything else must be equal."""


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
