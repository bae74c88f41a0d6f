"""Quantized communication on real EuroSAT: accuracy against bytes, each codec against FP32 with the same seeds.

    python benchmarks/codecs.py [--only NAME ...] [--jobs 1] [--threads 2] [--report] [overrides of fl.train ...]

Runs what is missing of the grid, each as `python -m fl.train` with the default recipe, and adds every finished run to
docs/codecs.json, so that it can be stopped at any time: a run that was cut off continues after its last round. Then it
writes docs/codecs.csv, docs/codecs.png and the table in docs/results.md. Real EuroSAT (EUROSAT_ZIP); other overrides
are for trying the grid and go with --folder, which keeps such figures out of the docs.
"""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grid import SEEDS, Row, basic_figures, fill, options_of, paired, write_section

from fl.console import say
from fl.errors import one_line_errors
from fl.plots import plot_traffic
from fl.results import read_json, read_jsonl, write_bytes

DIRICHLET = ("partition=dirichlet", "partition.alpha=0.3")


def both(codec: str, **settings: object) -> tuple[str, ...]:
    """Returns the overrides that use a codec in both directions."""
    chosen = [f"codec@{direction}={codec}" for direction in ("broadcast", "update")]
    return (*chosen, *(f"{direction}.{k}={v}" for k, v in settings.items() for direction in ("broadcast", "update")))


ROWS = (
    Row("fp32", "FP32", seeds=SEEDS),
    Row("ecq-1", "ecq, 1 bit both ways", both("ecq"), SEEDS, fewer=(30, "total"), points=1.0),
    Row(
        "ecq-half",
        "ecq, 0.6 bit broadcast, 0.51 bit update",
        (*both("ecq"), "broadcast.bits=0.6", "update.bits=0.51"),
        SEEDS,
        fewer=(60, "total"),
        points=2.0,
    ),
    Row(
        "int8",
        "int8 both ways, one scale per tensor",
        both("int8", scales="tensor"),
        SEEDS,
        fewer=(5, "each"),
        points=0.25,
    ),
    Row(
        "int4",
        "int4 update, int8 broadcast",
        ("codec@broadcast=int8", "codec@update=int4"),
        SEEDS,
        fewer=(10, "update"),
        points=0.5,
    ),
    Row("eden-1", "eden, 1 bit both ways", both("eden")),
    Row("stc", "stc, 1 % both ways", both("stc")),
    Row("dirichlet-fp32", "FP32, Dirichlet 0.3", DIRICHLET),
    Row(
        "dirichlet-int8",
        "int8 both ways, Dirichlet 0.3",
        (*both("int8", scales="tensor"), *DIRICHLET),
        baseline="dirichlet-fp32",
    ),
    Row(
        "dirichlet-ecq-1", "ecq, 1 bit both ways, Dirichlet 0.3", (*both("ecq"), *DIRICHLET), baseline="dirichlet-fp32"
    ),
)


def figures(run_dir: Path) -> dict[str, Any]:
    """Returns what the table needs of a finished run."""
    directions = {name: read_json(run_dir / "summary.json")["totals"][name] for name in ("broadcast", "update")}
    return {
        **basic_figures(run_dir),
        "reference_accuracy": read_jsonl(run_dir / "rounds.jsonl")[-1].get("reference_accuracy"),
        **{f"{name}_payload_bytes": each["payload_bytes"] for name, each in directions.items()},
        **{
            f"{name}_fp32_bytes": each.get("fp32_payload_bytes", each["payload_bytes"])
            for name, each in directions.items()
        },
    }


def fewer(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns how many times fewer bytes than FP32 travelled, over all runs."""
    sums = {key: sum(each[key] for each in runs) for key in runs[0] if key.endswith("_bytes")}
    ways = {way: sums[f"{way}_fp32_bytes"] / sums[f"{way}_payload_bytes"] for way in ("broadcast", "update")}
    coded = sums["broadcast_payload_bytes"] + sums["update_payload_bytes"]
    return ways | {
        "total": (sums["broadcast_fp32_bytes"] + sums["update_fp32_bytes"]) / coded,
        "each": min(ways.values()),
    }


def summarize(row: Row, runs: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns one line of the table, None before its first run is there."""
    own = [runs[row.name, seed] for seed in row.seeds if (row.name, seed) in runs]
    if not own:
        return None
    pairs = [
        (runs[row.name, s], runs[row.baseline, s]) for s in row.seeds if {(row.name, s), (row.baseline, s)} <= set(runs)
    ]
    mean, error = paired([(mine["test_accuracy"], theirs["test_accuracy"]) for mine, theirs in pairs])
    references = [each["reference_accuracy"] for each in own if each["reference_accuracy"] is not None]
    return {
        "traffic": row.title,
        "runs": f"{len(own)} of {len(row.seeds)}",
        "accuracy_percent": 100 * statistics.mean(each["test_accuracy"] for each in own),
        "reference_accuracy_percent": 100 * statistics.mean(references) if references else None,
        "difference_points": mean if row.name != row.baseline else None,
        "standard_error_points": error if row.name != row.baseline else None,
        **{f"fewer_{way}": ratio for way, ratio in fewer(own).items() if way != "each"},
        "total_mb": statistics.mean(each["broadcast_payload_bytes"] + each["update_payload_bytes"] for each in own)
        / 2**20,
        "target": None if row.fewer is None else f">= {row.fewer[0]:g}x {row.fewer[1]}, within {row.points:g}",
        "verdict": verdict(row, fewer(own), mean, error) if len(own) == len(row.seeds) else None,
    }


def verdict(row: Row, ratios: Mapping[str, float], mean: float | None, error: float | None) -> str | None:
    """Returns "met", "missed" or "not resolved" for a row with a target and all that it takes to tell."""
    if row.fewer is None or row.points is None or mean is None or error is None:
        return None
    if ratios[row.fewer[1]] < row.fewer[0]:
        return f"missed: {ratios[row.fewer[1]]:.2f}x"
    if mean >= -row.points:
        return "met"
    return "not resolved" if abs(mean + row.points) <= 2 * error else f"missed: {mean:+.2f} points"


def report(folder: Path, runs: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """Writes table, CSV and picture from the runs there are."""
    lines = [line for row in ROWS if (line := summarize(row, runs)) is not None]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_bytes(folder / "codecs.csv", buffer.getvalue().encode())
    plot_traffic(folder / "codecs.png", lines)
    text = table(lines)
    say(text)
    write_section(folder / "results.md", "codecs", text)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table in Markdown."""
    head = "| traffic | runs | accuracy | clients' model | against FP32 | broadcast | update | total | MB | target | |"
    rows = [head, "|" + "---|" * (head.count("|") - 1)]
    for line in lines:
        difference, error = line["difference_points"], line["standard_error_points"]
        spread = "" if error is None else f" ± {error:.2f}"
        reference = line["reference_accuracy_percent"]
        cells = [
            line["traffic"],
            line["runs"],
            f"{line['accuracy_percent']:.2f} %",
            "" if reference is None else f"{reference:.2f} %",
            "" if difference is None else f"{difference:+.2f}{spread}",
            *(f"{line[f'fewer_{way}']:.2f}×" for way in ("broadcast", "update", "total")),
            f"{line['total_mb']:.1f}",
            line["target"] or "",
            line["verdict"] or "",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Runs what is missing and writes the report."""
    options = options_of(str(__doc__), ROWS, "codecs.json")
    with one_line_errors():
        report(options.folder, fill(options, ROWS, "codecs.json", figures))


if __name__ == "__main__":
    main()
