"""Deployment files of one network: written, then evaluated as a device would run them, beside the model files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl.core.console import progress, say
from fl.core.errors import ModelFileError
from fl.core.files import read_json, sha256
from fl.core.run_folder import COMPARISON, FORMATS_FILE
from fl.core.targets import Target
from fl.core.units import MIB
from fl.data.provenance import TestSet
from fl.deployment.apart import written_apart
from fl.deployment.formats import FORMATS, Executor, Format
from fl.models.architecture import NET, Architecture, architecture_of, input_of
from fl.models.net import Network, to_input
from fl.quantization import precision_of
from fl.quantization.model_file import told_network
from fl.training.evaluation import Evaluation, evaluate, warm_up

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Deployed:
    """One deployment file as measured."""

    format: str
    precision: str
    path: Path
    file_bytes: int
    file_sha256: str
    evaluation: Evaluation


def write_files(model: Network, chosen: Sequence[Format], calibration: np.ndarray | None, folder: Path) -> list[Path]:
    """Writes every precision of the formats, but those that need calibration images where there are none, and says so.

    Args:
        model: FP32, in evaluation mode.
        chosen: formats.
        calibration: [n, height, width, bands] training images, or None.
        folder: an existing one.
    """
    given = architecture_of(model).zeros(0)
    inputs = input_of(model)(torch.from_numpy(calibration)) if calibration is not None else given
    if calibration is None and any("int8_static" in each.precisions for each in chosen):
        say("int8_static left out: there are no training images to calibrate on", "warning")
    paths = []
    with progress("writing deployment files", sum(len(each.precisions) for each in chosen), "file") as advance:
        for each in chosen:
            lacking: dict[str, str] = {}
            wanted = [precision for precision in each.precisions if precision != "int8_static" or len(inputs)]
            if architecture_of(model).target == NET:
                for precision in wanted:
                    with progress(f"writing {each.path(folder, precision).name}"):
                        each.export(precision, model, inputs, folder)
            else:
                with progress(f"writing {each.name} in a process of its own"):
                    lacking = written_apart(model, each.name, wanted, inputs, folder)
            for told in dict.fromkeys(lacking.values()):
                say(f"{each.name} left out ({', '.join(p for p in lacking if lacking[p] == told)}): {told}", "warning")
            for precision in lacking:
                each.path(folder, precision).unlink(missing_ok=True)
            paths += [each.path(folder, precision) for precision in wanted if precision not in lacking]
            advance(len(each.precisions))
    return paths


def deployed(path: Path) -> tuple[Format, str] | None:
    """Returns the format and precision of a file that `write_files` names so, else None."""
    for each in FORMATS:
        if path.suffix == each.suffix:
            return each, path.name.removeprefix("model_").removesuffix(each.suffix)
    return None


def _told_of(path: Path) -> dict[str, Any]:
    """Returns what was written down beside a deployment file when it was made, nothing where that was not."""
    content = sha256(path.read_bytes()) if path.is_file() else ""
    for name in (FORMATS_FILE, COMPARISON):
        if content and (path.with_name(name)).is_file():
            told: dict[str, Any] = read_json(path.with_name(name))
            files = [entry for each in told.get("formats", {}).values() for entry in each.values()]
            if any(entry.get("file_sha256") == content for entry in files):
                return told
    return {}


def source_of(path: Path) -> str | None:
    """Returns the SHA-256 of the model that a deployment file was made from, if that is told beside it, else None."""
    told = _told_of(path)
    return str(told.get("made_from_sha256") or told["model_sha256"]) if told else None


def network_in(path: Path, network: Target | None) -> Architecture:
    """Returns which network a deployment file is of: as told beside it, else as the user named it, else the default.

    Raises:
        QuantflError: it is a class of somebody's own, and `network` is not it.
    """
    told = _told_of(path).get("network")
    return told_network(path, told, network) if isinstance(told, Mapping) else Architecture(network or NET)


def open_file(path: Path, threads: int, architecture: Architecture | None = None) -> tuple[Format, str, Executor]:
    """Returns format and precision of a deployment file, and what answers from it.

    Args:
        path: of the file.
        threads: to compute with.
        architecture: of the network in it; None for what is told beside it.

    Raises:
        ModelFileError: there is no such file, it is of no known format, or its runtime refuses it.
    """
    found = deployed(path)
    if found is None or not path.is_file():
        known = ", ".join(f.suffix for f in FORMATS)
        raise ModelFileError(f"{path}: there is no such file" if found else f"{path}: is of no known format ({known})")
    each, precision = found
    each.check_installed(path.name)
    architecture = architecture or network_in(path, None)
    try:
        execute = each.load(path, threads, architecture)
        execute(architecture.zeros(1))
    except Exception as error:  # whatever a runtime makes of a file
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{path}: {each.name} cannot run it ({told})") from error
    return each, precision, execute


def measure_file(path: Path, test: TestSet, batch_size: int, architecture: Architecture) -> Deployed:
    """Evaluates a deployment file on the CPU.

    Raises:
        ModelFileError: see `open_file`; or an answer is not finite.
    """
    each, precision, execute = open_file(path, torch.get_num_threads(), architecture)
    content = path.read_bytes()
    given = partial(to_input, pixels=architecture.pixels)
    warm_up(execute, test, batch_size, CPU, given)
    score = partial(evaluate, images=test.images, labels=test.labels, batch_size=batch_size, device=CPU)
    evaluation = score(execute, to_input=given, label=f"evaluating {path.name}")
    if not np.isfinite(evaluation.logits).all():
        raise ModelFileError(
            f"{path.name}: its answers are not all finite; this model cannot be shipped as {precision}"
        )
    return Deployed(each.name, precision, path, len(content), sha256(content), evaluation)


def same_precision(
    model: Network, known: Mapping[str, Evaluation], calibration: np.ndarray | None, test: TestSet, batch_size: int
) -> Callable[[str], Evaluation]:
    """Returns a function that gives our own model's answers in a precision, evaluated once where they are not known."""
    cache = dict(known)

    def answers(precision: str) -> Evaluation:
        if precision not in cache:
            inputs = input_of(model)(torch.from_numpy(calibration)) if calibration is not None else None
            network = precision_of(precision).convert(model, inputs)
            given = input_of(network)
            cache[precision] = evaluate(
                network, test.images, test.labels, batch_size=batch_size, device=CPU, to_input=given
            )
        return cache[precision]

    return answers


