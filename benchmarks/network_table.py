"""The grid of networks: its rows, and its tables from the figures that are kept of finished runs."""

import statistics
from collections.abc import Iterator
from typing import Any

from grid import Row, Runs
from layer_loss import LOW
from pairs import paired, within
from precision_table import TITLES
from table import markdown
from traffic_table import both, fewer, made_with

from fl.core.units import MIB

KEPT = "networks.json"
SEED, ROUNDS, EPOCHS = 101, 5, 1
COMMON = (f"num_rounds={ROUNDS}", f"local_epochs={EPOCHS}", "model.stem=published")
RESNET, MOBILE = ("model=resnet18", *COMMON), ("model=mobilenet_v3_small", *COMMON)
ONE_BIT = both("ecq")
ROWS = (
    Row("resnet18", "ResNet-18", RESNET, (SEED,), "resnet18"),
    Row("resnet18-ecq", "ResNet-18, ecq, 1 bit both ways", (*RESNET, *ONE_BIT), (SEED,), "resnet18"),
    Row("mobilenet", "MobileNetV3-small", MOBILE, (SEED,), "mobilenet"),
    Row("mobilenet-ecq", "MobileNetV3-small, ecq, 1 bit both ways", (*MOBILE, *ONE_BIT), (SEED,), "mobilenet"),
    Row("resnet18-qat4", "ResNet-18, qat int4", (*RESNET, "training=qat", "training.bits=4"), (SEED,), "resnet18"),
    Row("mobilenet-qat8", "MobileNetV3-small, qat int8", (*MOBILE, "training=qat"), (SEED,), "mobilenet"),
)
FORMATS_OF = ("resnet18-ecq", "mobilenet-ecq")
"""Runs whose deployment files are shown; those of all are kept."""
PRECISIONS = ("fp32", "fp16", "int8", "int8_static", "int4", "int2")
SIZES = (1, 32)
"""Batch sizes of the model files that take turns."""
TOLD = f"One seed ({SEED}), {ROUNDS} rounds x {EPOCHS} local epoch, published stem"
TARGETS = (("int8", 0.5), ("int8_static", 0.5))
"""Points that quantizing after training may cost."""
MOST_PERCENT, LEAST_RATIO, QAT_POINTS = 27.0, 2.0, 1.0
"""Of FP32: the INT8 file; static INT8's speed at batch 32. Points that INT4 may cost a model trained for it."""


def present(runs: Runs) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Yields the rows that have run, with their figures."""
    yield from ((row, runs[row.name, SEED]) for row in ROWS if (row.name, SEED) in runs)


def table(runs: Runs) -> str:
    """Returns all tables of the grid."""
    return "\n".join([traffic(runs), precisions(runs), formats(runs), channels(runs), times(runs), targets(runs)])


def change(row: Row, runs: Runs, precision: str = "fp32") -> str:
    """Returns the change of a run's model in a precision against the FP32 model of its baseline, where there is one."""
    if (row.name, precision) == (row.baseline, "fp32") or (row.baseline, SEED) not in runs:
        return ""
    return str(paired([accuracies(row, runs, precision)]))


def accuracies(row: Row, runs: Runs, precision: str) -> tuple[float, float]:
    """Returns the accuracy of a run's model in a precision, and of its baseline's in FP32."""
    theirs: float = runs[row.baseline, SEED]["precisions"]["fp32"]["accuracy"]
    return runs[row.name, SEED]["precisions"][precision]["accuracy"], theirs


def traffic(runs: Runs) -> str:
    """Returns one line for each run: its accuracy and its bytes against FP32 from the same start."""
    rows = []
    for row, own in present(runs):
        ratios = fewer([own])
        sent = (own["broadcast_payload_bytes"] + own["update_payload_bytes"]) / MIB
        cells = [row.title, f"{own['num_parameters']:,}", f"{100 * own['test_accuracy']:.2f} %", change(row, runs)]
        rows.append([*cells, *(f"{ratios[way]:.2f}×" for way in ("broadcast", "update", "total")), f"{sent:.1f}"])
    columns = ["run", "parameters", "accuracy", "change, points", "broadcast", "update", "total", "MB sent"]
    left = "" if len(rows) == len(ROWS) else f" Not finished: {len(rows)} of {len(ROWS)} runs."
    return f"{markdown(columns, rows)}\n{TOLD}, so no interval. {made_with(runs)}{left}\n"


def precisions(runs: Runs) -> str:
    """Returns one line for each run and precision."""
    rows = []
    for row, own in present(runs):
        whole, ms = own["precisions"]["fp32"], own["ms_p50"]
        for name, each in own["precisions"].items():
            size, kept = each["file_size_bytes"], each.get("float_tensors", {})
            times = (f"{ms[name][str(n)]:.2f} ({ms['fp32'][str(n)] / ms[name][str(n)]:.2f}×)" for n in SIZES)
            rows.append(
                [
                    row.title,
                    TITLES[name],
                    f"{size:,}",
                    f"{100 * size / whole['file_size_bytes']:.1f} %",
                    f"{100 * each['accuracy']:.2f} %",
                    change(row, runs, name),
                    f"{100 * each['agreement_with_fp32']:.2f} %",
                    *times,
                    f"{sum(kept.values()):,} B in {len(kept)}" if kept else "",
                    each["kernels"],
                ]
            )
    columns = ["run", "precision", "file bytes", "of FP32", "accuracy", "change, points", "agreement with its FP32"]
    columns += [f"ms of a batch of {size}" for size in SIZES] + ["tensors that stay float", "kernels"]
    told = "Change: against the FP32 model of FP32 training and traffic. Milliseconds: medians, models in turns"
    return f"{markdown(columns, rows)}\n{TOLD}. {told}, one thread.\n"


