"""What a person sees: progress bars on a terminal, plain lines everywhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)
_stderr = Console(stderr=True, highlight=False)


_bars: list[Progress] = []
_label = ""


def label_lines(label: str) -> None:
    """Puts a label before every line from now on and draws no bars: another process writes to this terminal too."""
    global _label
    _label = label


def say(text: str = "") -> None:
    """Prints one line as it stands: no markup, no wrapping; above the progress bar, if one is on the terminal."""
    place = _bars[-1].console if _bars and console.is_terminal else console
    place.print("\n".join(_label + line for line in text.split("\n")), markup=False, soft_wrap=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table, as wide as it needs to be off a terminal."""
    table = Table()
    for column in columns:
        table.add_column(Text(column))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    wide = console if console.is_terminal else Console(highlight=False, width=240)
    wide.print(table)


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
    with Progress(*columns, console=_stderr, transient=True, disable=not _stderr.is_terminal or bool(_label)) as bar:
        task = bar.add_task(label, total=total)
        if not bar.disable:
            _bars.append(bar)
        try:
            yield lambda amount: bar.advance(task, amount)
        finally:
            del _bars[:]
