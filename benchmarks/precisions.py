"""Training precisions on real EuroSAT: accuracy of what comes out, in FP32 and quantized, against FP32 training.

    python benchmarks/precisions.py [--only NAME ...] [--jobs 1] [--threads 2] [--report] [overrides of fl.train ...]

Runs what is missing of the grid, each as `python -m fl.train` with the default recipe and then
`python compare_quantizations.py --precisions all`, and adds every finished run to docs/precisions.json, so that it can
be stopped at any time. Then it writes the table in docs/results.md. The FP32 runs are those of benchmarks/codecs.py.
Real EuroSAT (EUROSAT_ZIP); other overrides are for trying the grid and go with --folder.
"""

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grid import SEEDS, Row, Runs, basic_figures, call, fill, options_of, paired, write_section

from fl.console import say
from fl.errors import one_line_errors
from fl.results import read_json

ROWS = (
    Row("fp32", "FP32", seeds=SEEDS),
    Row("amp", "amp bfloat16", ("training=amp", "training.dtype=bfloat16"), SEEDS),
    Row("qat8", "qat int8", ("training=qat",), SEEDS),
    Row("qat4", "qat int4", ("training=qat", "training.bits=4"), SEEDS),
)
SHOWN = ("fp32", "int8", "int8_static", "int4", "int2")
TARGET = ("qat4", "int4", 1.0)
"""Within so many points of FP32."""


def figures(run_dir: Path) -> dict[str, Any]:
    """Returns a run's figures with the accuracy of its model in every precision, which are measured if they are not."""
    path = run_dir / "quantization_comparison.json"
    if not path.exists() or not set(SHOWN) <= set(read_json(path)["precisions"]):
        command = [sys.executable, "compare_quantizations.py", str(run_dir / "final_model.pt"), "--precisions", "all"]
        call(command, run_dir.name)
    entries: Mapping[str, Any] = read_json(path)["precisions"]
    return basic_figures(run_dir) | {
        "accuracy": {name: entry["accuracy"] for name, entry in entries.items()},
        "file_size_bytes": {name: entry["file_size_bytes"] for name, entry in entries.items()},
    }


def table(runs: Runs) -> str:
    """Returns the table in Markdown: mean accuracy, and mean paired difference to the FP32 model of FP32 training."""
    head = f"| training | runs | {' | '.join(SHOWN)} |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in ROWS:
        own = [runs[row.name, seed] for seed in row.seeds if (row.name, seed) in runs]
        if not own:
            continue
        cells = [row.title, f"{len(own)} of {len(row.seeds)}"]
        for name in SHOWN:
            mean, error = against_fp32(runs, row, name)
            told = "" if mean is None or (row.name, name) == ("fp32", "fp32") else f" ({mean:+.2f}"
            told += "" if not told else ")" if error is None else f" ± {error:.2f})"
            cells.append(f"{100 * statistics.mean(each['accuracy'][name] for each in own):.2f} %{told}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def against_fp32(runs: Runs, row: Row, precision: str) -> tuple[float | None, float | None]:
    """Returns the mean paired difference, with its standard error, of a precision of a row's models."""
    both = [seed for seed in row.seeds if {(row.name, seed), (row.baseline, seed)} <= set(runs)]
    return paired([(runs[row.name, s]["accuracy"][precision], runs[row.baseline, s]["accuracy"]["fp32"]) for s in both])


def verdict(runs: Runs) -> str:
    """Returns whether the target is met, from the runs there are."""
    name, precision, points = TARGET
    mean, error = against_fp32(runs, next(row for row in ROWS if row.name == name), precision)
    if mean is None or error is None:
        return f"{name} as {precision} within {points:g} point: not measured yet"
    met = "met" if mean >= -points else "not resolved" if abs(mean + points) <= 2 * error else "missed"
    return f"Target: {precision} of {name} within {points:g} point of FP32: {mean:+.2f} ± {error:.2f}, {met}."


def main() -> None:
    """Runs what is missing and writes the report."""
    options = options_of(str(__doc__), ROWS, "precisions.json")
    with one_line_errors():
        runs = fill(options, ROWS, "precisions.json", figures)
        text = f"{table(runs)}\n{verdict(runs)}\n"
        say(text)
        write_section(options.folder / "results.md", "precisions", text)


if __name__ == "__main__":
    main()
