"""The model of the best round, ready to ship, with what it was chosen by."""

import argparse
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fl.core.console import say, show_table
from fl.core.errors import ConfigError, reading, writable_folder
from fl.core.files import read_json, sha256, write_bytes, write_json
from fl.core.records import read_rounds
from fl.core.run_folder import FORMATS_FILE, MODEL, ROUNDS, SUMMARY
from fl.data.provenance import find_inputs, find_run
from fl.deployment.choice import choose_round
from fl.deployment.files import COLUMNS, entries, measure_file, same_precision, table_rows, write_files
from fl.deployment.formats import Format, formats
from fl.deployment.plots import plot_selection
from fl.models.architecture import architecture_of, network_named
from fl.models.net import Network
from fl.quantization import precision_of
from fl.quantization.model_file import LoadedFile, load_fp32, read_file, save_model

FOLDER, METADATA, README, PLOT = "export", "selection_metadata.json", "README.md", "selection.png"

BATCH_SIZE = 32


@dataclass(frozen=True)
class Shipment:
    """A model, and what it was converted to.

    Attributes:
        path: of the model.
        source: what was read from there.
        model: as it was trained.
        converted: what is shipped.
    """

    path: Path
    source: LoadedFile
    model: Network
    converted: Network

    @property
    def file_name(self) -> str:
        """Of what is shipped."""
        return f"model_{self.converted.quantization_info['precision']}.pt"

    def metadata(self, content: bytes) -> dict[str, Any]:
        """Returns where the file with this content comes from and what it is."""
        return {
            "made_from": str(self.path),
            "made_from_sha256": self.source.sha256,
            "made_from_bytes": self.source.num_bytes,
            "file": self.file_name,
            "file_size_bytes": len(content),
            "file_sha256": sha256(content),
            "quantization_info": self.converted.quantization_info,
        }


def export(options: argparse.Namespace) -> Path:
    """Writes the folder and returns it.

    Raises:
        QuantflError: the folder is no finished run, or what was asked for cannot be had.
    """
    chosen_formats = formats(options.format, "--format")
    _check(options)
    run_dir: Path = options.run_dir
    summary, records = read_json(run_dir / SUMMARY), read_rounds(run_dir / ROUNDS)
    with reading(run_dir / SUMMARY):
        data = {key: summary["data"][key] for key in ("name", "synthetic", "num_validation")}
    choice = choose_round(run_dir, run_dir / MODEL, records, options.metric, options.round)
    shipment = _converted(choice.path, options)
    wrote = summary.get("model_sha256")
    if choice.path == run_dir / MODEL and wrote is not None and wrote != shipment.source.sha256:
        raise ConfigError(f"{choice.path}: is not the model that this run wrote; {SUMMARY} has another SHA-256")
    folder = _folder(options.output or run_dir / FOLDER)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as name:
        scratch = Path(name)
        save_model(scratch / shipment.file_name, shipment.converted, shipment.source.sha256)
        content = (scratch / shipment.file_name).read_bytes()
        metadata: dict[str, Any] = {
            "run_dir": str(run_dir),
            "round": choice.round,
            "num_rounds": len(records),
            "metric": options.metric,
            "reason": choice.reason,
            "candidates": choice.candidates,
            "data": data,
            **shipment.metadata(content),
        }
        write_bytes(scratch / README, readme(metadata, shipment.file_name).encode())
        if options.plot:
            plot_selection(scratch / PLOT, records, choice.round, options.metric)
        report = _deployed(shipment, chosen_formats, options, scratch, folder) if chosen_formats else {}
        metadata["files"] = sorted({METADATA, *(file.name for file in scratch.iterdir())})
        write_json(scratch / METADATA, metadata)
        _remove_older(folder, metadata["files"])
        for file in scratch.iterdir():
            file.replace(folder / file.name)
    if report:
        show_table(COLUMNS, table_rows(report), keys=2)
    say(f"Round {choice.round}: {choice.reason}")
    before, after = shipment.source.num_bytes, len(content)
    told = f"{after:,} bytes, {before / after:.2f}x smaller than the FP32 file ({before:,})"
    say(f"{folder / shipment.file_name}: {told}\nWhy: {folder / METADATA}", event="result")
    return folder


def _check(options: argparse.Namespace) -> None:
    """Refuses a folder that is no finished run, and options that do not go together."""
    missing = [name for name in (MODEL, ROUNDS, SUMMARY) if not (options.run_dir / name).is_file()]
    if missing:
        raise ConfigError(f"{options.run_dir}: is no finished run, it has no {', '.join(missing)}")
    if options.data and not options.format:
        raise ConfigError(f"--data {options.data}: nothing is evaluated without --format")
    if options.keep_batchnorm_fp32 and options.quantize == "none":
        raise ConfigError("--keep-batchnorm-fp32: everything stays FP32 with --quantize none")


