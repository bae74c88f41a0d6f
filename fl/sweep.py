"""`python -m fl.sweep DIR`: one table and pictures of all jobs of a multirun, finished or not.

Mean and standard deviation are over jobs that differ in the seed alone.
"""

if __name__ == "__main__":
    from fl.stop import listen

    listen()

import csv
import io
import os
import statistics
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from fl.arguments import Parser
from fl.errors import (
    ConfigError,
    QuantflError,
    RunError,
    counted,
    one_line_errors,
    python_command,
    reading,
    shell_path,
)
from fl.overrides import quoted, refused_folder

TABLE, DOCUMENT = "sweep.csv", "sweep.json"
MULTIRUN, PLAN, OVERRIDES, HYDRA = "multirun.yaml", "sweep_plan.json", ".hydra/overrides.yaml", ".hydra/hydra.yaml"
SEED = "seed"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
DONE = ("completed", "time_limit")


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as far as it came.

    Attributes:
        number: in the order of the sweep, from 0.
        overrides: {setting: value} of this job, as text.
        folder: None before it started.
        state: completed, time_limit, failed, interrupted, unfinished (running or killed), not started.
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
        from fl.results import totals

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
            "rounds_s": sum(r[key] for r in self.records for key in r if key.endswith("_s")) if self.records else None,
            "state": self.state,
            "error": self.error,
            "folder": self.folder and os.path.relpath(self.folder, sweep),
        }


def read_jobs(sweep: Path) -> list[Job]:
    """Returns the jobs of a multirun folder: the planned ones in their order, then any other found there.

    Raises:
        ConfigError: `sweep` is no folder of a multirun, or a file in it is damaged.
    """
    from fl.results import read_json

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
    from fl.results import yaml_text

    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(yaml_text(path))), resolve=False)
    except Exception as error:  # whatever the parser makes of it
        raise ConfigError(f"{path}: is damaged ({str(error).splitlines()[0]})") from error


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """Returns the overrides of each job that Hydra's basic sweeper is about to start, in its order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    plain: Any = OmegaConf.to_container(config.hydra, resolve=False)
    arguments = [f"{key}={value}" for key, value in (plain["sweeper"].get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides([*arguments, *plain["overrides"]["task"]])
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _read_job(number: int, overrides: Sequence[str], folder: Path | None) -> Job:
    from fl.results import read_json, read_rounds

    texts = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    if folder is None:
        return Job(number, texts, None, "not started", None, None, ())
    rounds, summary, data = folder / "rounds.jsonl", folder / "summary.json", folder / "partition.json"
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
    from fl.results import write_bytes, write_json
    from fl.sweep_plots import plot_sweep

    jobs = read_jobs(sweep)
    swept = swept_settings(jobs)
    rows = []
    for job in jobs:
        with reading(job.folder or sweep):
            rows.append(job.to_json(sweep, swept))
    measured = {row["job"]: row for row in rows if row["state"] in DONE}
    points = {n: (traffic(row), row["test_accuracy"]) for n, row in measured.items()}
    document = {
        "data": sorted({job.title for job in jobs if job.title}),
        "swept": swept,
        "jobs": rows,
        "over_seeds": over_seeds(rows, swept) if SEED in swept else None,
        "pareto_front": pareto_front(points),
    }
    for stale in sweep.glob("sweep*.png"):
        stale.unlink()
    document["plots"] = plot_sweep(sweep, document, {job.number: job.records for job in jobs})
    write_json(sweep / DOCUMENT, document)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({key: _no_formula(value) for key, value in row.items()} for row in rows)
    write_bytes(sweep / TABLE, text.getvalue().encode())
    return document


def traffic(row: Mapping[str, Any]) -> int:
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
            "mean_payload_bytes": statistics.fmean(traffic(row) for row in group),
        }
        for values, group in groups.items()
    ]


def show(sweep: Path, document: Mapping[str, Any]) -> None:
    """Prints the table, the means over seeds, and where everything was written."""
    from fl.console import say, show_table
    from fl.results import MIB

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
    say("\n".join(f"{name}: {sweep / file}" for name, file in [("CSV ", TABLE), ("JSON", DOCUMENT)]))
    for file in document["plots"]:
        say(f"Plot: {sweep / file}")


def record_failure(folder: Path, error: Exception, hydra_files: Mapping[str, str]) -> None:
    """Writes down why a job failed, unless the run did so itself."""
    from fl.results import write_bytes, write_json

    if not isinstance(error, QuantflError):
        traceback.print_exception(error)
    if not (folder / HYDRA).exists():
        (folder / OVERRIDES).parent.mkdir(parents=True, exist_ok=True)
        for name, text in hydra_files.items():
            write_bytes((folder / OVERRIDES).parent / name, text.encode())
    if not (folder / "summary.json").exists():
        write_json(folder / "summary.json", {"state": "failed", "error": str(error) or type(error).__name__})


class Sweep(Callback):
    """Hydra's hook: chooses the folder of a multirun once for all its jobs, in whatever process they run."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Fixes `hydra.sweep.dir`, which would name a new folder each time it is read, and notes the jobs to come.

        Raises:
            SystemExit: the folder holds a multirun already (Hydra swallows every other exception here).
        """
        from fl.results import write_json

        try:
            folder = str(config.hydra.sweep.dir)
        except OmegaConfBaseException:
            refused = refused_folder("hydra.sweep.dir")
            if refused is None:  # what Hydra cannot read it refuses itself, a moment later
                return
            _end(refused)
        if (Path(folder) / MULTIRUN).exists():
            _end(f"hydra.sweep.dir={folder}: holds a multirun already; choose another folder")
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _end(refused_folder("hydra.sweep.dir", error))
        Sweep.folder = Path(folder)
        with flag_override(config, ["readonly", "struct"], False):
            config.hydra.sweep.dir = folder
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")
        try:
            jobs = planned_jobs(config)
        except Exception:  # what Hydra cannot sweep it refuses itself, a moment later
            return
        write_json(Sweep.folder / PLAN, jobs)


def _end(told: str | None) -> NoReturn:
    """Ends with a line from within Hydra's hook, out of which no other exception comes."""
    print(f"error: {told}", file=sys.stderr)
    raise SystemExit(ConfigError.exit_code) from None


