"""The steps of `compare_quantizations.py`: load, convert, evaluate, save, measure, report; and `--verify`."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fl.candidates import peak_memory
from fl.comparison import (
    BASELINE,
    JSON_NAME,
    PLOT_NAME,
    Measured,
    build_report,
    convert_and_save,
    differences,
    measure,
)
from fl.comparison_inputs import Inputs, Run, find_inputs, find_run, precisions
from fl.console import say, show_table
from fl.costs import CostAssumptions
from fl.deployment import COLUMNS, Deployed, entries, measure_file, same_precision, table_rows, write_files
from fl.environment import compute_with
from fl.errors import ConfigError, VerificationError, counted, writable_folder
from fl.evaluation import Evaluation
from fl.formats import Format, formats
from fl.model import Net, num_parameters
from fl.model_file import load_fp32, read_file
from fl.plots import plot_comparison
from fl.report import costs, heading, opening, precision_section, summary, traffic
from fl.results import read_json, sha256, write_json

DEFAULT_CLIENTS = DEFAULT_ROUNDS = 10
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


def compare(
    model_path: Path,
    *,
    output: Path | None,
    precision_names: list[str],
    precisions_chosen: bool,
    data: str | None,
    batch_size: int,
    device: str,
    clients: list[int],
    rounds: list[int],
    cost_per_mb: float,
    format_names: Sequence[str] = (),
) -> Path:
    """Runs the whole comparison and returns the path of its JSON.

    Args:
        model_path: an FP32 model.
        output: folder or JSON path; None for beside the model.
        precision_names: in the order of the report; the FP32 baseline is put first where it is missing.
        precisions_chosen: the user named them, so none may be left out.
        data: see `fl.comparison_inputs.find_inputs`.
        batch_size: of the evaluation.
        device: "auto", "cpu" or "cuda".
        clients: for further cost figures, with `rounds`.
        rounds: see `clients`.
        cost_per_mb: US$ per 1024 ** 2 bytes.
        format_names: deployment formats to write and evaluate too.

    Raises:
        QuantflError: with everything that was there before still in place; files appear when all are measured.
    """
    methods = precisions([BASELINE, *(name for name in precision_names if name != BASELINE)])
    target = _device(device)
    compute_with(torch.get_num_threads())
    model, file = load_fp32(model_path)
    source_sha256 = file.made_from or file.sha256
    run = find_run(model_path, source_sha256)
    chosen_formats = formats(format_names, "--formats")
    trained_with = {name: run.trained_for(name) if run else None for name in methods}
    titles = {name: f"{method.title} QAT" if trained_with[name] else method.title for name, method in methods.items()}
    output_dir, json_path = _places(model_path, output)
    opening(model_path, output_dir, num_parameters(model))
    file.tell(model_path)
    say("\nLoading test set...")
    inputs = find_inputs(run, data, model.fc3.out_features)
    loaded = f"Test set loaded: {counted(len(inputs.test.labels), 'image')} of {inputs.test.title}"
    if run is None:
        loaded += "\n  note: no run lies beside this model, so its training images are not known"
    say("\n  note: ".join([loaded, *inputs.test.notes]))

    skipped = {n: inputs.calibrated_on for n, m in methods.items() if _cannot_calibrate(m, inputs)}
    if skipped and precisions_chosen:
        raise ConfigError(f"--precisions {next(iter(skipped))}: {inputs.calibrated_on}")
    writable_folder(output_dir, "--output DIR")
    measured: dict[str, Measured] = {}
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".comparison.") as scratch:
        chosen = {name: method for name, method in methods.items() if name not in skipped}
        for number, (name, method) in enumerate(chosen.items(), start=1):
            heading(f"{number}. {titles[name]} ({method.method})")
            if name != BASELINE:
                say(f"Converting to {titles[name]} ({method.method.lower()})...")
            say(f"Evaluating {titles[name]}...")
            training = trained_with[name]
            path = convert_and_save(model, source_sha256, method, Path(scratch), inputs.calibration, training)
            result = measure(path, inputs.test, inputs.validation, batch_size=batch_size, device=target)
            measured[name] = dataclasses.replace(result, path=output_dir / path.name)
            report = build_report(
                model_path=str(model_path),
                model=model,
                source_sha256=source_sha256,
                measured=measured,
                skipped=skipped,
                test=inputs.test,
                class_names=inputs.class_names,
                batch_size=batch_size,
                device=target,
                assumptions=_assumptions(run, clients, rounds, cost_per_mb),
                scales=_scales(run, clients, rounds),
                run=run.summary if run else None,
                ledger=run.ledger if run else None,
                calibrated_on=inputs.calibrated_on,
                validation=inputs.validation,
            )
            precision_section(report["precisions"][name])
        if file.notes:
            report["model_notes"] = list(file.notes)
        if chosen_formats:
            evaluations = {name: each.evaluation for name, each in measured.items()} if target.type == "cpu" else {}
            report["formats"] = _deployed(model, chosen_formats, inputs, run, evaluations, batch_size, Path(scratch))
            for entry in format_entries(report):
                entry["model_path"] = str(output_dir / Path(entry["model_path"]).name)
        for written in Path(scratch).iterdir():
            written.replace(output_dir / written.name)
    write_json(json_path, report)
    plot_comparison(json_path.with_name(PLOT_NAME), report, titles)
    summary(report, titles)
    if chosen_formats:
        heading("DEPLOYMENT FORMATS (on the CPU)")
        show_table(
            COLUMNS, table_rows(report["formats"], report["precisions"] if target.type == "cpu" else None), keys=2
        )
    costs(report["communication"], titles)
    traffic(report["communication"], titles)
    heading(f"Results saved to: {json_path}\nPicture: {json_path.with_name(PLOT_NAME)}")
    say("\nDone!")
    return json_path


def _deployed(
    model: Net,
    chosen: Sequence[Format],
    inputs: Inputs,
    run: Run | None,
    evaluations: Mapping[str, Evaluation],
    batch_size: int,
    folder: Path,
) -> dict[str, Any]:
    """Writes deployment files into `folder` and returns what was measured of them."""
    heading(f"Deployment formats: {', '.join(each.name for each in chosen)}")
    paths = write_files(model, chosen, inputs.calibration, folder)
    files = [measure_file(path, inputs.test, batch_size) for path in paths]
    return format_report(model, files, inputs, run, evaluations, batch_size)


def format_report(
    model: Net,
    files: Sequence[Deployed],
    inputs: Inputs,
    run: Run | None,
    evaluations: Mapping[str, Evaluation],
    batch_size: int,
) -> dict[str, Any]:
    """Returns the JSON of deployment files, each beside our own model of the same precision."""
    answers = same_precision(model, evaluations, inputs.calibration, inputs.test, batch_size)
    return entries(files, answers, run.trained_for if run else lambda precision: None)


def format_entries(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the entry of every deployment file of a report."""
    for precisions_of_one in report.get("formats", {}).values():
        yield from precisions_of_one.values()


