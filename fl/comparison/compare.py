"""The steps of `compare_quantizations.py`: load, convert, evaluate, save, measure, report."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fl.comparison.costs import CostAssumptions
from fl.comparison.measure import Measured, convert_and_save, measure
from fl.comparison.plots import plot_comparison
from fl.comparison.printed import costs, opening, precision_section, show_measured, summary
from fl.comparison.recommend import recommendation
from fl.comparison.report import BASELINE, Comparison
from fl.core.console import heading, progress, say
from fl.core.errors import ConfigError, counted, writable_folder
from fl.core.files import write_json, write_npz
from fl.core.machine import compute_with, device_of
from fl.core.run_folder import COMPARISON, COMPARISON_PLOT, PREDICTIONS, RECOMMENDATION
from fl.data.images import visible
from fl.data.provenance import Inputs, Run, TestSet, find_inputs, find_run
from fl.models.architecture import architecture_of, network_named
from fl.models.net import num_parameters
from fl.quantization import Precision
from fl.quantization.model_file import load_fp32
from fl.quantization.precisions import precisions
from fl.training.evaluation import Evaluation

DEFAULT_CLIENTS = DEFAULT_ROUNDS = 10
MOST_CHANGED = 12


class DeploymentFiles(Protocol):
    """Files for other runtimes, which a comparison may write and evaluate too (`fl.deployment.beside.DeploymentFiles`).

    `known` are our own model's answers, by precision, as far as they are known.
    """

    def write(self, about: Comparison, known: Mapping[str, Evaluation], folder: Path) -> dict[str, Any]:
        """Writes the files into an existing folder and returns what the report says of them."""

    def measure_again(
        self, about: Comparison, known: Mapping[str, Evaluation], folder: Path, stored: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns what a report says now of the files that a stored one names.

        Raises:
            VerificationError: one is another file; none of them was run.
            ModelFileError: one cannot be run.
        """

    def show(self, entries: Mapping[str, Any], model_files: Mapping[str, Any] | None) -> None:
        """Prints a table of what `write` returned, below the entries of model files."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        model: an FP32 model.
        output: folder or JSON path; None for beside the model.
        precisions: in the order of the report; the FP32 baseline is put first where it is missing.
        chosen: the user named them, so none may be left out.
        data: see `fl.data.provenance.find_inputs`.
        batch_size: of the evaluation.
        device: "auto", "cpu" or "cuda".
        clients: for further cost figures, with `rounds`.
        rounds: see `clients`.
        cost_per_mb: US$ per 1024 ** 2 bytes.
        network: see `fl.models.architecture.network_named`; None where the file or its run tell.
    """

    model: Path
    output: Path | None
    precisions: Sequence[str]
    chosen: bool
    data: str | None
    batch_size: int
    device: str
    clients: Sequence[int]
    rounds: Sequence[int]
    cost_per_mb: float
    network: str | None = None


def compare(options: Options, formats: DeploymentFiles | None = None) -> Path:
    """Runs the whole comparison and returns the path of its JSON.

    Args:
        options: what to compare.
        formats: deployment files to write and evaluate too.

    Raises:
        QuantflError: with everything that was there before still in place; files appear when all are measured.
    """
    methods = precisions([BASELINE, *(name for name in options.precisions if name != BASELINE)])
    device = device_of(options.device)
    compute_with(torch.get_num_threads())
    output_dir, json_path = places(options.model, options.output)
    subject = _opened(options, device, output_dir)
    left_out = [name for name, method in methods.items() if not can_calibrate(method, subject.inputs)]
    if left_out and options.chosen:
        raise ConfigError(f"--precisions {left_out[0]}: {subject.inputs.calibrated_on}")
    trained_with = {name: subject.run.trained_for(name) if subject.run else None for name in methods}
    titles = {name: f"{method.title} QAT" if trained_with[name] else method.title for name, method in methods.items()}
    writable_folder(output_dir, "--output DIR")
    measured: dict[str, Measured] = {}
    written, chosen = None, {name: method for name, method in methods.items() if name not in left_out}
    step = progress("comparison", len(chosen), "precision")
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".comparison.") as scratch, step as advance:
        for number, (name, method) in enumerate(chosen.items()):
            heading(f"{number + 1}. {titles[name]} ({method.method})")
            if name != BASELINE:
                say(f"Converting to {titles[name]} ({method.method.lower()})...")
            say(f"Evaluating {titles[name]}...")
            inputs = subject.inputs
            path = convert_and_save(
                subject.model, subject.source_sha256, method, Path(scratch), inputs.calibration, trained_with[name]
            )
            images = inputs.test, inputs.validation
            result = measure(path, *images, batch_size=subject.batch_size, device=device, network=subject.network)
            measured[name] = dataclasses.replace(result, path=output_dir / path.name)
            precision_section(subject.entry(measured[name], measured[BASELINE]))
            advance()
        if formats:
            written = formats.write(subject, answers_of(measured, device), Path(scratch))
            for entry in (entry for each in written.values() for entry in each.values()):
                entry["model_path"] = str(output_dir / Path(entry["model_path"]).name)
        write_npz(Path(scratch) / PREDICTIONS, answers_told(measured, subject.inputs.test))
        for file in Path(scratch).iterdir():
            file.replace(output_dir / file.name)
    report = subject.report(measured, left_out, written)
    write_json(json_path, report)
    trained = subject.run.summary.get("training_precision", "fp32") if subject.run else "fp32"
    write_json(json_path.with_name(RECOMMENDATION), recommendation(report, trained))
    plot_comparison(json_path.with_name(COMPARISON_PLOT), report, titles)
    summary(report, titles)
    if formats and written:
        heading("DEPLOYMENT FORMATS (on the CPU)")
        formats.show(written, report["precisions"] if device.type == "cpu" else None)
    costs(report["communication"], titles)
    show_measured(report["communication"], titles)
    heading(f"Results saved to: {json_path}\nPicture: {json_path.with_name(COMPARISON_PLOT)}", event="result")
    say("\nDone!")
    return json_path


