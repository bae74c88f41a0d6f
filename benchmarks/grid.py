"""Grids of runs of the default recipe on real EuroSAT, resumable: training what is missing, and keeping the figures.

A grid can be filled on several days and machines: the figures of every finished run are kept in one JSON file, with all
that tables need, and folders of runs that were made elsewhere are adopted by `--runs FOLDER --report`.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from table import parser_of

from fl.core.console import progress, say
from fl.core.errors import ConfigError, RunError
from fl.core.files import read_json, read_jsonl, write_json
from fl.core.targets import renamed
from fl.experiment.composing import composed

ROOT = Path(__file__).resolve().parents[1]
MODEL, SETTINGS = "final_model.pt", "settings.json"
REPORTED = (101, 102, 103, 104, 105)
"""Seeds that nothing was chosen with."""
TUNED_ON = (42, 43, 44)
"""Seeds that settings were compared with, by test accuracy: figures of these runs are labelled so everywhere."""
THREADS = 1
"""Of every run: another number gives other last bits."""
VERSION = 2
"""Of the file with the figures. Version 1, a plain list, charged FP32 for a first model that coded runs had free."""
COMPOSING = Lock()
"""Hydra composes one configuration at a time."""
Runs = dict[tuple[str, int], dict[str, Any]]
"""Figures of finished runs, by row and seed."""


@dataclass(frozen=True)
class Row:
    """One kind of run.

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
    seeds: tuple[int, ...] = REPORTED
    baseline: str = "fp32"
    fewer: tuple[float, str] | None = None
    points: float | None = None