@contextmanager
def sweep_table() -> Iterator[None]:
    """Shows the table when the multirun within ends, however it ends.

    Raises:
        RunError: a job has not come to its end, or the launcher failed.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if Sweep.folder is None or not Sweep.folder.exists():
            raise
        table = f"the table of its jobs is drawn again by: {python_command()} -m fl.sweep {shell_path(Sweep.folder)}"
        raise KeyboardInterrupt(*error.args, table) from None
    except Exception as error:
        if Sweep.folder is None or isinstance(error, QuantflError):
            raise
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"hydra/launcher: could not run the jobs ({told})") from error
    finally:
        if Sweep.folder is not None:
            _finish(Sweep.folder, interrupted=sys.exc_info()[0] is not None)


def _finish(folder: Path, interrupted: bool) -> None:
    from fl.console import label_lines

    label_lines("")
    if not any(folder.rglob(OVERRIDES)):  # nothing ran
        if {path.name for path in folder.glob("*")} <= {PLAN, MULTIRUN}:
            for name in (PLAN, MULTIRUN):
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        return
    document = summarize(folder)
    show(folder, document)
    bad = [row for row in document["jobs"] if row["state"] not in DONE]
    for row in bad:
        print(f"error: job {row['job']}: {row['error'] or row['state']}", file=sys.stderr)
    if bad and not interrupted:
        raise RunError(f"{len(bad)} of {counted(len(document['jobs']), 'job')} did not complete")


def main() -> None:
    """Redraws table and pictures of a multirun folder."""
    parser = Parser(prog="python -m fl.sweep", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a multirun, as in outputs/multirun/DATE/TIME")
    folder: Path = parser.parse_args().folder
    with one_line_errors():
        show(folder, summarize(folder))


if __name__ == "__main__":
    main()
