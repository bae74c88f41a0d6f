"""What a person sees: progress bars on a terminal, plain lines everywhere."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fl.core.errors import printable

console = Console(highlight=False, soft_wrap=True)

_stderr = Console(stderr=True, highlight=False)

RULE = "=" * 78
PADDING = 3
"""Of a table's column: its border and a blank on both sides."""

NARROWEST = 8
"""No column that names a row is folded below that."""

_bars: list[Progress] = []

_label = ""


def label_lines(label: str) -> None:
    """Puts a label before every line from now on and draws no bars: another process writes to this terminal too."""
    global _label
    _label = label


def say(text: str = "") -> None:
    """Prints lines as they stand: no markup, no wrapping, no control characters; above a progress bar on a terminal."""
    place = _bars[-1].console if _bars and console.is_terminal else console
    place.print("\n".join(_label + printable(line) for line in text.split("\n")), markup=False, soft_wrap=True)


def heading(text: str) -> None:
    """Prints a section's heading."""
    say(f"\n{RULE}\n{text}\n{RULE}")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], keys: int = 1) -> None:
    """Prints a table that cuts nothing: what is wider than the terminal becomes several tables below each other.

    Args:
        columns: the headings; they may break between words, cells do not.
        rows: the cells.
        keys: how many columns name a row: each of the tables has them, folded where they are long.
    """
    cells, limit = [["\n".join(map(printable, cell.split("\n"))) for cell in row] for row in rows], _width()
    widths = [max([_longest_word(column), *(cell_len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    natural = [max(width, cell_len(column)) for width, column in zip(widths, columns, strict=True)]
    if limit is None or _table_width(natural) <= limit:
        widths, groups = natural, [list(range(keys, len(columns)))]
    else:
        names = _folded(widths[:keys], limit // 2)
        longest = max(NARROWEST, limit - _table_width(names) - PADDING)
        widths = [*names, *(min(width, longest) for width in widths[keys:])]
        groups = _groups(widths, keys, limit)
    for group in groups:
        table, shown = Table(), [*range(keys), *group]
        for i in shown:
            table.add_column(Text(columns[i]), width=widths[i], overflow="fold")
        for row in cells:
            table.add_row(*(Text(row[i]) for i in shown))
        Console(highlight=False, file=console.file, width=_table_width([widths[i] for i in shown])).print(table)


def _width() -> int | None:
    """Returns what COLUMNS says, or the width of the terminal; None off a terminal: as wide as it takes."""
    told = os.environ.get("COLUMNS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return console.width if console.is_terminal else None


def _table_width(widths: Sequence[int]) -> int:
    return sum(width + PADDING for width in widths) + 1


def _longest_word(text: str) -> int:
    """Returns the length of the longest part that stays on one line: a number keeps its unit."""
    return max(map(cell_len, text.replace(" %", "_%").split()), default=0)


def _folded(names: Sequence[int], room: int) -> list[int]:
    """Returns the widths of the columns that name a row, the widest of them made narrower until all fit into `room`."""
    widths = list(names)
    while _table_width(widths) > room and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def _groups(widths: Sequence[int], keys: int, limit: int) -> list[list[int]]:
    """Returns the other columns in as few groups as fit beside the keys, in their order."""
    groups: list[list[int]] = [[]]
    for i in range(keys, len(widths)):
        if groups[-1] and _table_width([*widths[:keys], *(widths[k] for k in groups[-1]), widths[i]]) > limit:
            groups.append([])
        groups[-1].append(i)
    return groups


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


def duration(seconds: float) -> str:
    """Returns seconds, minutes or hours, with the unit."""
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.2f} h"
    )
