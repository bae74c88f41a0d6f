"""Ours against the usual way: a Flower app on Ray, written plainly as public quickstarts are, doing the same work.

    python benchmarks/reference_flower_ray.py [--repeats 1] [--json FILE] [overrides of fl.train ...]

The reference (reference_app.py): Flower's simulation with its default resources, its FedAvg as it is, JPEG files
decoded and transformed by torchvision in a DataLoader every epoch, tensors in the default layout. Network, first model,
clients, batch size, epochs, optimizer, flips and test images are ours. Both run in turn, each in its own process. A
round is timed from its first message to the end of its evaluation; the first one, in which processes start, counts in
the time of the whole command only. Two rounds of one local epoch on real EuroSAT (EUROSAT_ZIP).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from table import options_of, print_table, write_results

from fl.core.errors import ConfigError, RunError, one_line_errors
from fl.core.files import read_jsonl, write_json
from fl.data.settings import open_data
from fl.experiment.composing import composed
from fl.experiment.settings import settings_from

DEFAULTS = ["num_rounds=2", "local_epochs=1", "augmentation=flips", "lr_schedule=constant", "device=cpu"]


def unpack(path: Path, folder: Path) -> Path:
    """Returns the folder of class sub-folders, unpacked if `path` is a zip file."""
    if path.is_dir():
        return path
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return next(each for each in sorted(folder.rglob("AnnualCrop")) if each.is_dir()).parent


def output_of(command: list[str], environment: dict[str, str]) -> tuple[str, float]:
    """Returns what a command prints, and the seconds it took.

    Raises:
        RunError: it failed.
    """
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    if done.returncode:
        raise RunError(f"{command[1]} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - began


def one_pair(overrides: list[str], work: Path, images: Path) -> dict[str, dict[str, Any]]:
    """Returns what both ways measured: seconds of each round, of the whole command, and the last accuracy."""
    import numpy as np

    command = [sys.executable, "-m", "fl.train", *overrides, f"hydra.run.dir={work}/ours"]
    _, whole_s = output_of(command, {})
    records = read_jsonl(work / "ours" / "rounds.jsonl")
    rounds = [record["train_s"] + record["aggregate_s"] + record["evaluate_s"] for record in records]
    ours = {"round_s": rounds, "whole_s": whole_s, "accuracy": records[-1]["test_accuracy"]}
    settings = settings_from(composed(overrides))
    opened, split = open_data(settings.data, settings.rounds.seed)
    with np.load(work / "ours" / "shares.npz") as stored:
        clients = [stored[str(client)] for client in range(settings.rounds.num_clients)]
    plan = {
        "folder": images,
        "clients": clients,
        "test": split.test,
        "num_classes": len(opened.class_names),
        "optimizer": asdict(settings.training.optimizer),
        **{key: getattr(settings.rounds, key) for key in ("seed", "lr", "num_rounds")},
        **{key: getattr(settings.training, key) for key in ("batch_size", "local_epochs")},
    }
    write_json(work / "plan.json", plan)
    environment = {"PLAN": str(work / "plan.json"), "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    printed, whole_s = output_of([sys.executable, str(Path(__file__).with_name("reference_app.py"))], environment)
    return {"ours": ours, "reference": json.loads(printed.splitlines()[-1]) | {"whole_s": whole_s}}


def main() -> None:
    """Prints the table."""
    options = options_of(str(__doc__), 1)
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        overrides = [*DEFAULTS, *options.overrides]
        config = composed(overrides)
        same = {"augmentation": "flips", "label_smoothing": 0.0, "fraction_train": 1.0, "lr_schedule": "constant"}
        for key, value in (same | {"fraction_evaluate": 0.0, "device": "cpu"}).items():
            if config[key] != value:
                raise ConfigError(f"{key}={config[key]}: the reference has {value}; leave it")
        if config["num_rounds"] < 2 or not config["strategy"]["_target_"].endswith(".FedAvg"):
            raise ConfigError("num_rounds must be at least 2, the first one is not timed; strategy must be fedavg")
        data = config["data"]
        path = data.get("path") or os.environ.get("EUROSAT_ZIP")
        if not path:
            raise ConfigError("data.path: the reference reads JPEG files; set EUROSAT_ZIP or data.path")
        images = unpack(Path(path).expanduser().absolute(), Path(folder) / "images")
        pairs = []
        for repeat in range(options.repeats):
            work = Path(folder) / str(repeat)
            work.mkdir()
            pairs.append(one_pair(overrides, work, images))
        rows, medians = [], {}
        for way in ("ours", "reference"):
            rounds = [seconds for pair in pairs for seconds in pair[way]["round_s"][1:]]
            whole = [pair[way]["whole_s"] for pair in pairs]
            accuracy = [f"{100 * pair[way]['accuracy']:.2f} %" for pair in pairs]
            medians[way] = statistics.median(rounds), statistics.median(whole)
            spread = f"{min(rounds):.1f}-{max(rounds):.1f}"
            rows.append([way, f"{medians[way][0]:.1f}", spread, f"{medians[way][1]:.1f}", ", ".join(accuracy)])
        ratios = [a / b for a, b in zip(medians["ours"], medians["reference"], strict=True)]
        columns = ["way", "s per round (median)", "range", "s for the command (median)", "test accuracy"]
        print_table(
            f"Flower + Ray as usual, and ours, {options.repeats} times: {' '.join(overrides)}\nours / reference: "
            f"{ratios[0]:.2f} per round, {ratios[1]:.2f} for the command (target: at most 0.75)",
            columns,
            rows,
        )
        write_results(options.json, {"pairs": pairs, "ratio_round": ratios[0], "ratio_command": ratios[1]})


if __name__ == "__main__":
    main()
