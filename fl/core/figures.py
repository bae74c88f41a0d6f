"""Pictures: one style, two files of each, and labels that do not hide each other."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.core.console import say
from fl.core.errors import printable
from fl.core.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart by colour-blind eyes; lines differ by their dashes too, points by their shapes."""
DASHES, MARKERS = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1))), ("o", "s", "^", "D", "v", "P")

STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.markersize": 4,
    "savefig.dpi": 120,
    "svg.fonttype": "none",
    "svg.hashsalt": "quantfl",  # the same picture is the same text
    "text.parse_math": False,  # names are text
    "text.usetex": False,  # a matplotlibrc in the working folder may be anybody's
}
PAPER: Mapping[str, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "figure.titlesize": 7,
    "lines.linewidth": 1,
    "lines.markersize": 3,
    "savefig.dpi": 600,
}
COLUMN, PANEL = 3.4, 2.2
"""Inches: the width of a paper's column, and the height of one of the panels that stand in it below each other."""
INSIDE = 0.75
"""Of a panel's height that its axes have, about."""
LETTER, WIDEST_NAME = 0.55, 0.25
"""The width of a letter in its height, about; the share of a panel's width that a line's name may have beside it."""
STYLES = {"screen": STYLE, "paper": {**STYLE, **PAPER}}

_style: ContextVar[str] = ContextVar("style", default="screen")

LABEL_PLACES = [
    (6 * side, far * above, ("right", "center", "left")[side + 1], ("top", "center", "bottom")[above + 1])
    for far in (4, 14, 26, 40, 56)
    for side, above in ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
]
"""Offsets from a point in points of print, with alignments: the nearest first."""

SHARES = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}
"""Of a label that an alignment puts to the left of its place, or below it."""


