"""What a person sees: progress bars on a terminal, plain lines everywhere."""

import gc
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fl.core import output
from fl.core.errors import counted, printable
from fl.core.output import OutputSettings
from fl.core.steps import OPEN, Step, followed, heard, on_screen, stderr_copy

console = Console(highlight=False, soft_wrap=True)

RULE = "=" * 78
PADDING = 3
"""Of a table's column: its border and a blank on both sides."""

NARROWEST = 8
"""No column that names a row is folded below that."""

_live: list[Live] = []


def label_lines(job: int | None) -> None:
    """Puts the number of a job on every line from now on and draws no bars: others write to this terminal too."""
    output.job = job


def say(text: str = "", level: str = "info", event: str = "message", **fields: Any) -> None:
    """Prints lines as they stand: no markup, no wrapping, no control characters; above progress bars on a terminal.

    Lines that begin with "note:" are warnings. With `quiet` nothing but warnings and results is printed, with
    `log=json` each line becomes an object.

    Args:
        text: the lines.
        level: "info", "warning" or "error".
        event: what it is about; "result" says where results lie.
        fields: what an object holds beside the line.
    """
    lines = [(line, "warning" if line.lstrip().startswith("note:") else level) for line in text.split("\n")]
    if output.form.quiet and event != "result":
        lines = [(line, each) for line, each in lines if each != "info"]
    if output.form.quiet or output.form.log == "json":
        lines = [(line, each) for line, each in lines if any(map(str.isalnum, line))]  # no rules, no empty lines
    if output.form.log == "json":
        for line, each in lines:
            output.write(output.record(each, event, line.strip(), **fields))
    elif lines:
        place = _live[-1].console if _live else console
        label = "" if output.job is None else f"[{output.job}] "
        place.print("\n".join(label + printable(line) for line, _ in lines), markup=False, soft_wrap=True)
    if lines:
        heard()


def heading(text: str, event: str = "heading") -> None:
    """Prints a section's heading."""
    say(f"\n{RULE}\n{text}\n{RULE}", event=event)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], keys: int = 1) -> None:
    """Prints a table that cuts nothing: what is wider than the terminal becomes several tables below each other.

    Args:
        columns: the headings; they may break between words, cells do not.
        rows: the cells.
        keys: how many columns name a row: each of the tables has them, folded where they are long.
    """
    rows = [list(row) for row in rows]
    if output.form.quiet:
        return
    if output.form.log == "json":
        told = {"columns": list(columns), "rows": rows}
        output.write(output.record("info", "table", f"{counted(len(rows), 'row')} of {columns[0]}", **told))
        return
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
        width = _table_width([widths[i] for i in shown])
        place = _live[-1].console if _live else Console(highlight=False, file=console.file, width=width)
        place.print(table, width=width, soft_wrap=False)
    heard()


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
def progress(label: str, total: float | None = None, unit: str = "", **more: Any) -> Iterator[Step]:
    """Yields a step that this process is at from here on; call it with the amount that was done.

    On a terminal all open steps are drawn as bars, elsewhere they are told of when nothing else was for a while; both
    in commands only. See `Step` for the arguments.
    """
    step = Step(label, total, unit, **more)
    OPEN.append(step)
    try:
        with _bars() if _can_draw() else nullcontext():
            yield step
    finally:
        OPEN.remove(step)


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Says that libraries are loaded; no garbage is looked for among what they make, now or later: half a second."""
    with progress("loading libraries"):
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            if not gc.get_freeze_count():  # a later job of a sweep: nothing is loaded, and a run's garbage is there
                gc.freeze()


def _can_draw() -> bool:
    alone = output.job is None and not _live and followed()
    return alone and output.form == OutputSettings() and console.is_terminal and sys.stderr.isatty()


@contextmanager
def _bars() -> Iterator[None]:
    """Draws the open steps on stderr."""
    with stderr_copy() as place, on_screen():
        above = Console(file=place, highlight=False, soft_wrap=True)
        live = Live(console=above, transient=True, get_renderable=_drawn, refresh_per_second=4)
        _live.append(live)
        try:
            with live:
                yield
        finally:
            _live.remove(live)


def _drawn() -> Table:
    table = Table.grid(padding=(0, 1))
    for depth, step in enumerate([step.look() for step in OPEN]):
        bar = ProgressBar(step.total, step.done, width=30, pulse=step.total is None)
        table.add_row(Text("  " * depth + step.label), bar, Text(step.told()))
    return table


def duration(seconds: float) -> str:
    """Returns seconds, minutes or hours, with the unit."""
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.2f} h"
    )