def options_of(
    description: str, rows: Sequence[Row], kept: str, runs: Path = ROOT / "outputs" / "codecs"
) -> argparse.Namespace:
    """Reads the command line that grids have.

    Args:
        description: of the command.
        rows: of the grid.
        kept: name of the file with the figures.
        runs: folder of the runs, unless told otherwise.
    """
    parser = parser_of(description, f"--only {rows[0].name} --jobs 2", "--report    # of what is finished")
    parser.add_argument("--only", action="append", choices=sorted({row.name for row in rows}), help="these rows (all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    parser.add_argument(
        "--threads", type=int, default=THREADS, help=f"of each run ({THREADS}, as all that are reported)"
    )
    parser.add_argument("--report", action="store_true", help="train nothing, write the report of what is finished")
    parser.add_argument("--again", action="store_true", help="take the figures of finished runs anew, too")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help=f"of {kept} and the report (docs)")
    parser.add_argument("--runs", type=Path, default=runs, help=f"of the runs ({runs.relative_to(ROOT)})")
    parser.add_argument("overrides", nargs="*", help="of fl.train, for every run")
    options = parser.parse_args()
    for name in ("jobs", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: must be at least 1")
    return options


def fill(
    options: argparse.Namespace,
    rows: Sequence[Row],
    kept: str,
    figures: Callable[[Path], dict[str, Any]],
    keep: Sequence[Row] = (),
) -> Runs:
    """Runs what is missing, or with --report only reads what is finished, and returns the figures of every run.

    Args:
        options: see `options_of`.
        rows: of the grid.
        kept: name of the file with the figures, in `options.folder`.
        figures: of a finished run's folder.
        keep: further rows whose figures stay, but that are not run.

    Raises:
        RunError: a run failed.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    options.runs.mkdir(parents=True, exist_ok=True)
    path, extra = options.folder / kept, options.overrides
    expected = {row.name: [*row.overrides, *extra] for row in (*rows, *keep)}
    runs = {key: each for key, each in stored(path).items() if each["overrides"] == expected.get(key[0])}
    missing = missing_runs(options, rows, runs)

    def one(pair: tuple[Row, int]) -> dict[str, Any] | None:
        row, seed = pair
        try:
            folder = trained(row, seed, options.runs, extra, options.threads)
        except ConfigError as error:  # there is a run, but not this one
            if not options.report:
                raise
            say(f"left out: {error}")
            return None
        return {**figures(folder), "row": row.name, "seed": seed, "overrides": expected[row.name]}

    with progress("runs", len(missing), "run") as step, ThreadPoolExecutor(options.jobs) as pool:
        for done in step.over(pool.map(one, missing)):
            if done is not None:
                runs[done["row"], done["seed"]] = done
                write_json(path, {"version": VERSION, "runs": [runs[key] for key in sorted(runs)]})
    return runs


def stored(path: Path) -> Runs:
    """Returns the figures that a file keeps, none if there is no file.

    Raises:
        ConfigError: it is of another version.
    """
    found = read_json(path) if path.exists() else {"version": VERSION, "runs": []}
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise ConfigError(
            f"{path}: is of another version; move it away, finished runs are read again from their folders"
        )
    return {(each["row"], each["seed"]): each for each in found["runs"]}


def missing_runs(options: argparse.Namespace, rows: Sequence[Row], runs: Runs) -> list[tuple[Row, int]]:
    """Returns what is to be trained or adopted: the first seed of every row before the second of any."""
    asked = [row for row in rows if row.name in (options.only or [row.name])]
    wanted = [
        (row, seed) for seed in sorted({s for row in asked for s in row.seeds}) for row in asked if seed in row.seeds
    ]

    def finished(row: Row, seed: int) -> bool:
        return (options.runs / f"{row.name}-{seed}" / MODEL).exists()

    missing = [(r, s) for r, s in wanted if (r.name, s) not in runs or (options.again and finished(r, s))]
    return [(row, seed) for row, seed in missing if finished(row, seed) or not options.report]


def trained(row: Row, seed: int, folder: Path, extra: Sequence[str], threads: int) -> Path:
    """Trains, or continues, or only finds a run that is there, and returns its folder.

    Raises:
        ConfigError: the folder holds a run with other settings.
        RunError: it failed.
    """
    run_dir = folder / f"{row.name}-{seed}"
    if (run_dir / SETTINGS).exists():
        with COMPOSING:
            wanted = without_places(composed([*row.overrides, f"seed={seed}", *extra, f"threads_per_client={threads}"]))
            found = without_places(with_what_is_new(composed([]), named_as_today(read_json(run_dir / SETTINGS))))
        if found != wanted:
            other = sorted(key for key in {**found, **wanted} if found.get(key) != wanted.get(key))
            raise ConfigError(f"{run_dir}: is a run with other settings ({', '.join(other)}); remove it")
    if not (run_dir / MODEL).exists():
        places = f"threads_per_client={threads}", f"hydra.run.dir={run_dir}"
        command = [sys.executable, "-m", "fl.train", *row.overrides, f"seed={seed}", *extra, *places]
        if (run_dir / SETTINGS).exists():
            command = [sys.executable, "-m", "fl", "resume", str(run_dir)]
        elif run_dir.exists():
            raise RunError(f"{run_dir}: was cut off before it began; remove it")
        say(f"{row.title}, seed {seed}: {' '.join(command[1:])}")
        call(command, f"{row.name}, seed {seed}")
    return run_dir


def call(command: Sequence[str], what: str) -> str:
    """Runs a command of the project quietly, and returns what it said.

    Raises:
        RunError: it failed, with its own last line.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{what}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def with_what_is_new(usual: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with today's usual values of those that there were not yet when they were written."""
    filled = {**usual, **found}
    for name, own in found.items():
        ours = usual.get(name)
        if isinstance(own, dict) and isinstance(ours, dict) and own.get("_target_") == ours.get("_target_"):
            filled[name] = {**ours, **own}
    return filled


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration without the places of files, and the computer on board where no simulated time counts."""
    data = {key: value for key, value in config["data"].items() if key not in ("path", "cache_dir", "split_files")}
    computer = config.get("computer") if config.get("clock") == "contacts" else None
    return {**config, "data": data, "link": {**config["link"], "windows": None}, "computer": computer}


def named_as_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration whose classes have the names that they have now."""

    def today(group: Any) -> Any:
        return {**group, "_target_": renamed(group["_target_"])} if "_target_" in group else group

    return {name: today(group) if isinstance(group, Mapping) else group for name, group in config.items()}


def basic_figures(run_dir: Path) -> dict[str, Any]:
    """Returns what every table needs of a finished run."""
    summary, rounds = read_json(run_dir / "summary.json"), read_jsonl(run_dir / "rounds.jsonl")
    return {
        "images": summary["data"]["name"],
        "split": {part: summary["data"][f"num_{part}"] for part in ("train", "validation", "test")},
        "rounds": len(rounds),
        "test_accuracy": rounds[-1]["test_accuracy"],
        "accuracy_by_round": [each["test_accuracy"] for each in rounds],
        "train_s": summary["totals"]["train_s"],
        "model_sha256": summary["model_sha256"],
        "threads": summary["config"]["threads_per_client"],
        "versions": summary["environment"],
        "commit": commit_of(run_dir),
    }


def commit_of(folder: Path) -> str | None:
    """Returns the commit of the checkout that holds a folder, as it is now; None outside of any."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
