"""What benchmarks share: their command line, and how they show and keep their figures."""

import argparse
import datetime
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fl.core.console import say, show_table
from fl.core.files import write_json
from fl.core.machine import environment

PRINTED: list[dict[str, Any]] = []
"""The tables of this process, as they were printed: what docs show of a stored file (benchmarks/tables.py)."""


def parser_of(description: str, *examples: str) -> argparse.ArgumentParser:
    """Returns a parser whose help shows the program with each of the given command lines."""
    form, name = argparse.RawDescriptionHelpFormatter, f"benchmarks/{Path(sys.argv[0]).name}"
    lines = "".join(f"\n  python {name} {each}" for each in examples)
    return argparse.ArgumentParser(description=description, formatter_class=form, epilog=f"Examples:{lines}")


def options_of(description: str, repeats: int) -> argparse.Namespace:
    """Reads the command line that all benchmarks have; `repeats` is the default."""
    parser = parser_of(description, f"--repeats {repeats}", "--repeats 1 --json figures.json")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"how often each is measured ({repeats})")
    parser.add_argument("--json", type=Path, help="write all figures to this file, as docs/speed/NAME.json")
    parser.add_argument("overrides", nargs="*", help="of fl.train")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: must be at least 1")
    return options


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = (f"| {' | '.join(cell.strip() for cell in row)} |" for row in (columns, *rows))
    head = next(lines)
    return "\n".join([head, "|" + "---|" * len(columns), *lines]) + "\n"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints one table under a title that says what was measured on what."""
    say(title)
    show_table(columns, rows)
    PRINTED.append({"title": title, "columns": list(columns), "rows": [list(row) for row in rows]})


def write_results(path: Path | None, result: dict[str, Any]) -> None:
    """Writes figures with the tables that were printed, the date, the machine and its versions, if a file is wanted."""
    if path is not None:
        import torch

        told = {"measured": datetime.date.today().isoformat(), "printed": PRINTED}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result | told | {"environment": environment("cpu", torch.get_num_threads())})