def entries(
    measured: Sequence[Deployed],
    answers: Callable[[str], Evaluation],
    trained_for: Callable[[str], str | None] = lambda precision: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns what JSON says of each file, by format and precision.

    Args:
        measured: the files.
        answers: see `same_precision`.
        trained_for: the training precision of a model that was trained for this one, see `Run.trained_for`.
    """
    report: dict[str, dict[str, dict[str, Any]]] = {}
    baseline = answers("fp32")
    for each in measured:
        ours, theirs = answers(each.precision), each.evaluation
        report.setdefault(each.format, {})[each.precision] = {
            "model_path": str(each.path),
            "file_size_bytes": each.file_bytes,
            "file_size_mb": each.file_bytes / MIB,
            "file_sha256": each.file_sha256,
            "loss": theirs.score.loss,
            "accuracy": theirs.score.accuracy,
            "accuracy_percent": 100 * theirs.score.accuracy,
            "accuracy_drop_percent": 100 * (theirs.score.accuracy - baseline.score.accuracy),
            "agreement_with_model_file": float((theirs.predictions == ours.predictions).mean()),
            "largest_logit_difference": float(np.abs(theirs.logits - ours.logits).max()),
            "inference_ms": theirs.ms_per_image,
            **({"trained_with": training} if (training := trained_for(each.precision)) else {}),
        }
    return report


def table_rows(
    report: Mapping[str, Mapping[str, Mapping[str, Any]]], model_files: Mapping[str, Mapping[str, Any]] | None = None
) -> Iterator[list[str]]:
    """Yields the cells of each file for `COLUMNS`.

    Args:
        report: see `entries`.
        model_files: entries of our own model files, to show first.
    """
    own = {
        precision: {**entry, "agreement_with_model_file": 1.0, "largest_logit_difference": 0.0}
        for precision, entry in (model_files or {}).items()
    }
    for name, precisions in {**({"pt": own} if own else {}), **report}.items():
        for precision, entry in precisions.items():
            yield [
                name,
                f"{precision} QAT" if "trained_with" in entry else precision,
                f"{entry['file_size_bytes']:,}",
                f"{entry['accuracy_percent']:.2f}%",
                f"{entry['accuracy_drop_percent']:+.2f}",
                f"{100 * entry['agreement_with_model_file']:.2f}%",
                f"{entry['largest_logit_difference']:.1e}",
                f"{entry['inference_ms']:.3f}",
            ]


COLUMNS = (
    "format",
    "precision",
    "file bytes",
    "accuracy",
    "change (points)",
    "same as .pt",
    "largest logit difference",
    "ms/image",
)