def formats(runs: Runs) -> str:
    """Returns one line for each deployment file, and why others are not there."""
    rows, reasons = [], []
    for row, own in present(runs):
        for name, files in own["formats"].items() if row.name in FORMATS_OF else ():
            for precision, each in files.items():
                percents = (100 * each[key] for key in ("accuracy", "agreement_with_model_file"))
                cells = [row.title, name, precision, f"{each['file_size_bytes']:,}"]
                rows.append([*cells, *(f"{percent:.2f} %" for percent in percents), f"{each['inference_ms']:.2f}"])
        reasons += [f"{row.title}: {reason}." for reason in own["left_out"]]
    columns = ["run", "format", "precision", "file bytes", "accuracy", "same answers as `.pt`", "ms per image"]
    return "\n".join([markdown(columns, rows), f"{TOLD}.", *reasons]) + "\n"


def channels(runs: Runs) -> str:
    """Returns one line for each run and kind of layer: what static INT8 costs its channels."""
    rows = []
    for row, own in present(runs):
        for kind in dict.fromkeys(each["kind"] for each in own["layers"].values()):
            layers = {name: each for name, each in own["layers"].items() if each["kind"] == kind}
            losses = [each["both"] for each in layers.values()]
            count, low = (sum(each[key] for each in losses) for key in ("channels", "low"))
            middles = (
                statistics.median(each[way]["median"] for each in layers.values()) for way in ("weights", "both")
            )
            worst = min(layers, key=lambda name: layers[name]["both"]["least"])
            cells = [row.title, kind, f"{len(layers)}", f"{count:,}", *(f"{each:.1f}" for each in middles)]
            rows.append([*cells, f"{100 * low / count:.1f} %", f"{layers[worst]['both']['least']:.1f} (`{worst}`)"])
    columns = ["run", "layers", "number", "channels", "dB, weights alone", "dB, INT8 static"]
    columns += [f"channels below {LOW:g} dB", "worst channel"]
    told = "Signal over error of a layer's result, with exact inputs: medians over its channels, then over layers"
    return f"{markdown(columns, rows)}\n{TOLD}. {told}.\n"


def times(runs: Runs) -> str:
    """Returns one line for each run after FP32 training and kind of layer: its milliseconds in FP32 and static INT8."""
    rows = []
    for row, own in present(runs):
        left = {name: own["ms_p50"][name][str(SIZES[-1])] for name in ("fp32", "int8_static")}
        for kind in dict.fromkeys(each["kind"] for each in own["layers"].values()) if row.name == row.baseline else ():
            layers = [each for each in own["layers"].values() if each["kind"] == kind]
            fp32, int8 = (sum(each[f"{name}_ms"] for each in layers) for name in ("fp32", "int8"))
            left = {"fp32": left["fp32"] - fp32, "int8_static": left["int8_static"] - int8}
            rows.append([row.title, kind, f"{len(layers)}", f"{fp32:.2f}", f"{int8:.2f}", f"{fp32 / int8:.2f}×"])
        if row.name == row.baseline:
            rows.append([row.title, "all else", "", *(f"{each:.2f}" for each in left.values()), ""])
    columns = ["run", "layers", "number", "FP32 ms", "INT8 static ms", "ratio"]
    told = f"Batch {SIZES[-1]}, one thread: medians of each layer alone; all else: what is left of the network's"
    return f"{markdown(columns, rows)}\n{TOLD}. {told}.\n"


def targets(runs: Runs) -> str:
    """Returns whether each target is met: one line for each."""
    lines = []
    for row in ROWS:
        own = runs.get((row.name, SEED))
        if row.name == row.baseline:
            lines += after_training(row, runs, own)
    row = next(row for row in ROWS if row.name == "resnet18-qat4")
    known = {(row.name, SEED), (row.baseline, SEED)} <= set(runs)
    lines.append(points_told(row, runs, "int4", QAT_POINTS) if known else f"{row.title}, int4: incomplete.")
    return "\n".join(f"- {line}" for line in lines) + f"\n\n{TOLD}: no interval, a single run judges.\n"


def after_training(row: Row, runs: Runs, own: dict[str, Any] | None) -> Iterator[str]:
    """Yields what the targets of quantizing after training say of a network."""
    if own is None:
        yield f"{row.title}: incomplete."
        return
    sizes = {name: each["file_size_bytes"] for name, each in own["precisions"].items()}
    percent = 100 * sizes["int8"] / sizes["fp32"]
    met = "within" if percent <= MOST_PERCENT else "not within"
    yield f"{row.title}, INT8 file at most {MOST_PERCENT:g} % of FP32: {percent:.2f} %, {met}."
    for precision, points in TARGETS:
        yield points_told(row, runs, precision, points)
    ratio = own["ms_p50"]["fp32"]["32"] / own["ms_p50"]["int8_static"]["32"]
    met = "within" if ratio >= LEAST_RATIO else "not within"
    yield f"{row.title}, INT8 static at least {LEAST_RATIO:g}× FP32 at batch 32: {ratio:.2f}×, {met}."


def points_told(row: Row, runs: Runs, precision: str, points: float) -> str:
    """Returns whether a precision of a run is within its points of its baseline."""
    found = paired([accuracies(row, runs, precision)])
    met = "within" if within(found, points) else "not within"
    return f"{row.title}, {TITLES[precision]} within {points:g} points of FP32: {found}, {met}."
