"""`python -m fl plot RUN_DIR ...`: the pictures that papers show of several runs, as PNG and SVG."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fl.commands.arguments import Parser
from fl.commands.report import jobs_in
from fl.core.console import say
from fl.core.errors import ConfigError, one_line_errors, writable_folder
from fl.core.figures import STYLES, style
from fl.core.run_folder import SETTINGS


def parser() -> Parser:
    """Returns what reads the command line."""
    made = Parser(
        prog="python -m fl plot",
        description=f"{__doc__}\n\nRuns that differ in their seeds alone are drawn as one: mean and 95 % interval.",
        examples=[
            "python -m fl plot outputs/DATE/ONE outputs/DATE/OTHER",
            "python -m fl plot outputs/multirun/DATE/TIME --style paper --output figures",
        ],
    )
    add = made.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN_DIR", help="folders of runs, or of a sweep")
    add("--style", choices=list(STYLES), default="screen", help="paper: 3.4 inches wide, small letters (screen)")
    add("--output", type=Path, default=Path("plots"), metavar="DIR", help="folder for them (plots)")
    return made


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    return parser().parse_args(arguments)


def main() -> None:
    """Draws, and says what and from which files."""
    options = parse()
    with one_line_errors():
        runs = [job for folder in options.runs for job in jobs_in(folder)]
        for folder in runs or options.runs:
            if not (folder / SETTINGS).is_file():
                raise ConfigError(f"{folder}: is no folder of a run, it has no {SETTINGS}")
        writable_folder(options.output, "--output DIR")
        from fl.report.plots import draw

        found = False
        with style(options.style):
            for path, source in draw(runs, options.output):
                found = True
                say(f"{path}, {path.with_suffix('.svg').name}: from {source}", event="result")
        if not found:
            raise ConfigError(f"{runs[0]}: no round is finished there yet")
