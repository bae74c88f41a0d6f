"""What the report says of models: precisions, classes, images that change, speed."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fl.core.intervals import paired_interval
from fl.core.run_folder import BENCH, COMPARISON, PREDICTIONS, RECOMMENDATION
from fl.core.units import MIB
from fl.report.charts import Line, Picture, grid, lines, points
from fl.report.parts import Section, Shown, Table, at
from fl.report.records import RunRecords

MOST_CLASSES = 60
"""Whose confusions are drawn: more would be no picture."""


def precisions(run: RunRecords) -> Iterator[Section]:
    """Yields the precisions of a comparison, and its deployment files."""
    entries = run.comparison.get("precisions")
    if not entries:
        return
    images = at(run.comparison, "test_set", "num_images")
    intervals = {name: _change_interval(each, images) for name, each in entries.items() if name != "fp32"}
    fp32 = entries["fp32"]["accuracy_percent"]
    bars = {name: (fp32 + each[0], fp32 + each[1]) for name, each in intervals.items() if each}
    sizes = [(name, each["file_size_bytes"] / MIB, each["accuracy_percent"]) for name, each in entries.items()]
    front = [
        name
        for name, size, best in sizes
        if not any((s <= size and a > best) or (s < size and a >= best) for _, s, a in sizes)
    ]
    told = "; ".join(f"{name} {size:.2f} MB, {accuracy:.2f} %" for name, size, accuracy in sizes)
    drawn = points(sizes, "file size (MB of 1024² bytes)", "test accuracy (%)", front, bars)
    caption = (
        "Accuracy against size. Bars: 95 % interval of the change against FP32 on the same images (Tango 1998). The "
        f"line joins what nothing else beats: {', '.join(front)}"
    )
    pictures = [Picture(drawn, told, f"{COMPARISON}: precisions", caption)]
    tables = [_precision_table(entries, intervals)]
    formats = [
        [
            name,
            precision,
            f"{each['file_size_bytes']:,}",
            f"{each['accuracy_percent']:.2f}",
            f"{each['accuracy_drop_percent']:+.2f}",
        ]
        for name, files in run.comparison.get("formats", {}).items()
        for precision, each in files.items()
    ]
    if formats:
        columns = ["format", "precision", "file bytes", "accuracy %", "change (points)"]
        tables.append(Table("Deployment files", columns, formats, f"{COMPARISON}: formats"))
    batch = at(run.comparison, "evaluation", "batch_size")
    texts = [
        f"One model in several precisions on {at(run.comparison, 'test_set', 'title')}, "
        f"{at(run.comparison, 'test_set', 'num_images'):,} images in batches of {batch}. One training run: the spread "
        "between runs is not in these figures."
    ]
    yield Section("Precisions", texts, pictures, tables)


def _precision_table(
    entries: Mapping[str, Mapping[str, Any]], intervals: Mapping[str, tuple[float, float] | None]
) -> Table:
    rows = [
        [
            name,
            f"{each['file_size_bytes']:,}",
            f"{each['compression_ratio']:.2f}",
            f"{each['accuracy_percent']:.2f}",
            f"{each['accuracy_drop_percent']:+.2f}",
            _interval(intervals.get(name)),
            f"{100 * each['agreement_with_fp32']:.2f}",
            f"{each['inference_ms']:.3f}",
            str(each["kernels"]),
        ]
        for name, each in entries.items()
    ]
    columns = [
        "precision",
        "file bytes",
        "times smaller",
        "accuracy %",
        "change (points)",
        "95 % interval",
        "same as FP32 %",
        "ms/image",
        "executed by",
    ]
    return Table("Precisions", columns, rows, f"{COMPARISON}: precisions")


def recommended(run: RunRecords) -> Iterator[Section]:
    """Yields what to train, ship and transmit, with the reasons."""
    found = run.recommendation
    if not found:
        return
    questions = {"train": "Train", "ship": "Ship", "transmit": "Transmit"}
    rows = [[title, str(found[key]["choice"] or "nothing"), str(found[key]["why"])] for key, title in questions.items()]
    limit = f"at most {found['max_drop_points']:g} points lost by the whole 95 % interval, on {found['device']}"
    size = f", at most {found['max_size_kb']:g} kB" if found["max_size_kb"] is not None else ""
    told = [
        [
            name,
            f"{each['accuracy_percent']:.2f}",
            f"{each['change_points']:+.2f}",
            _interval(each["change_ci95_points"] if name != "fp32" else None),
            str(each["judged"]),
        ]
        for name, each in found["evidence"].items()
    ]
    columns = ["precision", "accuracy %", "change (points)", "95 % interval", "judged"]
    tables = [
        Table("What to do", ["question", "answer", "why"], rows, f"{RECOMMENDATION}: train, ship, transmit"),
        Table(f"By {found['num_images']:,} {found['by']} images", columns, told, f"{RECOMMENDATION}: evidence"),
    ]
    yield Section("Recommendation", [f"{found['images']}; {limit}{size}."], tables=tables)


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:+.2f} to {ends[1]:+.2f}" if ends else ""


def _change_interval(entry: Mapping[str, Any], images: int) -> tuple[float, float] | None:
    """Returns the 95 % interval of a change in points; None where answers were not compared one by one."""
    if "only_this_right" not in entry:
        return None
    low, high = paired_interval(entry["only_this_right"], entry["only_fp32_right"], images)
    return 100 * low, 100 * high


def classes(run: RunRecords) -> Iterator[Section]:
    """Yields what each class loses, and images whose answer changes."""
    stored, names = run.predictions, list(map(str, run.comparison.get("class_names") or ()))
    if "labels" not in stored or "fp32" not in stored or not names:
        return
    if len(names) > MOST_CLASSES:
        yield Section("Classes", [f"Not shown: {len(names):,} classes, more than {MOST_CLASSES} fit into a picture."])
        return
    labels = stored["labels"]
    answers = {name: stored[name] for name in run.comparison["precisions"] if name in stored}
    if any(array.shape != labels.shape or array.dtype.kind != "i" for array in (labels, *answers.values())):
        return
    if any(len(array) and not (array.min() >= 0 and array.max() < len(names)) for array in (labels, *answers.values())):
        return
    shares = {
        name: [
            float((found[labels == place] == place).mean()) if (labels == place).any() else np.nan
            for place in range(len(names))
        ]
        for name, found in answers.items()
    }
    rows = [[each, *(f"{100 * shares[name][place]:.1f}" for name in answers)] for place, each in enumerate(names)]
    tables = [Table("Accuracy of each class (%)", ["class", *answers], rows, PREDICTIONS)]
    other = next((name for name in ("int8", "int8_static", "int4", "int2", "fp16") if name in answers), None)
    texts, pictures = [], []
    if other:
        lost = sorted((100 * (shares[other][place] - shares["fp32"][place]), each) for place, each in enumerate(names))
        worst = [f"{each} ({change:+.1f})" for change, each in lost[:3] if change < 0]
        loses = f"loses most in {', '.join(worst)} points" if worst else "loses in no class"
        texts.append(f"{other} {loses}, compared with FP32 on the same images.")
        matrix = np.zeros((len(names), len(names)), int)
        np.add.at(matrix, (answers["fp32"], answers[other]), 1)
        same = int(np.trace(matrix))
        told = f"answers of FP32 against those of {other}: {same:,} of {matrix.sum():,} are the same"
        drawn = grid(matrix, names, names, f"answer of {other}", "answer of FP32")
        pictures.append(Picture(drawn, told, PREDICTIONS, f"FP32 against {other}: off the diagonal they differ"))
    confused = np.zeros((len(names), len(names)), int)
    np.add.at(confused, (labels, answers["fp32"]), 1)
    told = f"labels against answers of FP32: {int(np.trace(confused)):,} of {confused.sum():,} are right"
    pictures.append(
        Picture(grid(confused, names, names, "answer of FP32", "label"), told, PREDICTIONS, "What FP32 confuses")
    )
    yield Section("Classes", texts, pictures, tables, list(_changed(stored, labels, answers, names)))


def _changed(
    stored: Mapping[str, np.ndarray], labels: np.ndarray, answers: Mapping[str, np.ndarray], names: Sequence[str]
) -> Iterator[Shown]:
    positions, images = stored.get("changed", np.zeros(0, int)), stored.get("changed_images", np.zeros(0))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(positions):
        return
    for position, image in zip(positions.tolist(), images, strict=True):
        if not 0 <= position < len(labels):
            return
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        told = {name: names[found[position]] for name, found in answers.items()}
        others = [f"{name}: {answer}" for name, answer in told.items() if answer != told["fp32"]]
        text = f"{names[labels[position]]}; FP32 says {told['fp32']}, {', '.join(others)}"
        yield Shown(base64.b64encode(buffer.getvalue()).decode(), text)


def speed(run: RunRecords) -> Iterator[Section]:
    """Yields what a benchmark found."""
    models = run.bench.get("models")
    if not models:
        return
    curves, rows = [], []
    for model in models:
        name = str(model["model_path"]).rpartition("/")[2]
        results = model["results"]
        curves.append(Line(name, [each["batch_size"] for each in results], [each["images_per_s"] for each in results]))
        for each in results:
            low, high = each["accuracy_ci95"]
            spread = f"{100 * low:.2f} to {100 * high:.2f}"
            times = [f"{each[key]:.3f}" for key in ("ms_p50", "ms_p95")]
            rows.append(
                [
                    name,
                    f"{each['batch_size']}",
                    *times,
                    f"{each['images_per_s']:,.0f}",
                    f"{each['speed_up']:.2f}",
                    spread,
                ]
            )
    told = "; ".join(f"{line.name} {line.y[-1]:,.0f} images a second in batches of {line.x[-1]}" for line in curves)
    picture = Picture(lines(curves, "batch size", "images a second"), told, f"{BENCH}: models", "Speed on this machine")
    columns = ["model", "batch", "ms median", "ms p95", "images/s", "times FP32's speed", "accuracy %, 95 % interval"]
    yield Section("Speed", pictures=[picture], tables=[Table("Benchmark", columns, rows, f"{BENCH}: models")])
