"""The jobs of a multirun as one table and pictures, finished or not.

Mean and standard deviation are over jobs that differ in the seed alone.
"""

import csv
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.core.console import say, show_table
from fl.core.errors import ConfigError, reading
from fl.core.files import read_json, write_bytes, write_json
from fl.core.presets import yaml_file
from fl.core.records import read_rounds, totals
from fl.core.run_folder import ENDED, HYDRA_FOLDER, MULTIRUN, PARTITION, ROUNDS, SUMMARY, SWEEP, SWEEP_TABLE
from fl.core.units import MIB
from fl.experiment.sweep_plots import plot_sweep

PLAN, OVERRIDES, HYDRA = "sweep_plan.json", f"{HYDRA_FOLDER}/overrides.yaml", f"{HYDRA_FOLDER}/hydra.yaml"

SEED = "seed"

FORMULA = ("=", "+", "-", "@", "\t", "\r")

DONE = ENDED


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as far as it came.

    Attributes:
        number: in the order of the sweep, from 0.
        overrides: {setting: value} of this job, as text.
        folder: None before it started.
        state: completed, time_limit, max_days, failed, interrupted, unfinished (running or killed), not started.
        error: of a failed job.
        title: of the data; None before it was opened.
        records: the lines of its `rounds.jsonl`.
    """

    number: int
    overrides: dict[str, str]
    folder: Path | None
    state: str
    error: str | None
    title: str | None
    records: tuple[Mapping[str, Any], ...]

    def to_json(self, sweep: Path, swept: Sequence[str]) -> dict[str, Any]:
        """Returns one row; what was not measured is None."""
        last = self.records[-1] if self.records else {}
        sums = totals(self.records) if self.records else None
        return {
            "job": self.number,
            **{key: self.overrides.get(key) for key in swept},
            "test_accuracy": last.get("test_accuracy"),
            "validation_accuracy": last.get("validation_accuracy"),
            "broadcast_payload_bytes": sums and sums["broadcast"]["payload_bytes"],
            "update_payload_bytes": sums and sums["update"]["payload_bytes"],
            "rounds_completed": len(self.records),
            "rounds_s": sum(map(_measured_s, self.records)) if self.records else None,
            "state": self.state,
            "error": self.error,
            "folder": self.folder and os.path.relpath(self.folder, sweep),
        }


def _measured_s(record: Mapping[str, Any]) -> float:
    return sum(each for key, each in record.items() if key.endswith("_s") and key != "simulated_s")


def read_jobs(sweep: Path) -> list[Job]:
    """Returns the jobs of a multirun folder: the planned ones in their order, then any other found there.

    Raises:
        ConfigError: `sweep` is no folder of a multirun, or a file in it is damaged.
    """
    if not (sweep / MULTIRUN).is_file():
        raise ConfigError(f"{sweep}: is no folder of a multirun, it has no {MULTIRUN}")
    planned = read_json(sweep / PLAN) if (sweep / PLAN).exists() else []
    folders: dict[int, Path] = {}
    for path in sorted(sweep.rglob(HYDRA), key=lambda path: (len(path.parts), path)):
        with reading(path):
            number = _plain(path)["hydra"]["job"]["num"]
            folders.setdefault(number if type(number) is int else int(str(number)), path.parents[1])
    with reading(sweep):
        numbers = sorted({*range(len(planned)), *folders})
        overrides = {n: planned[n] if n in range(len(planned)) else _plain(folders[n] / OVERRIDES) for n in numbers}
        if not all(isinstance(each, list) for each in overrides.values()):
            raise ValueError("overrides are no list")
    jobs = []
    for number in numbers:
        with reading(folders.get(number, sweep)):
            jobs.append(_read_job(number, overrides[number], folders.get(number)))
    return jobs


def _plain(path: Path) -> Any:
    """Returns a YAML file as plain data, interpolations as they are written."""
    try:
        return yaml_file(path, resolve=False)
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged ({error})") from error


def _read_job(number: int, overrides: Sequence[str], folder: Path | None) -> Job:

    texts = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    if folder is None:
        return Job(number, texts, None, "not started", None, None, ())
    rounds, summary, data = folder / ROUNDS, folder / SUMMARY, folder / PARTITION
    records = tuple(read_rounds(rounds)) if rounds.exists() else ()
    told = read_json(summary) if summary.exists() else {"state": "unfinished"}
    state = told["state"] if records or told["state"] not in DONE else "unfinished"
    opened = read_json(data) if data.exists() else {}
    if not all(isinstance(each, str) for each in (told["state"], told.get("error") or "", opened.get("data") or "")):
        raise ValueError("state, error or data is no text")
    return Job(number, texts, folder, state, told.get("error"), opened.get("data"), records)


def swept_settings(jobs: Sequence[Job]) -> list[str]:
    """Returns the settings that differ between jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def pareto_front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Returns the keys of points (bytes, accuracy) that no other point beats in one and equals in the other."""
    return [
        key
        for key, (size, score) in points.items()
        if not any(s <= size and a >= score and (s, a) != (size, score) for s, a in points.values())
    ]


def _no_formula(value: Any) -> Any:
    """Returns a cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        return bool(str(float(text)))
    except ValueError:
        return False


