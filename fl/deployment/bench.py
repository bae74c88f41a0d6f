"""Speed, memory and answers of model files, batch size by batch size, side by side."""

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from fl.core.console import progress, say, show_table
from fl.core.cores import available_cores
from fl.core.errors import ConfigError, counted, writable_folder
from fl.core.files import sha256, write_json
from fl.core.machine import compute_with, device_of, environment
from fl.core.targets import Target
from fl.data.images import Rows
from fl.data.provenance import TestSet, find_inputs, find_run
from fl.deployment.candidates import Candidate, opened
from fl.deployment.files import deployed
from fl.deployment.formats import FORMATS
from fl.deployment.memory import peak_memory
from fl.deployment.plots import plot_bench
from fl.models.architecture import network_named

TURNS = 10

SMALL_BATCH = 1024
"""Up to which batch sizes a file is tried before it is known how many test images there are."""


@dataclass
class Timing:
    """What one model did at one batch size; seconds of full batches only."""

    seconds: list[float] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)


def take_turns(candidates: Sequence[Candidate], images: Rows, batch_size: int) -> list[Timing]:
    """Runs every candidate over all images in batches, in turns, after two batches that do not count.

    Args:
        candidates: what to run.
        images: at least `batch_size`.
        batch_size: of each pass.
    """
    timings = [Timing() for _ in candidates]
    batches = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    turn, work = math.ceil(len(batches) / TURNS), len(batches) * len(candidates)
    with torch.inference_mode(), progress(f"batches of {batch_size}", work, "batch") as advance:
        for each in candidates:
            for rows in batches[:2]:
                each.run(torch.from_numpy(images[rows]))
        for start in range(0, len(batches), turn):
            for each, timing in zip(candidates, timings, strict=True):
                for rows in batches[start : start + turn]:
                    batch = torch.from_numpy(images[rows])
                    began = time.perf_counter()
                    logits = each.run(batch)
                    took = time.perf_counter() - began
                    timing.logits.append(logits.numpy())
                    advance()
                    if len(batch) == batch_size:
                        timing.seconds.append(took)
    return timings


def compared(timing: Timing, baseline: Timing, labels: np.ndarray, batch_size: int) -> dict[str, Any]:
    """Returns the figures of one model at one batch size beside the baseline's.

    The confidence interval is Wilson's at 95 %; the p-value is McNemar's, exact, of the hypothesis that both models are
    right equally often.
    """
    ours, theirs = np.concatenate(timing.logits), np.concatenate(baseline.logits)
    answers, expected = ours.argmax(1), theirs.argmax(1)
    right, baseline_right = answers == labels, expected == labels
    only_ours, only_theirs = int((right & ~baseline_right).sum()), int((~right & baseline_right).sum())
    interval = binomtest(int(right.sum()), len(labels)).proportion_ci(0.95, method="wilson")
    differing = only_ours + only_theirs
    milliseconds = sorted(1000 * each for each in timing.seconds)
    return {
        "batch_size": batch_size,
        "batches_timed": len(milliseconds),
        "ms_p50": statistics.median(milliseconds),
        "ms_p95": float(np.percentile(milliseconds, 95)),
        "images_per_s": batch_size * len(milliseconds) / sum(timing.seconds),
        "speed_up": statistics.median(baseline.seconds) / statistics.median(timing.seconds),
        "largest_logit_difference": float(np.abs(ours - theirs).max()) if np.isfinite(ours).all() else None,
        "agreement_with_fp32": float((answers == expected).mean()),
        "accuracy": float(right.mean()),
        "accuracy_ci95": [float(interval.low), float(interval.high)],
        "only_this_right": only_ours,
        "only_fp32_right": only_theirs,
        "mcnemar_p": float(binomtest(only_ours, differing).pvalue) if differing else 1.0,
    }