def _cannot_calibrate(method: Any, inputs: Any) -> bool:
    return method.num_calibration_images > 0 and inputs.calibration is None


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _places(model_path: Path, output: Path | None) -> tuple[Path, Path]:
    """Returns the folder for model files and the path of the JSON."""
    if output is None:
        return model_path.parent, model_path.parent / JSON_NAME
    if output.suffix == ".json":
        return output.parent, output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output}: is a file; give a folder or a path that ends in .json")
    return output, output / JSON_NAME


def _assumptions(run: Run | None, clients: list[int], rounds: list[int], cost_per_mb: float) -> CostAssumptions:
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


def _scales(run: Run | None, clients: list[int], rounds: list[int]) -> list[tuple[int, int]]:
    """Returns every combination of the lists in the options; a list that is not given has the one usual value."""
    if not clients and not rounds:
        return []
    usual = _assumptions(run, [], [], 0.0)
    return [(r, c) for r in rounds or [usual.num_rounds] for c in clients or [usual.num_clients]]


def verify(place: Path, output: Path | None, data: str | None) -> None:
    """Recomputes a stored report from the files beside it.

    Args:
        place: the model the report is about, its folder, or the JSON itself.
        output: as given to `compare`.
        data: as given to `compare`.

    Raises:
        VerificationError: something differs; each difference is printed.
        ConfigError: there is no report.
    """
    if not place.exists():
        raise ConfigError(f"{place}: no such file or folder")
    json_path = place if place.suffix == ".json" else _places(place / "x" if place.is_dir() else place, output)[1]
    if not json_path.is_file():
        raise ConfigError(f"{json_path}: there is no report to verify; run without --verify first")
    stored = read_json(json_path)
    try:
        source = place if place.is_file() and place != json_path else json_path.parent / Path(stored["model_path"]).name
        recomputed = _recompute(stored, json_path.parent, source, data)
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
        say(f"DIFFERS  {line}")
    not_compared = [*NOT_VERIFIED, *(f"loss and accuracy of {name}: other kernels here" for name in other)]
    say(f"Not verified: {', '.join([*not_compared, *older])}")
    if found:
        raise VerificationError(f"{json_path}: {len(found)} of its values are not what the files beside it give")
    say(f"Verified: hashes, sizes, counts, costs and accuracies of {', '.join(stored['precisions'])} in {json_path}")


