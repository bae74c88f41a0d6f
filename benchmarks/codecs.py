"""Quantized communication on real EuroSAT: accuracy against bytes, each codec against FP32 with the same seeds.

    python benchmarks/codecs.py [--only NAME ...] [--jobs 1] [--threads 2] [--report] [overrides of fl.train ...]

Runs what is missing of the grid, each as `python -m fl.train` with the default recipe, and adds every finished run to
docs/codecs.json, so that it can be stopped at any time: a run that was cut off continues after its last round. Then it
writes docs/codecs.csv, docs/codecs.png and the table in docs/results.md. Real EuroSAT (EUROSAT_ZIP); other overrides
are for trying the grid and go with --folder, which keeps such figures out of the docs.
"""

import argparse
import csv
import io
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fl.console import say
from fl.errors import RunError, one_line_errors
from fl.overrides import composed
from fl.plots import plot_traffic
from fl.results import read_json, read_jsonl, write_bytes, write_json

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- codecs: made by benchmarks/codecs.py -->", "<!-- codecs: end -->"
MODEL, SETTINGS = "final_model.pt", "settings.json"
DIRICHLET = ("partition=dirichlet", "partition.alpha=0.3")
SEEDS = (42, 43, 44)
COMPOSING = Lock()
"""Hydra composes one configuration at a time."""


@dataclass(frozen=True)
class Row:
    """One kind of traffic.

    Attributes:
        name: of its runs.
        title: in the table.
        overrides: of fl.train.
        seeds: one run for each.
        baseline: the row that accuracy is compared with.
        fewer: how many times fewer bytes than FP32 are wanted, and of what: "each", "update" or "total".
        points: how much accuracy that may cost.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = SEEDS[:1]
    baseline: str = "fp32"
    fewer: tuple[float, str] | None = None
    points: float | None = None


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


def run(row: Row, seed: int, folder: Path, extra: Sequence[str], threads: int) -> dict[str, Any]:
    """Trains, or continues or only reads a run that is there, and returns its figures.

    Raises:
        RunError: it failed, or the folder holds a run with other settings.
    """
    run_dir = folder / f"{row.name}-{seed}"
    if (run_dir / SETTINGS).exists():
        with COMPOSING:
            wanted = without_places(composed([*row.overrides, f"seed={seed}", *extra]))
        if (found := without_places(read_json(run_dir / SETTINGS))) != wanted:
            other = sorted(key for key in {**found, **wanted} if found.get(key) != wanted.get(key))
            raise RunError(f"{run_dir}: is a run with other settings ({', '.join(other)}); remove it")
    if not (run_dir / MODEL).exists():
        places = f"threads_per_client={threads}", f"hydra.run.dir={run_dir}"
        command = [sys.executable, "-m", "fl.train", *row.overrides, f"seed={seed}", *extra, *places]
        if (run_dir / "checkpoint.pt").exists():
            command = [sys.executable, "-m", "fl.resume", str(run_dir)]
        elif run_dir.exists():
            raise RunError(f"{run_dir}: was cut off before its first round ended; remove it")
        say(f"{row.title}, seed {seed}: {' '.join(command[1:])}")
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise RunError(f"{row.name}, seed {seed}: {done.stderr.strip().splitlines()[-1]}")
    return figures(run_dir) | {"row": row.name, "seed": seed, "overrides": [*row.overrides, *extra]}


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration without the places of files and the threads, which differ between machines."""
    data = {key: value for key, value in config["data"].items() if key not in ("path", "cache_dir")}
    return {**config, "data": data, "link": {**config["link"], "windows": None}, "threads_per_client": None}


def figures(run_dir: Path) -> dict[str, Any]:
    """Returns what the table needs of a finished run."""
    summary, rounds = read_json(run_dir / "summary.json"), read_jsonl(run_dir / "rounds.jsonl")
    directions = {name: summary["totals"][name] for name in ("broadcast", "update")}
    return {
        "images": summary["data"]["name"],
        "rounds": len(rounds),
        "test_accuracy": rounds[-1]["test_accuracy"],
        "reference_accuracy": rounds[-1].get("reference_accuracy"),
        "accuracy_by_round": [each["test_accuracy"] for each in rounds],
        **{f"{name}_payload_bytes": each["payload_bytes"] for name, each in directions.items()},
        **{
            f"{name}_fp32_bytes": each.get("fp32_payload_bytes", each["payload_bytes"])
            for name, each in directions.items()
        },
        "train_s": summary["totals"]["train_s"],
        "model_sha256": summary["model_sha256"],
        "threads": summary["config"]["threads_per_client"],
        "versions": summary["environment"],
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
    differences = [100 * (mine["test_accuracy"] - theirs["test_accuracy"]) for mine, theirs in pairs]
    mean = statistics.mean(differences) if differences else None
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
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
    results = folder / "results.md"
    if results.exists() and BEGIN in (content := results.read_text()):
        before, rest = content.split(BEGIN)
        after = rest.split(END)[1]
        write_bytes(results, f"{before}{BEGIN}\n\n{text}\n{END}{after}".encode())


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="these rows (all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--threads", type=int, default=2, help="of each run (2): 1 with --jobs 2 is faster on 2 cores")
    parser.add_argument("--report", action="store_true", help="train nothing, write the report of what is finished")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="of codecs.json and the report (docs)")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "codecs", help="of the runs (outputs/codecs)")
    parser.add_argument("overrides", nargs="*", help="of fl.train, for every run")
    options = parser.parse_args()
    for name in ("jobs", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: must be at least 1")
    kept = options.folder / "codecs.json"
    with one_line_errors():
        options.folder.mkdir(parents=True, exist_ok=True)
        runs = {(each["row"], each["seed"]): each for each in (read_json(kept) if kept.exists() else [])}
        runs = {key: each for key, each in runs.items() if each["overrides"] == expected(key[0], options.overrides)}
        rows = [row for row in ROWS if row.name in (options.only or [row.name])]
        missing = [(row, seed) for seed in SEEDS for row in rows if seed in row.seeds and (row.name, seed) not in runs]
        if options.report:
            missing = [(row, seed) for row, seed in missing if (options.runs / f"{row.name}-{seed}" / MODEL).exists()]
        options.runs.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(options.jobs) as pool:
            for done in pool.map(lambda pair: run(*pair, options.runs, options.overrides, options.threads), missing):
                runs[done["row"], done["seed"]] = done
                write_json(kept, list(runs.values()))
        if not runs:
            raise RunError(f"{kept}: holds no run of this grid; leave --report out to train")
        report(options.folder, runs)


def expected(name: str, extra: Sequence[str]) -> list[str] | None:
    """Returns the overrides of a row's runs, None for a row that is no longer there."""
    return next(([*row.overrides, *extra] for row in ROWS if row.name == name), None)


if __name__ == "__main__":
    main()
