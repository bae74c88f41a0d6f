"""How benchmarks show and keep their figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl.console import say, show_table
from fl.environment import environment
from fl.results import write_json


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints one table under a title that says what was measured on what."""
    say(title)
    show_table(columns, rows)


def write_results(path: Path | None, result: dict[str, Any]) -> None:
    """Writes figures with the machine they were measured on, if a file is wanted."""
    if path is not None:
        write_json(path, result | {"environment": environment("cpu", 0)})
