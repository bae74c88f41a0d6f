"""The grid of precisions: its rows, and its tables from the figures that are kept of finished runs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from grid import TUNED_ON, Row, Runs
from pairs import Paired, paired, verdict, within
from table import markdown
from traffic_table import DIRICHLET

KEPT = "precisions.json"
AFTER = (
    Row("fp32", "IID"),
    Row("dirichlet-fp32", "Dirichlet 0.3", DIRICHLET, baseline="dirichlet-fp32"),
)
"""FP32 runs that are quantized after training: those of benchmarks/codecs.py."""
TRAINED = (
    Row("fp32", "FP32", seeds=TUNED_ON),
    Row("amp", "amp bfloat16", ("training=amp", "training.dtype=bfloat16"), TUNED_ON),
    Row("qat8", "qat int8", ("training=qat",), TUNED_ON),
    Row("qat4", "qat int4", ("training=qat", "training.bits=4"), TUNED_ON, points=1.0),
)
"""Training precisions, with seeds that the recipe and codecs were compared on."""
SHOWN = ("fp32", "int8", "int8_static", "int4", "int2")
QUANTIZED = ("fp16", "int8", "int8_static", "int4", "int2")
TITLES = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8": "INT8 (dynamic)",
    "int8_static": "INT8 static",
    "int4": "INT4",
    "int2": "INT2",
}


def change_of(row: Row, runs: Runs, precision: str) -> Paired | None:
    """Returns the change of a precision of a row's models against the FP32 models of its baseline, None for those."""
    if (row.name, precision) == (row.baseline, "fp32"):
        return None
    seeds = [seed for seed in row.seeds if {(row.name, seed), (row.baseline, seed)} <= set(runs)]
    return paired(
        [(runs[row.name, s]["accuracy"][precision], runs[row.baseline, s]["accuracy"]["fp32"]) for s in seeds]
    )


def runs_of(row: Row, runs: Runs) -> list[dict[str, Any]]:
    """Returns the figures of a row's runs that are there."""
    return [runs[row.name, seed] for seed in row.seeds if (row.name, seed) in runs]


def accuracy(own: Sequence[Mapping[str, Any]], precision: str) -> str:
    """Returns a mean accuracy."""
    return f"{100 * statistics.fmean(each['accuracy'][precision] for each in own):.2f} %"


def table_of(kind: str, rows: Sequence[Row], precisions: Sequence[str], runs: Runs) -> str:
    """Returns a table: a row for each kind of run, a column for each precision."""
    lines = []
    for row in rows:
        own = runs_of(row, runs)
        cells = [row.title, f"{len(own)} of {len(row.seeds)}"]
        for name in precisions:
            change = change_of(row, runs, name)
            cells.append("" if not own else accuracy(own, name) + (f" ({change})" if change else ""))
        lines.append(cells)
    return markdown((kind, "seeds", *precisions), lines)


def trained_table(runs: Runs) -> str:
    """Returns what training precisions give, in every precision, and whether the target is met."""
    return f"{table_of('training', TRAINED, SHOWN, runs)}\n{qat4_target(runs)}\n"


def qat4_target(runs: Runs) -> str:
    """Returns whether INT4 that was trained for is within its target."""
    row = next(row for row in TRAINED if row.name == "qat4")
    change = change_of(row, runs, "int4")
    asked = f"Target: int4 of qat int4 within {row.points:g} point of FP32"
    told = verdict(change, row.points or 0.0)
    if change is None or told is None or change.n < len(row.seeds):
        return f"{asked}: incomplete."
    mean = "within" if within(change, row.points or 0.0) else "not within"
    return f"{asked}: the mean, {change}, is {mean}; the interval: {told}."


def after_table(runs: Runs) -> str:
    """Returns what quantizing FP32 models after training costs, IID and Dirichlet."""
    return table_of("clients", AFTER, SHOWN[:1] + QUANTIZED, runs)
