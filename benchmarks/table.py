"""What benchmarks share: their command line, and how they show and keep their figures."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl.console import say, show_table
from fl.environment import environment
from fl.results import write_json


def options_of(description: str, repeats: int) -> argparse.Namespace:
    """Reads the command line that all benchmarks have; `repeats` is the default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"how often each is measured ({repeats})")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("overrides", nargs="*", help="of fl.train")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: must be at least 1")
    return options


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints one table under a title that says what was measured on what."""
    say(title)
    show_table(columns, rows)


def write_results(path: Path | None, result: dict[str, Any]) -> None:
    """Writes figures with the machine they were measured on, if a file is wanted."""
    if path is not None:
        write_json(path, result | {"environment": environment("cpu", 0)})