def _recompute(stored: dict[str, Any], folder: Path, source: Path, data: str | None) -> dict[str, Any]:
    """Returns the report as it would be written now, from the model files in `folder` and the input `source`."""
    baseline_path = folder / Path(stored["precisions"][BASELINE]["model_path"]).name
    model, _ = load_fp32(baseline_path)
    source_file = read_file(source if source.is_file() else baseline_path)
    source_sha256 = source_file.made_from or source_file.sha256
    foreign = source.is_file() and source_file.made_from is None
    notes = load_fp32(source)[1].notes if foreign else stored.get("model_notes", ())
    run = find_run(source, source_sha256)
    inputs = find_inputs(run, data, model.fc3.out_features)
    batch_size, device = stored["evaluation"]["batch_size"], _device(stored["evaluation"]["device"])
    measured = {
        name: measure(
            folder / Path(entry["model_path"]).name,
            inputs.test,
            inputs.validation,
            batch_size=batch_size,
            device=device,
        )
        for name, entry in stored["precisions"].items()
    }
    formats_now = None
    if stored.get("formats"):
        _try_files(stored["formats"], folder)
        names = [Path(entry["model_path"]).name for entry in format_entries(stored)]
        files = [measure_file(folder / name, inputs.test, batch_size) for name in names]
        evaluations = {name: each.evaluation for name, each in measured.items()} if device.type == "cpu" else {}
        formats_now = format_report(model, files, inputs, run, evaluations, batch_size)
    supposed = stored["communication"]["assumptions"]
    assumptions = _assumptions(run, [], [], supposed["cost_per_mb_usd"])
    if run is None and supposed["clients_and_rounds_from"] == "options":
        counts = (supposed["num_clients"], supposed["num_rounds"], supposed["num_clients"])
        assumptions = CostAssumptions(*counts, supposed["cost_per_mb_usd"], "options")
    left_out = precisions(list(stored["skipped"]))
    report = build_report(
        model_path=stored["model_path"],
        model=model,
        source_sha256=source_sha256,
        measured=measured,
        skipped={n: inputs.calibrated_on for n, method in left_out.items() if _cannot_calibrate(method, inputs)},
        test=inputs.test,
        class_names=inputs.class_names,
        batch_size=batch_size,
        device=device,
        assumptions=assumptions,
        scales=[(scale["num_rounds"], scale["num_clients"]) for scale in stored["communication"]["scales"]],
        run=run.summary if run else None,
        ledger=run.ledger if run else None,
        calibrated_on=inputs.calibrated_on,
        formats=formats_now,
        validation=inputs.validation,
    )
    return {**report, **({"model_notes": list(notes)} if notes else {})}


def _try_files(formats: Mapping[str, Any], folder: Path) -> None:
    """Makes sure that deployment files are those of the report, and that each can be run, in a process of its own.

    Raises:
        VerificationError: one is another file; none of them was run.
        ModelFileError: one cannot be run.
    """
    places = {
        f"formats.{name}.{precision}": entry for name, each in formats.items() for precision, entry in each.items()
    }
    paths = {place: folder / Path(entry["model_path"]).name for place, entry in places.items()}
    found = {place: sha256(path.read_bytes()) if path.is_file() else "no file" for place, path in paths.items()}
    if other := [place for place, entry in places.items() if entry["file_sha256"] != found[place]]:
        for place in other:
            say(f"DIFFERS  {place}.file_sha256: {places[place]['file_sha256']} stored, {found[place]} now")
        raise VerificationError(
            f"{folder}: {counted(len(other), 'deployment file')} of the report differ, and none was run"
        )
    for path in paths.values():
        peak_memory(path, "cpu", 1, [1])


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