def _opened(options: Options, device: torch.device, output_dir: Path) -> Comparison:
    """Reads the model and the images, and says what they are."""
    model, file = load_fp32(options.model, network_named(options.network) if options.network else None)
    source_sha256 = file.made_from or file.sha256
    run = find_run(options.model, source_sha256)
    opening(options.model, output_dir, num_parameters(model))
    file.tell(options.model)
    say("\nLoading test set...")
    architecture = architecture_of(model)
    inputs = find_inputs(run, options.data, architecture.num_classes, architecture.pixels)
    loaded = f"Test set loaded: {counted(len(inputs.test.labels), 'image')} of {inputs.test.title}"
    if run is None:
        loaded += "\n  note: no run lies beside this model, so its training images are not known"
    say("\n  note: ".join([loaded, *inputs.test.notes]))
    return Comparison(
        model_path=str(options.model),
        model=model,
        source_sha256=source_sha256,
        notes=file.notes,
        run=run,
        inputs=inputs,
        batch_size=options.batch_size,
        device=device,
        assumptions=assumptions_of(run, options.clients, options.rounds, options.cost_per_mb),
        scales=_scales(run, options.clients, options.rounds),
    )


def answers_of(measured: Mapping[str, Measured], device: torch.device) -> dict[str, Evaluation]:
    """Returns what deployment files, which run on the CPU, can be held against; nothing of another device."""
    return {name: each.evaluation for name, each in measured.items()} if device.type == "cpu" else {}


def answers_told(measured: Mapping[str, Measured], test: TestSet) -> dict[str, np.ndarray]:
    """Returns what `predictions.npz` holds: int64 `labels` and answers by precision, and images that change.

    `changed` has the positions of at most twelve test images that some precision answers otherwise than FP32, those of
    INT8 first, and `changed_images` how they look, uint8 [n, height, width, 3].
    """
    answers = {name: each.evaluation.predictions for name, each in measured.items()}
    order = sorted((name for name in answers if name != BASELINE), key=lambda name: not name.startswith("int8"))
    found = [np.flatnonzero(answers[name] != answers[BASELINE]) for name in order]
    changed = np.array(list(dict.fromkeys(np.concatenate(found).tolist() if found else []))[:MOST_CHANGED], np.int64)
    images = [visible(test.images[int(each) : int(each) + 1][0]) for each in changed]
    shown = np.stack(images) if images else np.zeros((0, 1, 1, 3), np.uint8)
    return {"labels": test.labels, **answers, "changed": changed, "changed_images": shown}


def can_calibrate(method: Precision, inputs: Inputs) -> bool:
    """Tells whether there are the training images that a precision needs."""
    return not method.num_calibration_images or inputs.calibration is not None


def places(model_path: Path, output: Path | None) -> tuple[Path, Path]:
    """Returns the folder for model files and the path of the JSON."""
    if output is None:
        return model_path.parent, model_path.parent / COMPARISON
    if output.suffix == ".json":
        return output.parent, output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; give a folder or a path that ends in .json")
    return output, output / COMPARISON


def assumptions_of(
    run: Run | None, clients: Sequence[int], rounds: Sequence[int], cost_per_mb: float
) -> CostAssumptions:
    """Returns clients and rounds from the run that made the model, from the options otherwise, else 10 and 10."""
    if run:
        made_by = run.summary
        satellites = made_by["num_clients"]
        return CostAssumptions(
            made_by["clients_per_round"], made_by["rounds_completed"], satellites, cost_per_mb, "run"
        )
    num_clients, num_rounds = (clients or [DEFAULT_CLIENTS])[0], (rounds or [DEFAULT_ROUNDS])[0]
    source = "options" if clients or rounds else "default"
    return CostAssumptions(num_clients, num_rounds, num_clients, cost_per_mb, source)


def _scales(run: Run | None, clients: Sequence[int], rounds: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Returns every combination of the lists in the options; a list that is not given has the one usual value."""
    if not clients and not rounds:
        return ()
    usual = assumptions_of(run, [], [], 0.0)
    return tuple((r, c) for r in rounds or [usual.num_rounds] for c in clients or [usual.num_clients])