def summarize(sweep: Path) -> dict[str, Any]:
    """Writes the table, the document and the pictures of a sweep into its folder, and returns the document.

    Raises:
        ConfigError: see `read_jobs`.
    """
    jobs = read_jobs(sweep)
    swept = swept_settings(jobs)
    rows = []
    for job in jobs:
        with reading(job.folder or sweep):
            rows.append(job.to_json(sweep, swept))
    measured = {row["job"]: row for row in rows if row["state"] in DONE}
    points = {n: (sent(row), row["test_accuracy"]) for n, row in measured.items()}
    document = {
        "data": sorted({job.title for job in jobs if job.title}),
        "swept": swept,
        "jobs": rows,
        "over_seeds": over_seeds(rows, swept) if SEED in swept else None,
        "pareto_front": pareto_front(points),
    }
    for stale in (*sweep.glob("sweep*.png"), *sweep.glob("sweep*.svg")):
        stale.unlink()
    document["plots"] = plot_sweep(sweep, document, {job.number: job.records for job in jobs})
    write_json(sweep / SWEEP, document)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    write_bytes(sweep / SWEEP_TABLE, text.getvalue().encode())
    return document


def sent(row: Mapping[str, Any]) -> int:
    """Returns the payload bytes of both directions."""
    return int(row["broadcast_payload_bytes"] + row["update_payload_bytes"])


def over_seeds(rows: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> list[dict[str, Any]]:
    """Returns mean and sample standard deviation of the accuracy of jobs that differ in the seed alone."""
    others = [key for key in swept if key != SEED]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["state"] in DONE:
            groups.setdefault(tuple(row[key] for key in others), []).append(row)
    return [
        {
            **dict(zip(others, values, strict=True)),
            "seeds": len(group),
            "mean_test_accuracy": statistics.fmean(row["test_accuracy"] for row in group),
            "std_test_accuracy": statistics.stdev(row["test_accuracy"] for row in group) if len(group) > 1 else None,
            "mean_payload_bytes": statistics.fmean(sent(row) for row in group),
        }
        for values, group in groups.items()
    ]


def show(sweep: Path, document: Mapping[str, Any]) -> None:
    """Prints the table, the means over seeds, and where everything was written."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.2f} %"

    def megabytes(value: float | None) -> str:
        return "–" if value is None else f"{value / MIB:.2f} MB"

    columns = ["job", *document["swept"], "test accuracy", "broadcast", "update", "seconds", "state"]
    rows = []
    for row in document["jobs"]:
        state = f"{row['state']} *" if row["job"] in document["pareto_front"] else row["state"]
        cells = [percent(row["test_accuracy"]), megabytes(row["broadcast_payload_bytes"])]
        seconds = "–" if row["rounds_s"] is None else f"{row['rounds_s']:.1f}"
        cells += [megabytes(row["update_payload_bytes"]), seconds, state]
        rows.append([str(row["job"]), *(str(row[key] or "–") for key in document["swept"]), *cells])
    say(f"{sweep}: {', '.join(document['data']) or 'no data opened'}")
    show_table(columns, rows)
    say("* on the Pareto front: no other job has both fewer bytes (broadcast + update payload) and higher accuracy")
    if document["over_seeds"]:
        others = [key for key in document["swept"] if key != SEED]
        means = []
        for row in document["over_seeds"]:
            cells = [str(row["seeds"]), percent(row["mean_test_accuracy"]), percent(row["std_test_accuracy"])]
            means.append([*(str(row[key]) for key in others), *cells, megabytes(row["mean_payload_bytes"])])
        show_table([*others, "seeds", "mean test accuracy", "standard deviation", "mean traffic"], means)
    files = [("CSV ", SWEEP_TABLE), ("JSON", SWEEP), *(("Plot", file) for file in document["plots"])]
    say("\n".join(f"{name}: {sweep / file}" for name, file in files), event="result")