@dataclass(frozen=True)
class Race:
    """Models that answer the same images in turns, on the same machine.

    Attributes:
        candidates: the models.
        baseline: which of them the others are compared with.
        test: the images that are used.
        batch_sizes: in order, none larger than there are images.
        device: of our own model files; the others run on the CPU.
        threads: of every runtime.
    """

    candidates: Sequence[Candidate]
    baseline: int
    test: TestSet
    batch_sizes: Sequence[int]
    device: torch.device
    threads: int

    def tell(self) -> None:
        """Says what is measured on what."""
        where = ", ".join(sorted({each.device for each in self.candidates}))
        sizes = ", ".join(map(str, self.batch_sizes))
        told = f"{counted(len(self.test.labels), 'image')} of {self.test.title}, {counted(self.threads, 'thread')}"
        say(f"{told}, {where}, batch size{'s' if len(self.batch_sizes) > 1 else ''} {sizes}")

    def run(self, peaks: Mapping[Path, Mapping[int, int | None]]) -> list[list[dict[str, Any]]]:
        """Returns the figures of each model at each batch size.

        Args:
            peaks: memory by batch size, as far as it is known; the rest is measured.
        """
        results: list[list[dict[str, Any]]] = [[] for _ in self.candidates]
        with progress("bench", len(self.batch_sizes) + len(self.candidates), "step") as advance:
            for size in self.batch_sizes:
                timings = take_turns(self.candidates, self.test.images, size)
                for timing, own in zip(timings, results, strict=True):
                    own.append(compared(timing, timings[self.baseline], self.test.labels, size))
                advance(1)
            for each, own in zip(self.candidates, results, strict=True):
                peak = dict(peaks.get(each.path, {}))
                if left := [size for size in self.batch_sizes if size not in peak]:
                    with progress(f"memory of {each.path.name}"):
                        peak |= peak_memory(each.path, self.device.type, self.threads, left, each.network)
                for entry in own:
                    entry["peak_memory_bytes"] = peak[entry["batch_size"]]
                advance(1)
        return results

    def report(self, results: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Returns the content of the JSON."""
        test = self.test
        return {
            "baseline": str(self.candidates[self.baseline].path),
            "test_set": {"title": test.title, "synthetic": test.synthetic, "num_images": len(test.labels)},
            "models": [
                {
                    "model_path": str(each.path),
                    "file_size_bytes": each.path.stat().st_size,
                    "file_sha256": sha256(each.path.read_bytes()),
                    "weight_bytes": each.weight_bytes,
                    "device": each.device,
                    "results": own,
                }
                for each, own in zip(self.candidates, results, strict=True)
            ],
            "environment": environment(self.device.type, self.threads),
        }


def bench(options: argparse.Namespace) -> Path:
    """Measures every model at every batch size and writes JSON and plot; returns the path of the JSON.

    Raises:
        QuantflError: an option, a file or the test images are at fault.
    """
    models = [model for place in options.models for model in _models_in(place)]
    output, batch_sizes = _place(options.output, models), sorted(set(options.batch_sizes))
    device, threads = _machine(options)
    named = network_named(options.model) if options.model else None
    peaks = _tried_apart(models, threads, batch_sizes, named)
    candidates = [opened(path, device, threads, named) for path in models]
    for each in candidates:
        each.tell(each.path)
    baseline = _baseline(candidates)
    test = _test_images(candidates, options.data, options.images)
    race = Race(candidates, baseline, test, _fitting(batch_sizes, len(test.labels)), device, threads)
    race.tell()
    report = race.report(race.run(peaks))
    write_json(output, report)
    plot_bench(output.with_suffix(".png"), report)
    show_table(COLUMNS, table_rows(report), keys=2)
    say(
        f"p: McNemar's, exact, against {models[baseline].name}; memory: growth of the process at its peak, on CUDA "
        "what torch allocated there"
    )
    say(f"Results saved to: {output}\nPicture: {output.with_suffix('.png')}", event="result")
    return output


COLUMNS = (
    "model",
    "batch",
    "ms p50",
    "ms p95",
    "images/s",
    "speed-up",
    "weight bytes",
    "peak memory",
    "largest difference",
    "same answers",
    "accuracy (95 % interval)",
    "p",
)


def table_rows(report: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yields the cells of each model and batch size for `COLUMNS`, batch by batch."""
    for number in range(len(report["models"][0]["results"])):
        for model in report["models"]:
            entry = model["results"][number]
            low, high = (100 * each for each in entry["accuracy_ci95"])
            apart = entry["largest_logit_difference"]
            yield [
                Path(model["model_path"]).name,
                str(entry["batch_size"]),
                f"{entry['ms_p50']:.2f}",
                f"{entry['ms_p95']:.2f}",
                f"{entry['images_per_s']:,.0f}",
                f"{entry['speed_up']:.2f}x",
                f"{model['weight_bytes']:,}",
                "" if entry["peak_memory_bytes"] is None else f"{entry['peak_memory_bytes'] / 2**20:.1f} MB",
                "not finite" if apart is None else f"{apart:.2g}",
                f"{100 * entry['agreement_with_fp32']:.2f}%",
                f"{100 * entry['accuracy']:.2f}% ({low:.2f}-{high:.2f})",
                f"{entry['mcnemar_p']:.2g}",
            ]


def _models_in(place: Path) -> list[Path]:
    """Returns the model files of a folder; any other path as it is."""
    if not place.is_dir():
        return [place]
    suffixes = [".pt", *(each.suffix for each in FORMATS)]
    found = sorted(path for path in place.glob("model_*") if path.suffix in suffixes)
    if not found:
        raise ConfigError(f"{place}: holds no model_* files; run compare_quantizations.py on its model first")
    return found


def _place(output: Path | None, models: Sequence[Path]) -> Path:
    """Returns the path of the JSON, which must be one that can be written."""
    output = output or models[0].parent / "bench.json"
    if output.suffix != ".json" or output.is_dir():
        raise ConfigError(f"--output {output}: must be the path of a file that ends in .json")
    writable_folder(output.parent, "--output FILE.json")
    return output


def _machine(options: argparse.Namespace) -> tuple[torch.device, int]:
    """Returns the device and the threads to compute with, and sets those of this process."""
    for name in ("threads", "images"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}: must be at least 1")
    device, threads = device_of(options.device), options.threads or available_cores()
    if options.plain_memory:
        torch.set_num_threads(threads)
    else:
        compute_with(threads)
    return device, threads


def _tried_apart(
    models: Sequence[Path], threads: int, batch_sizes: Sequence[int], network: Target | None
) -> dict[Path, dict[int, int | None]]:
    """Returns the peak memory of each deployment file: before it is opened here, it was in a process of its own."""
    small = [size for size in batch_sizes if size <= SMALL_BATCH] or [1]
    foreign = [path for path in models if deployed(path)]
    peaks = {}
    with progress("trying each in a process of its own", len(foreign), "file") as advance:
        for path in foreign:
            peaks[path] = peak_memory(path, "cpu", threads, small, network)
            advance(1)
    return peaks


def _baseline(candidates: Sequence[Candidate]) -> int:
    """Returns which model is the first in FP32."""
    baseline = next((number for number, each in enumerate(candidates) if each.is_fp32), None)
    if baseline is None:
        told = ", ".join(str(each.path) for each in candidates)
        raise ConfigError(f"{told}: none is an FP32 model, which the others are compared with")
    return baseline


def _test_images(candidates: Sequence[Candidate], data: str | None, most: int | None) -> TestSet:
    """Returns the test images of the models' run, or of `data`, evenly thinned to no more than `most`."""
    kinds = {each.architecture.pixels.told() for each in candidates}
    if len(kinds) > 1:
        raise ConfigError(f"models for different images cannot be compared: {'; '.join(sorted(kinds))}")
    classes = [each.run(each.architecture.blank(1)).shape[1] for each in candidates]
    if len(set(classes)) > 1:
        told = ", ".join(f"{each.path} has {count}" for each, count in zip(candidates, classes, strict=True))
        raise ConfigError(f"models of different classes cannot be compared: {told}")
    runs = (find_run(each.path, each.made_from) for each in candidates if each.made_from)
    run = next((found for found in runs if found), None)
    test = find_inputs(run, data, classes[0], candidates[0].architecture.pixels).test
    if run is None:
        say("note: no run lies beside these models, so their training images are not known")
    every = math.ceil(len(test.labels) / (most or len(test.labels)))
    return test.thinned(every)


def _fitting(batch_sizes: Sequence[int], num_images: int) -> list[int]:
    """Returns the batch sizes that there are images for, and says which are left out."""
    if too_large := [size for size in batch_sizes if size > num_images]:
        there = counted(num_images, "image")
        if len(too_large) == len(batch_sizes):
            raise ConfigError(f"--batch-sizes {too_large[0]}: there are only {there}")
        say(f"note: {', '.join(map(str, too_large))} left out, more than the {there} in a batch")
    return [size for size in batch_sizes if size <= num_images]
