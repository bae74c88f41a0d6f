"""`python -m fl report RUN_DIR ...`: one page of a run, of a sweep, or of several runs side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fl.commands.arguments import Parser
from fl.core.console import say
from fl.core.errors import ConfigError, one_line_errors
from fl.core.run_folder import MULTIRUN, REPORT, SETTINGS


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python -m fl report",
        description=__doc__,
        examples=[
            "python -m fl report outputs/DATE/TIME                      # writes report.html there",
            "python -m fl report outputs/DATE/ONE outputs/DATE/OTHER    # both, and where their settings differ",
        ],
    )
    made.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="folders of runs, or of a sweep")
    made.add_argument(
        "--output", type=Path, metavar="FILE", help="the page; report.html in the run or sweep, else here"
    )
    return made


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return parser().parse_args(arguments)


def jobs_in(folder: Path) -> list[Path]:
    """Returns the runs of a sweep, in order; the folder itself where it is none."""
    if (folder / SETTINGS).is_file() or not (folder / MULTIRUN).is_file():
        return [folder]
    jobs = [each for each in folder.iterdir() if (each / SETTINGS).is_file()]
    return sorted(jobs, key=lambda job: (not job.name.isdigit(), int(job.name) if job.name.isdigit() else 0, job.name))


def main() -> None:
    """Writes the page and says where."""
    options = parse()
    with one_line_errors():
        runs = [job for folder in options.runs for job in jobs_in(folder)]
        if not runs:
            raise ConfigError(f"{options.runs[0]}: is a sweep without runs")
        from fl.report import write_report

        target = options.output
        if target is None and len(options.runs) == 1 and len(runs) > 1:
            target = options.runs[0] / REPORT
        say(f"Report: {write_report(runs, target)}", event="result")
