"""What a person sees: progress bars on a terminal, plain lines and tables everywhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)
_stderr = Console(stderr=True, highlight=False)


def say(text: str = "") -> None:
    """Prints one line as it stands: no markup, no wrapping."""
    console.print(text, markup=False)


@contextmanager
def progress(label: str, total: float) -> Iterator[Callable[[float], object]]:
    """Yields a function that advances a progress bar on stderr; off a terminal nothing is drawn."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_stderr, transient=True, disable=not _stderr.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table with right-aligned columns after the first."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        drawn.add_column(column, justify="right" if position else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