def drawing_library() -> Any:
    """Returns matplotlib, when it is needed: a sweep's table is drawn by the door, whose --help needs none of it."""
    import matplotlib.figure

    return matplotlib


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draws in one of `STYLES` inside."""
    before = _style.set(name)
    try:
        yield
    finally:
        _style.reset(before)


@contextmanager
def picture(
    path: Path | None, width: float, height: float, columns: int = 1
) -> Iterator[tuple["Figure", list["Axes"]]]:
    """Yields a figure and its axes, and saves it when all is drawn; in a paper's style panels stand below each other.

    Args:
        path: of the PNG; the SVG has the same name with another ending. None: it is not saved.
        width: in inches, on a screen.
        height: in inches, on a screen.
        columns: axes side by side.
    """
    library = drawing_library()
    with library.rc_context(STYLES[_style.get()]):
        rows = 1
        if _style.get() == "paper":
            width, height, rows, columns = COLUMN, PANEL * columns * max(1.0, height / width), columns, 1
        figure = library.figure.Figure(figsize=(width, height), layout="constrained")
        yield figure, list(np.ravel(figure.subplots(rows, columns)))
        if path is not None:
            save_figure(figure, path)


def look(number: int) -> dict[str, Any]:
    """Returns how the curve of this number is drawn: in a colour, with dashes and points of its own."""
    number %= len(COLOURS)
    return {"color": COLOURS[number], "linestyle": DASHES[number], "marker": MARKERS[number]}


def whole_numbers(axis: "Axis") -> None:
    """Puts an axis' ticks at whole numbers alone."""
    locator: Any = axis.get_major_locator()
    locator.set_params(integer=True, nbins=10, steps=None)


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a figure as PNG and as SVG, each of them whole; says which letters no font here has."""
    for kind in ("png", "svg"):
        content, missing = rendered(figure, kind)
        write_bytes(path.with_suffix(f".{kind}"), content)
        if missing and kind == "png":
            say(f"note: {path.name}: no font here has {printable(missing)}; boxes stand for it, not in the SVG")


def rendered(figure: "Figure", kind: str) -> tuple[bytes, str]:
    """Returns a figure as "png" or "svg", and the letters that no font here has."""
    buffer, missing = io.BytesIO(), dict[str, None]()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figure.savefig(buffer, format=kind, metadata={"Date": None, "Creator": None} if kind == "svg" else {})
    for each in told:
        if glyph := re.match(r"Glyph (\d+) .* missing from font", str(each.message)):
            missing[chr(int(glyph[1]))] = None
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return buffer.getvalue(), "".join(missing)


def log_axis(axes: "Axes", which: str) -> None:
    """Makes the axis "x" or "y" logarithmic, its numbers written out."""
    ticker = drawing_library().ticker
    axes.set(**{f"{which}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def name_lines(axes: "Axes") -> None:
    """Writes the name of each line beside its end, in its colour; names too long for that stand below the picture.

    Args:
        axes: whose limits are those that it will have.
    """
    named = [
        line for line in axes.lines if not str(line.get_label()).startswith("_") and len(np.asarray(line.get_xydata()))
    ]
    ends, texts = [np.asarray(line.get_xydata())[-1] for line in named], [str(line.get_label()) for line in named]
    figure: Any = axes.get_figure(root=True)
    place, size = axes.get_subplotspec(), drawing_library().rcParams["font.size"]
    assert place is not None
    width, height = (
        side * 72 / figure.dpi / parts
        for side, parts in zip(figure.bbox.size, place.get_geometry()[1::-1], strict=False)
    )
    if max(map(len, texts), default=0) * LETTER * size > WIDEST_NAME * width:
        figure.legend(handles=named, loc="outside lower center")
    elif len({end[0] for end in ends}) > 1:
        figure.draw_without_rendering()
        covered = [point for line in named for point in np.asarray(line.get_xydata())]
        label_points(axes, [(x, y) for x, y in ends], texts, [str(line.get_color()) for line in named], covered)
    else:
        axes.get_ylim()  # follows the data from here on
        heights = [float((axes.transScale + axes.transLimits).transform(end)[1]) for end in ends]
        for number, y in enumerate(_apart(heights, 1.25 * size / (INSIDE * height))):
            axes.annotate(
                texts[number],
                (ends[number][0], y),
                xycoords=("data", "axes fraction"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=named[number].get_color(),
                annotation_clip=False,
            )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Returns places in their order that have a gap between each other, the mean as it was."""
    moved: dict[int, float] = {}
    last = -np.inf
    for number in sorted(range(len(places)), key=places.__getitem__):
        last = moved[number] = max(places[number], last + gap)
    pushed = (sum(moved.values()) - sum(places)) / max(1, len(places))
    return [moved[number] - pushed for number in range(len(places))]


def label_points(
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    covered: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes a label beside each point, at the first place where it hides nothing, else where it hides least.

    Args:
        axes: of a figure that was drawn once, so that places are known.
        points: in data coordinates.
        texts: one for each point.
        colours: one for each point.
        covered: further points that no label should hide.
    """
    if not points:
        return
    placed = axes.transData.transform(points)
    taken = np.array([*placed, *(axes.transData.transform(covered) if len(covered) else ())])
    inside, dots = axes.get_window_extent(), axes.figure.dpi / 72
    boxes: list[np.ndarray] = []  # left, bottom, right, top
    for (x, y), point, text, colour in zip(placed, points, texts, colours, strict=False):
        note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize="small", color=colour)
        size = note.get_window_extent()
        best: tuple[int, np.ndarray, tuple[int, int, str, str]] | None = None
        for place in LABEL_PLACES:
            left = x + dots * place[0] - size.width * SHARES[place[2]]
            bottom = y + dots * place[1] - size.height * SHARES[place[3]]
            box = np.array([left, bottom, left + size.width, bottom + size.height])
            outside = (box[:2] < inside.min).any() or (box[2:] > inside.max).any()
            hidden = ((taken > box[:2]) & (taken < box[2:])).all(axis=1).sum()
            crossed = sum((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for other in boxes)
            faults = int(10 * outside + hidden + crossed)
            if best is None or faults < best[0]:
                best = faults, box, place
        assert best is not None
        boxes.append(best[1])
        right, up, across, along = best[2]
        note.set(position=(right, up), ha=across, va=along)