def _converted(path: Path, options: argparse.Namespace) -> Shipment:
    """Reads a model, says what it is, and converts it as asked."""
    model, source = load_fp32(path, network_named(options.model) if options.model else None)
    source.tell(path)
    kept = {"keep_batchnorm_fp32": True} if options.keep_batchnorm_fp32 else {}
    converted = precision_of("fp16" if options.quantize == "fp16" else "fp32").convert(model, None, **kept)
    counts = tensor_counts(source.state, converted.state_dict())
    converted.quantization_info = {**converted.quantization_info, **counts}
    return Shipment(path, source, model, converted)


def _folder(folder: Path) -> Path:
    """Returns the folder for the files, made where it is missing."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: is a file; give a folder")
    writable_folder(folder, "--output DIR")
    return folder


def _deployed(
    shipment: Shipment, chosen: Sequence[Format], options: argparse.Namespace, scratch: Path, folder: Path
) -> dict[str, Any]:
    """Writes and evaluates deployment files in `scratch`; returns their entries, as they will lie in `folder`."""
    final = options.run_dir / MODEL
    run = find_run(final, read_file(final).sha256)
    architecture = architecture_of(shipment.model)
    inputs = find_inputs(run, options.data, architecture.num_classes, architecture.pixels)
    say(f"Writing and evaluating {', '.join(f.name for f in chosen)} on {inputs.test.title}...")
    files = write_files(shipment.model, chosen, inputs.calibration, scratch)
    measured = [measure_file(file, inputs.test, BATCH_SIZE, architecture) for file in files]
    measured = [replace(each, path=folder / each.path.name) for each in measured]
    answers = same_precision(shipment.model, {}, inputs.calibration, inputs.test, BATCH_SIZE)
    report = entries(measured, answers, run.trained_for if run else lambda precision: None)
    told = {"made_from_sha256": shipment.source.sha256, **architecture.told(), "formats": report}
    write_json(scratch / FORMATS_FILE, told)
    return report


def _remove_older(folder: Path, new: Collection[str]) -> None:
    """Removes what an earlier export wrote there and this one did not: it may be of another round."""
    if (folder / METADATA).is_file():
        told = read_json(folder / METADATA)
        listed = told.get("files") if isinstance(told, dict) else None
        for name in listed if isinstance(listed, list) else ():
            if isinstance(name, str) and name not in new and Path(name).name == name:
                (folder / name).unlink(missing_ok=True)


def tensor_counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how many elements of a state dict are FP16, buffers included, and what that saves in bytes of tensors."""
    half = sum(tensor.numel() for tensor in after.values() if tensor.dtype == torch.float16)
    total = sum(tensor.numel() for tensor in after.values())
    smaller, larger = (sum(t.numel() * t.element_size() for t in state.values()) for state in (after, before))
    return {
        "fp16_parameters": half,
        "non_fp16_parameters": total - half,
        "total_parameters": total,
        "compression_ratio": larger / smaller,
    }


def readme(metadata: Mapping[str, Any], file: str) -> str:
    """Returns the text that lies beside the model."""
    info, synthetic = metadata["quantization_info"], " (SYNTHETIC images)" if metadata["data"]["synthetic"] else ""
    scores = next(each for each in metadata["candidates"] if each["round"] == metadata["round"])
    validated = [
        f"- validation {name}: {scores[f'validation_{name}']:.4f}"
        for name in ("accuracy", "loss")
        if f"validation_{name}" in scores
    ]
    lines = [
        f"# Round {metadata['round']} of {metadata['num_rounds']}, trained on {metadata['data']['name']}{synthetic}",
        "",
        f"`{file}`: {metadata['file_size_bytes']:,} bytes, SHA-256 `{metadata['file_sha256']}`",
        "",
        f"- chosen: {metadata['reason']}",
        *validated,
        f"- made from `{metadata['made_from']}` ({metadata['made_from_bytes']:,} bytes, FP32)",
        f"- elements: {info['fp16_parameters']:,} FP16, {info['non_fp16_parameters']:,} others, "
        f"{info['total_parameters']:,} in all; the tensors take {info['compression_ratio']:.3f}x fewer bytes than FP32",
        "",
        "```python",
        "import fl",
        "from fl.models.architecture import input_of",
        "",
        f'model = fl.load_model("{file}")               # in the precision of the file, on the GPU if there is one',
        f'model = fl.load_model("{file}", fp16="auto")  # FP16 on CUDA, FP32 on a CPU',
        "logits = model(input_of(model)(images))  # images: [n, height, width, bands], on its device",
        "```",
        "",
        "`selection_metadata.json` has every round it was chosen from.",
        "",
    ]
    return "\n".join(lines)
