"""What the report says of models: precisions, classes, images that change, speed."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from fl.core.files import MIB
from fl.core.run_folder import BENCH, COMPARISON, PREDICTIONS
from fl.report.charts import Line, Picture, grid, lines, points
from fl.report.parts import Section, Shown, Table, at
from fl.report.records import RunRecords


def precisions(run: RunRecords) -> Iterator[Section]:
    """Yields the precisions of a comparison, and its deployment files."""
    entries = run.comparison.get("precisions")
    if not entries:
        return
    sizes = [(name, each["file_size_bytes"] / MIB, each["accuracy_percent"]) for name, each in entries.items()]
    front = [
        name
        for name, size, best in sizes
        if not any((s <= size and a > best) or (s < size and a >= best) for _, s, a in sizes)
    ]
    told = "; ".join(f"{name} {size:.2f} MB, {accuracy:.2f} %" for name, size, accuracy in sizes)
    drawn = points(sizes, "file size (MB of 1024² bytes)", "test accuracy (%)", front)
    caption = f"Accuracy against size; the line joins what nothing else beats: {', '.join(front)}"
    pictures = [Picture(drawn, told, f"{COMPARISON}: precisions", caption)]
    rows = [
        [
            name,
            f"{each['file_size_bytes']:,}",
            f"{each['compression_ratio']:.2f}",
            f"{each['accuracy_percent']:.2f}",
            f"{each['accuracy_drop_percent']:+.2f}",
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
        "same as FP32 %",
        "ms/image",
        "executed by",
    ]
    tables = [Table("Precisions", columns, rows, f"{COMPARISON}: precisions")]
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


def classes(run: RunRecords) -> Iterator[Section]:
    """Yields what each class loses, and images whose answer changes."""
    stored, names = run.predictions, list(map(str, run.comparison.get("class_names") or ()))
    if "labels" not in stored or "fp32" not in stored or not names:
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
